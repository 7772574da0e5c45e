"""Can every node reach every other one on the ports of a run; if not, on whose side it is blocked. Pure.

A port counts as closed after two tries. Whoever nobody reaches, or some do not, is named; a sender only where its
own rules for what goes out are known to refuse something, as a firewall on the way in is far more common. Where a
few senders fail alone and no rules tell more, both ends are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clusterft.checks.examination import Examination
from clusterft.checks.ways import astray, forwards, isolated, routes, walls
from clusterft.checks.ways.walls import Opening, Side
from clusterft.facts.links import SPAN, Dial, Kind
from clusterft.findings import Finding

_SIDES: tuple[Side, ...] = ("in", "out")
_SHOWN = 12  # lines of evidence
_AT_ONCE = 1.0  # seconds: a host that is not there takes three


@dataclass(frozen=True, slots=True)
class Blame:
    """One node's side of the tries that failed."""

    node: str
    side: Side
    dials: tuple[Dial, ...]
    works: tuple[str, ...]  # others that do get through
    doubted: tuple[str, ...] = ()  # senders whose own rules may be what stops them

    @property
    def peers(self) -> tuple[str, ...]:
        """The other ends."""
        ends = (one.target if one.source == self.node else one.source for one in self.dials)
        return tuple(dict.fromkeys(ends))

    @property
    def silent(self) -> bool:
        """Whether nothing came back at all."""
        return all(one.error == "timed out" for one in self.inward)

    @property
    def inward(self) -> tuple[Dial, ...]:
        """Those that came from the other ends; the rest are its own, whose answers were kept from it."""
        return tuple(one for one in self.dials if one.target == self.node) or self.dials


def high_ports(seen: Examination) -> Iterator[Finding]:
    """net.high-ports: what NCCL and gloo open lies anywhere above 1024."""
    for same in _alike(seen, blamed(seen, "high"), None):
        yield _finding(seen, "net.high-ports", "high ports", same, None)
    yield from forwards.found(seen, "high")


def master_port(seen: Examination) -> Iterator[Finding]:
    """net.master-port: where ranks and supervisors meet; of all nodes, as any may come to lead."""
    head = seen.nodes[0]
    first = seen.wanted.port
    ports = (first, min(first + 2 * SPAN - 1, 65535))
    for same in _alike(seen, blamed(seen, "rendezvous"), ports):
        now = any(head in (one.node, *one.peers) and _to(one, head) for one in same)
        yield _finding(seen, "net.master-port", _named(same), same, ports, later="" if now else head)
    yield from forwards.found(seen, "rendezvous")


def blamed(seen: Examination, kind: Kind) -> list[Blame]:
    """By node, in the hostfile's order; what a wrong address explains is left out."""
    if seen.links is None:
        return []
    elsewhere = astray.misled(seen) | routes.cut(seen) | set(isolated.pairs(seen))
    tried = [
        one
        for one in seen.links.of(kind)
        if not one.stranger and (one.source, one.target) not in elsewhere and not _ended(seen, one)
    ]
    sides: dict[tuple[str, Side], list[Dial]] = {}
    for one in tried:
        if one.reached:
            continue
        outward = _outward(seen, one, tried)
        place: tuple[str, Side] = (one.source, "out") if outward else (one.target, "in")
        if not outward and _answers_refused(seen, one, tried):
            place = (one.source, "in")
        sides.setdefault(place, []).append(one)
    found = []
    for node in seen.nodes:
        for side in _SIDES:
            mine = sides.get((node, side))
            if mine:
                peers = {one.target if one.source == node else one.source for one in mine}
                rest = (one.source for one in tried if one.target == node and one.reached and side == "in")
                works = tuple(peer for peer in dict.fromkeys(rest) if peer not in peers)
                few = side == "in" and len(peers) <= len(works)
                sent = dict.fromkeys(one.source for one in mine if few and one.target == node)
                doubted = tuple(peer for peer in sent if _either(seen, peer, node))
                found.append(Blame(node, side, tuple(mine), works, doubted))
    return found


def _ended(seen: Examination, one: Dial) -> bool:
    """Whether our own program there has ended: then a refusal tells of it, and of no firewall."""
    gone = seen.links.missing if seen.links else {}
    return one.error == "connection refused" and one.target in gone


def _outward(seen: Examination, failed: Dial, tried: list[Dial]) -> bool:
    """Whether it is the sender's own doing: its rules refuse something, and others do get through.

    If it reaches some, only where the target's rules are not known to refuse as well.
    """
    own = [one for one in tried if one.source == failed.source]
    others = [one for one in tried if one.target == failed.target and one.source != failed.source]
    if not any(one.reached for one in others) or not walls.refuses(seen, failed.source, "out"):
        return False
    return not any(one.reached for one in own) or not walls.refuses(seen, failed.target, "in")


def _either(seen: Examination, source: str, target: str) -> bool:
    """Whether the sender's rules may be it too, for all that is known of both ends."""
    out, into = walls.refuses(seen, source, "out"), walls.refuses(seen, target, "in")
    return out is True or (into is not True and not (out is False and into is None))


