"""The image to every node: what each lacks, carried, loaded, proven.

Owns the order: look at all nodes at once, take the missing layers out of the origin's engine, see that there is
room, carry, load, prove. A node that fails has a Finding; the others get the image. Refuses to give the image its
name on a node before a container was created from it there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from clusterft.errors import Blocked, UsageError
from clusterft.events import Progress
from clusterft.findings import Finding, Outcome
from clusterft.remote import Remote, Unreachable
from clusterft.ship import docks, headsave, layout, origin, scripts, squeeze, words
from clusterft.ship.carry import Carrier
from clusterft.ship.convoy import Convoy
from clusterft.ship.docks import Look
from clusterft.ship.layout import ImageParts
from clusterft.ship.route import Route

SESSION = layout.digest_of(b"image")[:16]  # one for the image of a cluster: what is there is found by content
_LOAD_RATE = 2 << 20  # bytes a second: the slowest disk that is waited for
_LOAD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Origin:
    """The engine that has the image: the controller's, or that of a node of the convoy."""

    remote: Remote
    command: tuple[str, ...] = ("docker",)
    node: str | None = None


@dataclass(slots=True)
class Shipment:
    """What came of it: each node's outcome, and what it took."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    parts: ImageParts | None = None  # None where every node had the image already and nobody had to look into it
    sent: int = 0  # bytes of layers that left the controller
    whole: dict[str, str] = field(default_factory=dict)  # nodes that had to get all layers: what their engine said


def image(convoy: Convoy, reference: str, source: Origin, known: ImageParts | None = None) -> Shipment:
    """Bring NAME:TAG from the origin's engine to all nodes of the convoy.

    `known` are the parts of an earlier shipment: with them a second one need not read the image again.
    """
    if "@" in reference or ":" not in reference.rpartition("/")[2]:
        raise UsageError(f"{reference} cannot be given to an image on the nodes", remedy="give it as NAME:TAG")
    return _Bringing(convoy, reference, source, known).run()


class _Bringing:
    def __init__(self, convoy: Convoy, reference: str, source: Origin, known: ImageParts | None) -> None:
        self._convoy, self._reference, self._source = convoy, reference, source
        self._owner = secrets.token_hex(8)
        self._done = Shipment()
        self._looks: dict[str, Look] = {}
        self._seen = origin.look(source.remote, source.command, reference)
        if known and known.reference == reference and known.diff_ids == self._seen.diff_ids:
            if self._seen.id in (known.config_digest, known.manifest_digest, known.source_id):
                self._done.parts = known

    def run(self) -> Shipment:
        self._look()
        if (head := self._source.node) and head not in self._looks:
            found = self._done.outcomes.get(head)
            raise Blocked(
                f"the image was built on {head}, which cannot give it",
                (found,) if isinstance(found, Finding) else (),
            )
        lacks = {n: layout.lacking(self._seen.diff_ids, self._looks[n].layers) for n in self._todo()}
        self._round(lacks)
        again = [node for node in self._done.whole if node not in self._done.outcomes]
        self._round(dict.fromkeys(again, self._seen.diff_ids))
        self._close()
        return self._done

    def _todo(self) -> tuple[str, ...]:
        """Nodes that are reached and have no outcome yet, in chain order."""
        return tuple(n for n in self._convoy.targets if n in self._looks and n not in self._done.outcomes)

    # -- looking -------------------------------------------------------------------

    def _look(self) -> None:
        names = docks.Names(self._reference, SESSION, self._owner)
        for node, found in self._convoy.each(lambda n, remote: docks.look(self._convoy, n, remote, names)).items():
            if isinstance(found, Unreachable):
                self._done.outcomes[node] = words.unreachable(node, found)
            elif isinstance(found, Finding):
                self._done.outcomes[node] = found
            else:
                self._looks[node] = found
                self._judge(node, found)

    def _judge(self, node: str, look: Look) -> None:
        """What can be said before anything travels."""
        ours = (self._seen.os, self._seen.architecture)
        if look.platform != ours:
            self._done.outcomes[node] = words.alien(node, "/".join(ours), "/".join(look.platform))
        elif look.has in self._ids():
            # An Id is a digest of what the image is, whichever kind of engine made it.
            self._done.outcomes[node] = ()

    def _ids(self) -> tuple[str, ...]:
        parts = self._done.parts
        return (self._seen.id, *((parts.config_digest, parts.manifest_digest) if parts else ()))

    # -- one round -----------------------------------------------------------------

    def _round(self, lacks: Mapping[str, tuple[str, ...]]) -> None:
        """Take out of the engine what is lacking, carry, load and prove."""
        if not lacks:
            return
        wanted = {diff_id.removeprefix("sha256:") for lack in lacks.values() for diff_id in lack}
        spool = self._read(wanted)
        try:
            for node in lacks:  # the parts are known only now
                self._judge(node, self._looks[node])
            parts = self._parts()
            sizes = {layer.digest: layer.size for layer in parts.layers if layer.digest in wanted}
            needs: dict[str, set[str]] = {}
            for node in self._todo():
                need = {diff_id.removeprefix("sha256:") for diff_id in lacks.get(node, ())}
                if finding := self._looks[node].room_for(node, {digest: sizes[digest] for digest in need}):
                    self._done.outcomes[node] = finding
                else:
                    needs[node] = need
            self._carry(sizes, needs, spool)
        finally:
            spool.close()

    def _parts(self) -> ImageParts:
        assert self._done.parts is not None  # _read has seen to it
        return self._done.parts

    def _read(self, wanted: set[str]) -> origin.Spool:
        """The wanted layers on the controller; and the image's parts, if they are not known yet."""
        known = self._done.parts
        digests = [diff_id.removeprefix("sha256:") for diff_id in self._seen.diff_ids]
        reader = origin.Reader(digests, wanted, sizes_known=known is not None)
        if known and not wanted:
            return reader.spool
        source, head = self._source, self._source.node
        self._convoy.report(Progress(head or "", "image", "reading it from the engine"))
        if head is None:
            if wanted == set(digests):
                origin.check_room(self._seen.size)
            unpacked = reader.save(source.remote, source.command, self._reference)
        else:
            session = self._convoy.site(head, SESSION).session
            unpacked = headsave.save(source.remote, source.command, self._seen, session, wanted, self._reference)
        if known is None:
            layers = tuple(layout.Blob(digest, unpacked.sizes[digest]) for digest in digests)
            self._done.parts = ImageParts(self._reference, unpacked.config, layers, self._seen.id)
        return reader.spool

    def _carry(self, sizes: Mapping[str, int], needs: Mapping[str, set[str]], spool: origin.Spool) -> None:
        convoy = self._convoy
        squeezed = {} if self._source.node else self._squeeze(sizes, needs, spool)
        sizes = {squeezed.get(digest, digest): size for digest, size in sizes.items()}
        sizes |= {digest: spool.sizes[digest] for digest in squeezed.values()}
        sites = {node: convoy.site(node, SESSION) for node in needs}
        had = {(node, blob): size for node in needs for blob, size in self._looks[node].blobs.items()}
        head = self._source.node
        holders = None if head is None else {head: sizes.keys()}
        travels = {node: {squeezed.get(digest, digest) for digest in need} for node, need in needs.items()}
        route = Route(sizes, travels, holders=holders, had=had, cut=convoy.cut)
        carrier = Carrier(
            sites, route, spool, self._owner, partial(self._finish, needs, squeezed), convoy.tell("image")
        )
        found = carrier.run()
        self._done.sent += carrier.sent
        for node, outcome in found.items():
            if node not in self._done.whole or isinstance(outcome, Finding) or outcome:
                self._done.outcomes[node] = outcome

    def _squeeze(
        self, sizes: Mapping[str, int], needs: Mapping[str, set[str]], spool: origin.Spool
    ) -> dict[str, str]:
        """Layers that travel compressed: digest -> digest of the compressed bytes, which are in the spool too."""
        takers = [node for node in needs if needs[node]]
        if not takers or not all(self._looks[node].zstd for node in takers):
            return {}
        press = squeeze.Press(spool, self._convoy.fleet.remotes[takers[0]])
        return {digest: done for digest in sizes if (done := press.squeezed(digest))}

    def _finish(self, needs: Mapping[str, set[str]], squeezed: Mapping[str, str], node: str) -> Outcome:
        """Load and prove; in a thread of its own. A node whose engine wants all layers has no outcome yet."""
        parts, target, need = self._parts(), self._convoy.targets[node], needs[node]
        session = self._convoy.site(node, SESSION).session
        if pairs := [word for digest in sorted(need & squeezed.keys()) for word in (squeezed[digest], digest)]:
            argv = scripts.sh(squeeze.RELEASE, session, self._owner, *pairs)
            said = dict(scripts.said(self._convoy.fleet.remotes[node].lines(argv)))
            if "released" not in said:
                return words.full(node, "unpacking") if "full" in said else words.differs(node, *_pair(said))
        passing = docks.passing(target.scratch, self._owner)
        documents = parts.documents(passing)
        files = [*documents, *(f"blobs/sha256/{digest}" for digest in need)]
        argv = scripts.sh(
            scripts.LOAD,
            session,
            self._owner,
            passing,
            self._reference,
            " ".join((parts.config_digest, parts.manifest_digest)),
            " ".join(parts.diff_ids),
            " ".join(files),
            *target.command,
        )
        size = sum(layer.size for layer in parts.layers if layer.digest in need)
        seconds = _LOAD_SECONDS + size / _LOAD_RATE
        self._convoy.report(Progress(node, "image", "loading", size, size))
        ran = self._convoy.fleet.remotes[node].run(argv, stdin=layout.packed(documents), seconds=seconds)
        word, rest = (list(scripts.said(ran.out.splitlines())) or [("", "")])[-1]
        if word == "loaded":
            return (f"image {self._reference} loaded, {words.mib(size)} of layers",)
        if word in ("", "loading"):  # it did not come to an end, whatever ended it
            word, rest = "broke", f"the load broke off with exit code {ran.code}: {ran.err.strip()[-500:]}"
        return self._not_loaded(node, word, rest, whole=len(need) == len(set(parts.diff_ids)))

    def _not_loaded(self, node: str, word: str, rest: str, *, whole: bool) -> Outcome:
        if word == "full":
            return words.full(node, "while Docker loaded the image")
        if word == "usurped":
            return words.usurped(node)
        if word in ("unnamed", "broke"):
            return words.refused(node, rest)  # more layers would not mend it
        # An engine with the containerd store may have a layer as another blob than ours, say "Loaded", and hold an
        # image whose layers it cannot list.
        if word == "differs" and (whole or not rest.startswith("layers")):
            return words.differs(node, " or ".join(self._ids()), rest)
        if not whole:
            # Some engines do not load an image that lacks a layer they have: then all of it has to travel.
            self._done.whole[node] = rest
            return ()
        return words.refused(node, rest)

    # -- the end ---------------------------------------------------------------------

    def _close(self) -> None:
        """Take the sessions away; a node that was lost keeps its bytes for the next try."""
        done = [n for n in self._looks if not words.may_go_on(self._done.outcomes.get(n, ()))]
        self._convoy.close(done, SESSION, self._owner)


def _pair(said: Mapping[str, str]) -> tuple[str, str]:
    return "the layers that were sent", said.get("failed", "no word")
