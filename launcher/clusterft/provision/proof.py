"""The proof: every node says hello to every other one over its relay key; what does not work is named, not mended.

Never fatal: what relays cannot reach, the controller serves itself. Only an address that a peer sees in the place
of the node's own (NAT) is learned, where that is allowed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from clusterft import relay
from clusterft.events import Progress
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.provision import admission, scripts, wire
from clusterft.provision.hostworld import File
from clusterft.provision.member import Order, ip
from clusterft.provision.seen import Seen
from clusterft.remote import Remote

_ASK_SECONDS = 15  # for one hello, its retries not counted
_SHOWN = 6  # pairs in a finding's evidence
_DENIED = "Permission denied"

Pair = tuple[str, str]  # (caller, peer)


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known of the nodes when their keys are in place."""

    order: Order
    seen: dict[str, Seen]
    groups: tuple[tuple[str, ...], ...]  # nodes with one home
    keep: frozenset[str]  # whose lines nobody touches


@dataclass(frozen=True, slots=True)
class Proof:
    """Which relay answers whom: (caller, peer) -> what the peer saw, or the words with which it went wrong."""

    heard: dict[Pair, relay.Heard]
    refused: dict[Pair, str]
    findings: tuple[Finding, ...] = ()

    def reaches(self, caller: str, peer: str) -> bool:
        """Whether `caller` can fetch from `peer`."""
        return (caller, peer) in self.heard


class _Sign(NamedTuple):
    words: tuple[str, ...]
    id: str
    cause: str
    fix: str


_SIGNS = (
    _Sign(("host key is known",), "ssh.hostkey-unknown", "the controller has no pin for it", "clusterft up"),
    _Sign(
        ("Host key verification failed", "IDENTIFICATION HAS CHANGED"),
        "ssh.hostkey-changed",
        "another machine answers at the address that the nodes use, or with another key than the controller saw",
        "give the address that the nodes use with addr= in the hostfile",
    ),
    _Sign(
        ("Connection refused",),
        "ssh.refused",
        "sshd listens elsewhere, or a firewall refuses",
        "open its ssh port to the other nodes",
    ),
    _Sign(
        ("No route to host", "Network is unreachable"),
        "ssh.no-route",
        "a firewall, or networks that are not joined",
        "open its ssh port to the other nodes, or give another address with addr= in the hostfile",
    ),
    _Sign(
        ("Could not resolve",),
        "ssh.dns",
        "the nodes do not know the name",
        "give an IP address with addr= in the hostfile",
    ),
    _Sign(
        ("timed out", "Timeout", "not responding", "did not end"),
        "ssh.timeout",
        "a firewall between the nodes drops what they send",
        "open its ssh port to the other nodes, or give another address with addr= in the hostfile",
    ),
    _Sign(
        ("kex_exchange_identification", "Connection reset", "Connection closed"),
        "ssh.maxstartups",
        "sshd sends callers away when many come at once, or something between cuts the connection",
        "raise MaxStartups in its sshd_config",
    ),
)
_NAT = _Sign(
    (_DENIED,),
    "ssh.nat",
    "the peer sees another address than the node's own (NAT), or its sshd reads no ~/.ssh/authorized_keys",
    "clusterft up --accept-nat   lets the relay keys in from the address they are seen at",
)
_UNREAD = _Sign(
    (_DENIED,),
    "ssh.auth",
    "its sshd does not read ~/.ssh/authorized_keys, or does not let this user in from other nodes",
    "look at AuthorizedKeysFile, AllowUsers and Match in its sshd_config",
)
_OTHER = _Sign(
    (),
    "ssh.relay",
    "the relay did not answer",
    "see what it says: on {caller}, ssh -F ~/.clusterft/CLUSTER/nodes/{caller}/ssh_config {peer} hello",
)


def prove(
    fleet: Fleet, ground: Ground, nodes: tuple[str, ...], ledger: wire.Ledger, report: Callable[[Progress], None]
) -> Proof:
    """Ask every ordered pair; learn addresses behind NAT where that is allowed."""
    pairs = {(caller, peer) for caller in nodes for peer in nodes if caller != peer}
    for name in nodes if pairs else ():
        report(Progress(name, wire.STAGE, "saying hello to the other nodes"))
    proof = ask(fleet, ground, pairs)
    denied = {pair for pair, words in proof.refused.items() if _DENIED in words}
    accepted = {pair for pair in denied if ground.order.accept_nat(*pair)}
    if accepted:
        proof = _learn(fleet, ground, accepted, proof, ledger)
    return replace(proof, findings=findings(proof, accepted))