def _answers_refused(seen: Examination, failed: Dial, tried: list[Dial]) -> bool:
    """Whether the sender's own wall keeps even the answers out: nobody reaches it, and others reach the target.

    So it is with rules that know no connections. Of a single pair, only known rules tell whose they are.
    """
    here = [one for one in tried if one.target == failed.source]
    if not any(not one.reached for one in here):
        return False
    others = [one for one in tried if one.target == failed.target and one.source != failed.source]
    if len({one.source for one in here}) > 1 and not any(one.reached for one in here):
        return any(one.reached for one in others)
    return _refusing(seen, failed.source) is True and _refusing(seen, failed.target) is False


def _refusing(seen: Examination, node: str) -> bool | None:
    """Whether rules for what comes in are known to refuse something; None where they cannot be read."""
    health = seen.health.get(node)
    known = health.network.refusing if health else None
    return None if known is None else "INPUT" in known


def _alike(seen: Examination, found: list[Blame], ports: tuple[int, int] | None) -> list[tuple[Blame, ...]]:
    """Nodes that the same line mends, and that nobody reaches, are told of together."""
    groups: dict[object, list[Blame]] = {}
    for one in found:
        everyone = one.side == "in" and not one.works
        key = (one.silent, _lines(seen, one, ports)) if everyone else one
        groups.setdefault(key, []).append(one)
    return [tuple(group) for group in groups.values()]


def _lines(seen: Examination, one: Blame, ports: tuple[int, int] | None) -> tuple[str, ...]:
    # All others, not only those that failed: the same line then serves whoever leads.
    peers = one.peers if one.works else tuple(name for name in seen.nodes if name != one.node)
    return walls.lines(
        seen, Opening(one.node, walls.others(seen, one.node, peers), ports, one.side), silent=one.silent
    )


def _finding(
    seen: Examination,
    identity: str,
    what: str,
    same: tuple[Blame, ...],
    ports: tuple[int, int] | None,
    later: str = "",
) -> Finding:
    nodes = tuple(one.node for one in same)
    first = same[0]
    senders = (
        step
        for peer in first.doubted
        for step in walls.steps(seen, Opening(peer, walls.others(seen, peer, (first.node,)), ports, "out"))
    )
    dials = [dial for one in same for dial in (*one.inward, *(own for own in one.dials if own not in one.inward))]
    told = [one.told for one in dials[:_SHOWN]]
    rest = [f"and {len(dials) - _SHOWN} more"] if len(dials) > _SHOWN else []
    steps = _lines(seen, first, ports)
    where = f"on {nodes[0]}" if len(nodes) == 1 else f"on each of {', '.join(nodes)}"
    return Finding(
        id=identity,
        status="warn" if later else "fail",
        nodes=(*nodes, *first.doubted),
        summary=_summary(what, same)
        + (f"; it matters once {later} is lost and another node leads" if later else ""),
        evidence="\n".join([*told, *rest]),
        cause=_cause(first, some=_some_answer(seen, first)),
        fix=(
            *(f"{where}: {step}" if step.startswith("sudo ") else step for step in steps),
            *(step for step in senders if step not in steps),
            *(walls.few_ports() if ports is None else ()),
        ),
        needs_root=True,
        blast_radius="the firewall of either node" if first.doubted else "the node's firewall",
    )


def _summary(what: str, same: tuple[Blame, ...]) -> str:
    if len(same) > 1:
        return f"new connections to {what} on them do not come about"
    one = same[0]
    if one.side == "out":
        return f"new connections from {one.node} to {what} on {names(one.peers)} do not come about"
    senders = tuple(dict.fromkeys(dial.source for dial in one.inward))
    return f"new connections from {names(senders)} to {what} on {one.node} do not come about"


def _some_answer(seen: Examination, blame: Blame) -> bool:
    """Whether other ports of a node answered to those whom these did not."""
    ways = {(one.source, one.target) for one in blame.inward}
    return any(
        one.reached and not one.stranger
        for one in (seen.links.dials if seen.links else ())
        if (one.source, one.target) in ways
    )


def _cause(blame: Blame, *, some: bool) -> str:
    """In the words of the run's own look before it starts."""
    errors = {one.error for one in blame.inward}
    quick = all(one.seconds < _AT_ONCE for one in blame.inward)
    if blame.side == "out":
        return f"rules on {blame.node} itself that keep it from connecting"
    silent = errors == {"timed out"}
    at_once = errors <= {"no route to host", "connection refused"} and quick
    if not some and not blame.doubted:
        manner = " that drops in silence" if silent else " that refuses at once" if at_once else ""
        how = f"a firewall, most likely{manner}: no port that was tried there answers"
    else:
        how = "a firewall that lets only some ports through"
        if blame.doubted:
            theirs = names(tuple(f"{name}'s" for name in blame.doubted))
            how = f"{blame.node}'s firewall for {names(blame.doubted)}, or {theirs} own for what goes out"
        rest = "the rest " if some else ""
        how += f", and drops {rest}in silence" if silent else f", and refuses {rest}at once" if at_once else ""
    return how + (f"; {names(blame.works)} can" if blame.works else "")


def _named(same: tuple[Blame, ...]) -> str:
    ports = sorted({dial.port for one in same for dial in one.dials})
    return f"port {names(tuple(str(port) for port in ports))}"


def _to(blame: Blame, head: str) -> bool:
    return any(one.target == head for one in blame.dials)


def names(nodes: tuple[str, ...]) -> str:
    """n1, n2 and n3."""
    if len(nodes) > 8:
        return f"{', '.join(nodes[:6])} and {len(nodes) - 6} more"
    return nodes[0] if len(nodes) == 1 else ", ".join(nodes[:-1]) + " and " + nodes[-1]
