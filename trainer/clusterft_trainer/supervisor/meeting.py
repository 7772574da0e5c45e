"""The members' own look at ports and shared dir, before the first attempt: who is told what, and what it came to.

Pure. All nodes, all pairs, from where the ranks will run: a check from one node alone is half a check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clusterft_trainer.assignment import Assignment
from clusterft_trainer.stream import Found
from clusterft_trainer.supervisor.messages import Link, Meet, Message, Met, Tried, Try
from clusterft_trainer.supervisor.roster import Roster

_FIRST = 8.0  # seconds for all to have opened a port and written a file
_ALL = 25.0  # seconds for all of it
_FIXES = {
    "fs.not-shared": "mount the same directory on every node; on each: findmnt -T {0}",
    "fs.hung": "restore the server of {0}; on the node: sudo umount -fl, then mount it again",
    "fs.squash": "let one UID:GID own {0} on its server, and give it as user: in job.yaml",
    "fs.not-writable": "on the node: findmnt -T {0}; df -h {0}",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member came back with; None where it did not answer in time."""

    node: str
    address: str
    met: Met | None
    tried: Tried | None


class Meeting:
    """One look around."""

    def __init__(self, told: Assignment, now: float, word: str = "") -> None:
        self._run_dir, self._began, self._word = told.run_dir, now, word
        self._asked = self._trying = False

    def step(self, roster: Roster, now: float) -> list[tuple[int, Message]]:
        """What members are told next."""
        able = roster.able()
        if not self._asked:
            self._asked = True
            for rank in able:
                roster.seats[rank].met = roster.seats[rank].tried = None
            return [(rank, Meet(self._word)) for rank in able]
        if not self._trying and (now - self._began > _FIRST or all(roster.seats[rank].met for rank in able)):
            self._trying = True
            peers = tuple(_peer(answer) for answer in answers(roster))
            return [(rank, Try(peers)) for rank in able]
        return []

    def found(self, roster: Roster, now: float, at: float) -> list[Found] | None:
        """What it came to; None while it goes on."""
        if not self._trying:
            return None
        if now - self._began < _ALL and not all(roster.seats[rank].tried for rank in roster.able()):
            return None
        return judge(answers(roster), self._run_dir, at)


def unmet(told: Assignment, nodes: tuple[str, ...], seconds: float, at: float) -> Found:
    """Nodes that have never come, though they were started: all that they need to reach for it is the head's port.

    Their own dials tell the same, but only to those who can hear them; the head cannot.
    """
    head, port = told.members[0], told.gang_port
    addresses = ",".join(one.address for one in told.members if one.node in nodes)
    return Found(
        "net.master-port",
        "fail",
        (head.node, *nodes),
        f"{_names(nodes)} never came to port {port} of {head.node}, where supervisors meet",
        f"{head.address} port {port}: nothing from them for {seconds:.0f} s",
        "a firewall that lets only some ports through, or a node that went down after it was started",
        (
            f"on {head.node}: sudo iptables -I INPUT -p tcp -s {addresses} --dport {port} -j ACCEPT",
            "clusterft doctor   tries all ports of all nodes, and has the line for what manages a node's firewall",
        ),
        at,
    )


def answers(roster: Roster) -> list[Answer]:
    """Of all who take part."""
    seats = [roster.seats[rank] for rank in roster.able()]
    return [Answer(seat.member.node, seat.member.address, seat.met, seat.tried) for seat in seats]


def judge(given: list[Answer], run_dir: str, at: float) -> list[Found]:
    """The findings; a single one if all is well."""
    wrong = [*_ports(given, at), *_large(given, at), *_share(given, run_dir, at)]
    if wrong:
        return wrong
    nodes = tuple(one.node for one in given)
    silent = tuple(one.node for one in given if one.tried is None)
    if silent:
        text = f"{_names(silent)} did not say in time what they can reach"
        return [Found("net.high-ports", "warn", silent, text, at=at)]
    summary = f"{len(nodes)} nodes reach each other on high ports, and see one shared directory"
    return [Found("net.high-ports", "ok", nodes, summary, at=at)]


def _peer(answer: Answer) -> Link:
    return Link(answer.node, answer.address, answer.met.port if answer.met else 0)


