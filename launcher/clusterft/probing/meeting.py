"""Where the supervisors and ranks of a run will meet: the head's ports, dialled by all others before the start.

The part of the port matrix that a start hangs on, and no more of it. Judges nothing; of a node that cannot run a
program it tells what its sshd can reach, and of a head that cannot open its ports it tells nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack

from clusterft.checks import Survey, networks
from clusterft.checks.examination import Wanted
from clusterft.facts import links as facts
from clusterft.facts.links import Dial, Links
from clusterft.fleet import Fleet
from clusterft.probing import ways
from clusterft.probing.at_once import begun
from clusterft.probing.crew import Crew, Silent
from clusterft.probing.dialler import Dialler, Forwarding, Peer, Program, Seen
from clusterft.remote import Unreachable

_FIRST, _AGAIN = 3.0, 4.0  # seconds for a connection, as in the whole matrix; a lost packet is sent again
_BEGIN = 8.0  # seconds for programs to begin: a container takes some
_MORE = 13.0  # seconds beyond a dial for its answer
# Also of an answer that is not what a program of ours says.
_TROUBLE = (Silent, Unreachable, OSError, ValueError, TypeError, KeyError)


def look(fleet: Fleet, survey: Survey, wanted: Wanted, ports: tuple[int, ...]) -> Links | None:
    """The tries of all machines to reach the head on these ports; None where there is nothing to try."""
    addresses = {name: place.ip for name, place in networks.choose(survey).places.items()}
    machines = _machines(survey, addresses)
    head = survey.cluster.active[0].name
    if len(machines) < 2 or head not in machines:
        return None
    with Crew(fleet, ways.find(fleet, survey, wanted)) as crew, ExitStack() as opened:
        return _dialled(crew, opened, machines, addresses, ports)


def _machines(survey: Survey, addresses: Mapping[str, str]) -> tuple[str, ...]:
    """One machine under two names would dial itself."""
    found: dict[str, str] = {}
    for node in survey.cluster.active:
        known = survey.facts.get(node.name)
        if known and node.name in addresses:
            found.setdefault(known.boot_id or node.name, node.name)
    return tuple(found.values())


def _dialled(
    crew: Crew, opened: ExitStack, machines: tuple[str, ...], addresses: Mapping[str, str], ports: tuple[int, ...]
) -> Links | None:
    head, *others = machines
    word = secrets.token_hex(16)
    diallers = _diallers(crew, machines, word)
    listener = diallers.pop(head, None)
    if not isinstance(listener, Program):
        return None
    opened.callback(listener.close)
    try:
        listener.listen(word, ports, (), wide=any(":" in addresses[name] for name in machines))
        for member in diallers.values():
            if isinstance(member, Program):
                opened.callback(member.close)
                member.listen(word, (), (), wide=False)  # so that it knows the word
    except _TROUBLE:
        return None
    free = tuple(port for port in ports if port not in listener.busy)
    asked = {name: free for name in others if name in diallers and free}
    dials = _tried(diallers, Peer(head, addresses[head], free), asked, _FIRST)
    failed: dict[str, tuple[int, ...]] = {}
    for one in dials.values():
        if not one.reached or one.stranger:
            failed[one.source] = (*failed.get(one.source, ()), one.port)
    dials |= _tried(diallers, Peer(head, addresses[head], free), failed, _AGAIN)  # one lost packet is no finding
    return Links(addresses=addresses, dials=tuple(dials.values()), machines=machines)


def _diallers(crew: Crew, machines: tuple[str, ...], word: str) -> dict[str, Dialler]:
    def one(name: str) -> Dialler | None:
        try:
            return Program(crew, name)
        except _TROUBLE:
            remote = crew.fleet.remotes.get(name)
            return Forwarding(remote, word) if remote else None

    found = begun(machines, one)(time.monotonic() + _BEGIN)
    return {name: dialler for name, dialler in found.items() if dialler}


def _tried(
    diallers: Mapping[str, Dialler], head: Peer, asked: Mapping[str, tuple[int, ...]], seconds: float
) -> dict[tuple[str, int], Dial]:
    """What came of it, by node and port; a node that does not answer has no say."""

    def one(name: str) -> Seen:
        try:
            return diallers[name].dial((Peer(head.to, head.address, asked[name]),), seconds, again=False)
        except _TROUBLE:
            return Seen()

    found = begun(asked, one)(time.monotonic() + seconds + _MORE)
    tried = [facts.dial(name, "rendezvous", said) for name, seen in found.items() for said in seen.dials]
    return {(each.source, each.port): each for each in tried if each.target == head.to}
