"""Who takes which blob from whom: the routing core of the relay. Pure: time is given, nothing is opened here.

Owns the state of every (node, blob) on its way and the choice of its source; a chain while all is well, a new
source when one dies or stalls. Refuses cycles, and the controller as a source wherever another node can be one:
the controller sends each byte once. Knows nothing of images, files or SSH.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTROLLER = ""
WIDTH = 2  # blobs under way to one node: the next one's handshake hides behind the bytes of this one
STALL_SECONDS = 10.0
_PATIENCE = 2  # failures after which a caller asks that peer no more
_LAST_PATIENCE = 4  # the same for the controller: the last resort
_SPOILS = 3  # wrong digests after which a node is given up

Edge = tuple[str, str]  # (who asks, who is asked)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Do: let the node take the blob from the source, from the byte that it has reached."""

    node: str
    blob: str
    source: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Do: end what the node is doing about the blob; it keeps its bytes."""

    node: str
    blob: str


@dataclass(slots=True)
class _Leg:
    """One blob on its way to one node."""

    have: int = 0
    good: bool = False  # all bytes, and the digest is right
    source: str | None = None
    grew_at: float = 0.0
    not_before: float = 0.0
    spoils: int = 0


class Route:
    """The whole journey: blobs in the order in which all nodes take them, nodes in the order of the chain."""

    def __init__(
        self,
        blobs: Mapping[str, int],
        needs: Mapping[str, Iterable[str]],
        *,
        holders: Mapping[str, Iterable[str]] | None = None,
        had: Mapping[tuple[str, str], int] | None = None,
        cut: Iterable[Edge] = (),
    ) -> None:
        """`needs`: node -> digests, in chain order; `holders`: who has whole blobs to begin with, the controller
        if nothing is said; `had`: (node, digest) -> bytes from an earlier try; `cut`: edges known not to work."""
        self.blobs = dict(blobs)
        wanted = {node: set(digests) for node, digests in needs.items()}
        self._legs = {node: {b: _Leg() for b in self.blobs if b in wanted[node]} for node in wanted}
        self._holders = {node: set(held) for node, held in (holders or {CONTROLLER: self.blobs}).items()}
        self._strikes: Counter[Edge] = Counter({edge: _PATIENCE for edge in cut})
        for (node, blob), size in (had or {}).items():
            if blob in self._legs.get(node, {}):
                self._legs[node][blob].have = min(size, self.blobs[blob])
        self._lost: set[str] = set()
        self._stops: list[Stop] = []

    # -- what is known -----------------------------------------------------------

    def live(self) -> tuple[str, ...]:
        """The nodes that are still being supplied, or have been."""
        return tuple(node for node in self._legs if node not in self._lost)

    def complete(self, node: str) -> bool:
        """Whether the node has all it needs."""
        return all(leg.good for leg in self._legs[node].values())

    def have(self, node: str) -> int:
        """Bytes there, of all its blobs together."""
        return sum(leg.have for leg in self._legs[node].values())

    def total(self, node: str) -> int:
        """Bytes that it needs."""
        return sum(self.blobs[blob] for blob in self._legs[node])

    def source(self, node: str, blob: str) -> str | None:
        """Where the bytes come from at the moment."""
        return self._legs[node][blob].source

    def stuck(self) -> tuple[str, ...]:
        """Live nodes that nobody is left to supply."""
        return tuple(
            node
            for node in self.live()
            if any(
                not leg.good
                and leg.source is None
                and (leg.spoils >= _SPOILS or not self._reachable(node, blob, set()))
                for blob, leg in self._legs[node].items()
            )
        )

    # -- what happened -------------------------------------------------------------

    def grew(self, node: str, blob: str, size: int, now: float) -> None:
        """The node says how many bytes it has."""
        leg = self._legs[node][blob]
        if size != leg.have:
            leg.have, leg.grew_at = size, now

    def arrived(self, node: str, blob: str) -> None:
        """The blob is whole and right."""
        leg = self._legs[node][blob]
        leg.have, leg.good, leg.source = self.blobs[blob], True, None

    def spoiled(self, node: str, blob: str, now: float) -> None:
        """All bytes came, and they are not the blob: it begins anew."""
        leg = self._legs[node][blob]
        leg.have, leg.spoils = 0, leg.spoils + 1
        self._strike(node, blob, now)

    def broke(self, node: str, blob: str, now: float) -> None:
        """The way from the source failed."""
        self._strike(node, blob, now)

    def lose(self, node: str) -> None:
        """The node is out: it takes and gives nothing any more."""
        if node in self._lost:
            return
        self._lost.add(node)
        for blob, leg in self._legs.get(node, {}).items():
            if leg.source is not None:
                self._stops.append(Stop(node, blob))
                leg.source = None
        self._holders.pop(node, None)
        for other in self.live():
            for blob, leg in self._legs[other].items():
                if leg.source == node:
                    self._stops.append(Stop(other, blob))
                    leg.source = None

    def _strike(self, node: str, blob: str, now: float) -> None:
        leg = self._legs[node][blob]
        if leg.source is None:
            return
        edge = (node, leg.source)
        self._strikes[edge] += 1
        leg.source = None
        # A peer whose sshd turns away many at once takes the next try.
        leg.not_before = now + min(self._strikes[edge], 5)

    # -- what to do ------------------------------------------------------------------

    def next(self, now: float) -> list[Fetch | Stop]:
        """Everything to be done at this moment; Stops come first."""
        self._end_stalls(now)
        actions: list[Fetch | Stop] = [*self._stops]
        self._stops.clear()
        for node in sorted(self.live(), key=lambda node: -self.have(node)):  # who has more can give more
            room = WIDTH - sum(leg.source is not None for leg in self._legs[node].values())
            for blob, leg in self._legs[node].items():
                if room <= 0:
                    break
                if leg.good or leg.source is not None:
                    continue
                # Also a blob that must wait for its next try keeps its turn: the order is the same on all nodes.
                room -= 1
                if leg.not_before > now or leg.spoils >= _SPOILS:
                    continue
                if (source := self._choose(node, blob)) is not None:
                    leg.source, leg.grew_at = source, now
                    actions.append(Fetch(node, blob, source))
        return actions

    def _end_stalls(self, now: float) -> None:
        for node in self.live():
            for blob, leg in self._legs[node].items():
                if leg.source is None or leg.have >= self.blobs[blob]:
                    continue
                if not self._ahead(leg.source, blob, leg.have):
                    leg.grew_at = now  # its source starves too: not this edge's fault
                elif now - leg.grew_at > STALL_SECONDS:
                    self._stops.append(Stop(node, blob))
                    self._strike(node, blob, now)
                    leg.not_before = now

    def _ahead(self, source: str, blob: str, have: int) -> bool:
        if blob in self._holders.get(source, ()):
            return True
        leg = self._legs.get(source, {}).get(blob)
        return leg is not None and leg.have > have

    def _choose(self, node: str, blob: str) -> str | None:
        """The best source: one that nobody uses yet, so that a chain forms; then the one with most bytes."""
        peers = [peer for peer in (*self._legs, *self._holders) if peer not in ("", node, *self._lost)]
        able = [peer for peer in dict.fromkeys(peers) if self._can_give(peer, node, blob)]
        if able:
            clients = Counter(leg.source for legs in self._legs.values() for b, leg in legs.items() if b == blob)
            place = {peer: index for index, peer in enumerate(self._legs)}
            return min(
                able,
                key=lambda peer: (
                    self._strikes[node, peer],
                    clients[peer],
                    -self._has(peer, blob),
                    # The nearest before it in the chain, so that all blobs take the same way.
                    (place[node] - place.get(peer, -1)) % (len(place) + 1),
                ),
            )
        if blob in self._holders.get(CONTROLLER, ()) and self._strikes[node, CONTROLLER] < _LAST_PATIENCE:
            return CONTROLLER
        return None

    def _has(self, peer: str, blob: str) -> int:
        if blob in self._holders.get(peer, ()):
            return self.blobs[blob]
        return self._legs[peer][blob].have

    def _can_give(self, peer: str, node: str, blob: str) -> bool:
        """Whether the peer has the blob or is being given it, by a way that does not lead through the node."""
        if self._strikes[node, peer] >= _PATIENCE:
            return False
        if blob in self._holders.get(peer, ()):
            return True
        leg = self._legs.get(peer, {}).get(blob)
        if leg is None:
            return False
        if leg.good:
            return True
        return leg.source is not None and not self._feeds(node, peer, blob)

    def _feeds(self, node: str, peer: str, blob: str) -> bool:
        """Whether the peer's bytes come from the node, through however many others."""
        at: str | None = peer
        while at:
            if at == node:
                return True
            leg = self._legs.get(at, {}).get(blob)
            at = leg.source if leg else None
        return False

    def _reachable(self, node: str, blob: str, seen: set[str]) -> bool:
        """Whether a way from someone who has the blob to the node is left, if all others get it first."""
        seen.add(node)
        if blob in self._holders.get(CONTROLLER, ()) and self._strikes[node, CONTROLLER] < _LAST_PATIENCE:
            return True
        for peer in {*self._legs, *self._holders} - {CONTROLLER, *seen, *self._lost}:
            if self._strikes[node, peer] >= _PATIENCE:
                continue
            if blob in self._holders.get(peer, ()):
                return True
            leg = self._legs.get(peer, {}).get(blob)
            if leg and (leg.good or self._reachable(peer, blob, seen)):
                return True
        return False