def _links(given: list[Answer]) -> Iterator[tuple[str, Link]]:
    for one in given:
        for link in one.tried.links if one.tried else ():
            yield one.node, link


def _ports(given: list[Answer], at: float) -> Iterator[Found]:
    """By the node that cannot be reached: it is its firewall that has to be told."""
    for answer in given:
        bad = [(node, link) for node, link in _links(given) if link.to == answer.node and _no_way(link)]
        if not bad:
            continue
        dialled = tuple(node for node, _ in bad)
        works = [node for node, link in _links(given) if link.to == answer.node and not link.error]
        others = [one.address for one in given if one.node != answer.node]
        yield Found(
            "net.high-ports",
            "fail",
            (answer.node,),
            f"new connections from {_names(dialled)} to high ports on {answer.node} do not come about",
            "\n".join(f"{node} → {link.to}:{link.port}  {_told(link)}" for node, link in bad),
            "a firewall that lets only some ports through" + (f"; {_names(tuple(works))} can" if works else ""),
            tuple(f"on {answer.node}: sudo ufw allow from {address}" for address in others),
            at,
        )


def _large(given: list[Answer], at: float) -> Iterator[Found]:
    stalled = [(node, link) for node, link in _links(given) if link.error and link.small is not None]
    if stalled:
        yield Found(
            "net.mtu",
            "fail",
            tuple(sorted({name for node, link in stalled for name in (node, link.to)})),
            "1 KB comes through and 64 KB does not: large packets are lost on the way",
            "\n".join(f"{node} → {link.to}  {_told(link)}" for node, link in stalled),
            "an MTU that some switch or tunnel between these nodes does not carry",
            ("on all of them: sudo ip link set IF mtu 1500", "or jumbo frames on the switch"),
            at,
        )


def _share(given: list[Answer], run_dir: str, at: float) -> Iterator[Found]:
    refused: dict[str, dict[str, str]] = {}
    for one in given:
        for text in (one.met.share if one.met else "", one.tried.share if one.tried else ""):
            if text:
                check, _, words = text.partition(" ")
                refused.setdefault(check, {}).setdefault(one.node, words)
    summaries = {
        "fs.not-shared": f"{{0}} has no {run_dir}",
        "fs.hung": f"{run_dir} does not answer on {{0}}",
        "fs.squash": f"{run_dir} cannot be written on {{0}} by the user of the run",
        "fs.not-writable": f"{run_dir} cannot be written on {{0}}",
    }
    for check, nodes in refused.items():
        evidence = "\n".join(f"{node}: {words or 'no answer in time'}" for node, words in nodes.items())
        summary = summaries[check].format(_names(tuple(nodes)))
        yield Found(check, "fail", tuple(nodes), summary, evidence, fix=(_FIXES[check].format(run_dir),), at=at)
    blind = () if refused else _apart(given)
    if blind:
        evidence = "\n".join(
            f"{one.node} does not see the file of {_names(one.tried.unseen)}"
            for one in given
            if one.tried and one.tried.unseen
        )
        summary = f"{run_dir} on {_names(blind)} is not the directory that {given[0].node} has"
        fix = (_FIXES["fs.not-shared"].format(run_dir),)
        yield Found("fs.not-shared", "fail", blind, summary, evidence, "another file system, or none", fix, at)


def _apart(given: list[Answer]) -> tuple[str, ...]:
    """Who does not see what the head wrote, or whom the head does not see."""
    head = given[0]
    hidden = set(head.tried.unseen if head.tried else ())
    blind = {one.node for one in given[1:] if one.tried and head.node in one.tried.unseen}
    found = tuple(one.node for one in given if one.node in hidden | blind)
    rest = tuple(one.node for one in given if one.tried and one.tried.unseen)
    return found or rest


def _no_way(link: Link) -> bool:
    return bool(link.error) and link.small is None


def _told(link: Link) -> str:
    return f"{link.error} after {link.seconds:.1f} s"


def _names(nodes: tuple[str, ...]) -> str:
    return nodes[0] if len(nodes) == 1 else ", ".join(nodes[:-1]) + " and " + nodes[-1]
