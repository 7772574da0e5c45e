"""apply: from whatever is on the nodes to the keys, pins and hostfile they need; a second time changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from clusterft.events import Progress
from clusterft.findings import Finding, Outcome
from clusterft.fleet import Fleet
from clusterft.provision import admission, proof, wire
from clusterft.provision.hostworld import File, Peer, wanted, writable
from clusterft.provision.keyring import CONTROLLER
from clusterft.provision.member import Member, Order
from clusterft.provision.proof import Ground, Proof
from clusterft.provision.seen import Seen, filesystems
from clusterft.remote import Remote

_CACHED_SECONDS = 4.0  # an NFS client may show a directory as it was 3 s ago
Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What changed on each node, or why it could not; and which node's relay reaches which."""

    outcomes: dict[str, Outcome]
    proof: Proof


def apply(fleet: Fleet, order: Order, report: Report) -> Provisioned:
    """Give every member its files and let every one of them in at the others; prove it for every pair."""
    ledger = wire.Ledger(tuple(order.members))
    seen = _look(fleet, order, ledger, report)
    remote_nodes = {name: one for name, one in seen.items() if not order.members[name].local}
    ground = Ground(order, seen, filesystems(remote_nodes), _keep(fleet, order, seen))
    _write(fleet, ground, ledger, report)
    ground = _admit(fleet, ground, ledger, report)
    left = tuple(name for name in remote_nodes if name not in ledger.failed)
    proven = proof.prove(fleet, ground, left, ledger, report)
    return Provisioned(ledger.outcomes, proven)


def _look(fleet: Fleet, order: Order, ledger: wire.Ledger, report: Report) -> dict[str, Seen]:
    def first(name: str, remote: Remote) -> Seen:
        member = order.members[name]
        report(Progress(name, wire.STAGE, "local: no SSH keys are needed" if member.local else "looking"))
        return wire.look(remote, member, _asked(member), "place" if member.local else "key")

    def again(name: str, remote: Remote) -> Seen:
        return wire.look(remote, order.members[name], _asked(order.members[name]))

    seen = ledger.take(wire.each(fleet, tuple(order.members), first))
    for name, one in seen.items():
        ledger.add(name, *one.made)
    # A token that was not there before has been seen by nobody yet.
    if len(seen) > 1 and any(one.fresh for one in seen.values()):
        seen = ledger.take(wire.each(fleet, tuple(seen), again))
    return seen


def _asked(member: Member) -> tuple[File, ...]:
    """The paths that are looked at; what is to be in them is known only after the look."""
    return wanted(member, {}, {}, "")


def _keep(fleet: Fleet, order: Order, seen: dict[str, Seen]) -> frozenset[str]:
    """Whose lines stay: nodes of the hostfile that could not be asked, and a controller that was let in before."""
    named = {node.name for node in fleet.cluster.nodes}
    return frozenset(named - seen.keys()) | {CONTROLLER}


def _write(fleet: Fleet, ground: Ground, ledger: wire.Ledger, report: Report) -> None:
    order, seen = ground.order, ground.seen
    peers = {name: peer for name in seen if (peer := _peer(order.members[name], seen[name])) is not None}
    keys = {name: member.host_keys for name, member in order.members.items()}
    first = {group[0] for group in ground.groups}

    def one(name: str, remote: Remote) -> tuple[str, ...]:
        member = order.members[name]
        files = wanted(member, peers, keys, order.hostfile)
        lacking = tuple(file for index, file in enumerate(files) if seen[name].lacks(index, file))
        # Nodes that share a home share the relay script.
        todo = tuple(file for file in lacking if file.path != member.places.relay or name in first)
        if todo:
            report(Progress(name, wire.STAGE, "writing"))
            wire.put(remote, member, todo)
        return tuple(f"{file.path.name} written" for file in todo)

    for name, sentences in ledger.take(wire.each(fleet, tuple(seen), one)).items():
        ledger.add(name, *sentences)


def _peer(member: Member, seen: Seen) -> Peer | None:
    """None where the peers cannot find it, could not believe it, or could not write down who logs in there."""
    if member.local or member.address is None or not member.host_keys or not writable(seen.user):
        return None
    port = member.port or (seen.sshd[1] if seen.sshd else 22)
    return Peer(member.node, member.address, port, seen.user)


def _admit(fleet: Fleet, ground: Ground, ledger: wire.Ledger, report: Report) -> Ground:
    """Edit each filesystem's authorized_keys once; who of a group does not see it there has a home of its own."""
    changed = _edit(fleet, ground, ground.groups, ledger, report)
    shared = tuple(group for group in ground.groups if len(group) > 1 and group[0] in changed)
    apart = _blind(fleet, ground, shared)
    if not apart:
        return ground

    def renew(name: str, remote: Remote) -> Seen:
        return wire.look(remote, ground.order.members[name], (), "fresh")

    seen = {**ground.seen, **ledger.take(wire.each(fleet, apart, renew))}
    alone = tuple((name,) for name in apart if name not in ledger.failed)
    rest = (tuple(name for name in group if name not in apart) for group in ground.groups)
    ground = replace(ground, seen=seen, groups=(*filter(None, rest), *alone))
    _edit(fleet, ground, alone, ledger, report)
    return ground


def _edit(
    fleet: Fleet, ground: Ground, groups: tuple[tuple[str, ...], ...], ledger: wire.Ledger, report: Report
) -> frozenset[str]:
    """The nodes on which that changed something."""
    group_of = {group[0]: group for group in groups if group[0] not in ledger.failed}

    def one(name: str, remote: Remote) -> str:
        report(Progress(name, wire.STAGE, "authorized_keys"))
        lines = admission.lines(group_of[name], ground.order, ground.seen)
        places = ground.order.members[name].places
        return admission.admit(remote, places, ground.seen[name], lines, ground.keep)[0].words

    done = ledger.take(wire.each(fleet, tuple(group_of), one))
    for name, words in done.items():
        shared = f" (one home for {', '.join(group_of[name])})" if words and len(group_of[name]) > 1 else ""
        ledger.add(name, words + shared)
    return frozenset(name for name, words in done.items() if words)


def _blind(fleet: Fleet, ground: Ground, groups: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Who does not see what the first of its group has written: the tokens were copied, as homes are that move."""
    group_of = {name: group for group in groups for name in group[1:]}
    deadline = time.monotonic() + _CACHED_SECONDS

    def one(name: str, remote: Remote) -> bool:
        member = ground.order.members[name]
        lines = admission.lines(group_of[name], ground.order, ground.seen)
        while not admission.shows(wire.look(remote, member), member.places.cluster, lines, ground.keep):
            if time.monotonic() > deadline:
                return True
            time.sleep(0.5)
        return False

    found = wire.each(fleet, tuple(group_of), one)
    return tuple(name for name, blind in found.items() if blind is True and not isinstance(blind, Finding))