def ask(fleet: Fleet, ground: Ground, pairs: Collection[Pair]) -> Proof:
    """Say hello for these pairs, on all callers at once."""
    nodes = list(ground.order.members)
    word = secrets.token_hex(8)

    def one(caller: str, remote: Remote) -> str:
        # Each begins with its own neighbour: no peer hears from all at the same moment.
        start = nodes.index(caller)
        peers = [peer for peer in (*nodes[start:], *nodes[:start]) if (caller, peer) in pairs]
        config = str(ground.order.members[caller].places.ssh_config)
        given = (word, config, relay.hello(), str(_ASK_SECONDS), *peers)
        seconds = 20.0 + (_ASK_SECONDS + 5) * ((len(peers) + 3) // 4)
        return remote.run(("sh", "-c", scripts.HELLO, "sh", *given), seconds=seconds).out

    heard: dict[Pair, relay.Heard] = {}
    refused: dict[Pair, str] = {}
    for caller, out in wire.each(fleet, {caller for caller, _ in pairs}, one).items():
        answers = {} if isinstance(out, Finding) else dict(_answers(out, word))
        for peer in (peer for first, peer in pairs if first == caller):
            words = out.summary if isinstance(out, Finding) else answers.get(peer, "no answer at all")
            if answer := relay.heard(words):
                heard[caller, peer] = answer
            else:
                refused[caller, peer] = words.strip() or "no answer at all"
    return Proof(heard, refused)


def _answers(out: str, word: str) -> Iterable[tuple[str, str]]:
    for line in out.split("\n"):
        _, mark, rest = line.partition(f"{word} ")
        if mark:
            peer, _, coded = rest.partition(" ")
            code, _, words = coded.partition(" ")
            text = words.replace("\x1f", "\n")
            yield peer, text or f"ssh ended with exit code {code}" + (": timed out" if code == "124" else "")


def _learn(fleet: Fleet, ground: Ground, pairs: set[Pair], proof: Proof, ledger: wire.Ledger) -> Proof:
    """Let these callers in from anywhere for one hello, see where they come from, and bind them to that."""
    group_of = {node: group for group in ground.groups for node in group}
    groups = {group_of[peer] for _, peer in pairs}
    callers = {group: {caller for caller, peer in pairs if group_of[peer] == group} for group in groups}
    seen = dict(ground.seen)
    try:
        _admit(fleet, ground, callers, ledger)
        learned = ask(fleet, ground, pairs)
        for (caller, peer), answer in learned.heard.items():
            if (address := ip(answer.client)) is not None:
                nat = {**dict(seen[peer].nat), caller: address}
                seen[peer] = replace(seen[peer], nat=tuple(sorted(nat.items())))
        _remember(fleet, ground, seen, ledger)
    finally:
        # Whatever happened: nobody stays free to come from anywhere.
        ground = replace(ground, seen=seen)
        _admit(fleet, ground, {group: set() for group in groups}, ledger)
    again = ask(fleet, ground, pairs)
    for caller, peer in again.heard:
        ledger.add(peer, f"the relay key of {caller} is let in from {again.heard[caller, peer].client}")
    heard = {**proof.heard, **again.heard}
    refused = {pair: again.refused.get(pair, words) for pair, words in proof.refused.items() if pair not in heard}
    return Proof(heard, refused)


def _admit(fleet: Fleet, ground: Ground, unbound: dict[tuple[str, ...], set[str]], ledger: wire.Ledger) -> None:
    first = {group[0]: group for group in unbound}

    def one(name: str, remote: Remote) -> None:
        places = ground.order.members[name].places
        lines = admission.lines(first[name], ground.order, ground.seen, unbound[first[name]])
        admission.admit(remote, places, wire.look(remote, ground.order.members[name]), lines, ground.keep)

    ledger.take(wire.each(fleet, tuple(first), one))


def _remember(fleet: Fleet, ground: Ground, seen: dict[str, Seen], ledger: wire.Ledger) -> None:
    """So that the next `up` binds them to the same addresses without asking."""

    def one(name: str, remote: Remote) -> None:
        member = ground.order.members[name]
        text = "".join(f"{caller} {address}\n" for caller, address in seen[name].nat)
        wire.put(remote, member, (File(member.nat, text, 0o600),))

    ledger.take(wire.each(fleet, tuple(name for name in seen if seen[name].nat != ground.seen[name].nat), one))


def findings(proof: Proof, unbound: Collection[Pair] = ()) -> tuple[Finding, ...]:
    """What does not work, by its reason. Those of `unbound` were refused though they might come from anywhere."""
    by_sign: dict[_Sign, dict[Pair, str]] = {}
    for pair, words in sorted(proof.refused.items()):
        by_sign.setdefault(_sign(words, pair in unbound), {})[pair] = words
    return tuple(_finding(sign, found) for sign, found in by_sign.items())


def _sign(words: str, was_unbound: bool) -> _Sign:
    for sign in _SIGNS:
        if any(part in words for part in sign.words):
            return sign
    if _DENIED in words:
        return _UNREAD if was_unbound else _NAT
    return _OTHER


def _finding(sign: _Sign, refused: dict[Pair, str]) -> Finding:
    shown = [f"{caller} -> {peer}: {words.splitlines()[-1]}" for (caller, peer), words in refused.items()]
    more = [f"and {len(shown) - _SHOWN} more pairs"] if len(shown) > _SHOWN else []
    caller, peer = next(iter(refused))
    count = "1 pair of nodes" if len(refused) == 1 else f"{len(refused)} pairs of nodes"
    return Finding(
        sign.id,
        "warn",
        tuple(sorted({node for pair in refused for node in pair})),
        f"{count} cannot relay to each other: the controller will serve them itself",
        "\n".join(shown[:_SHOWN] + more),
        sign.cause,
        (sign.fix.format(caller=caller, peer=peer),),
    )
