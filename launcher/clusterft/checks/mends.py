"""What doctor may mend itself, when it is asked to and the user agrees: the safe and idempotent class alone. Pure.

Never a firewall, a host key, a driver, a service, or anybody's data: those fixes are printed and left to a person.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from clusterft.checks.engines import containers
from clusterft.checks.examination import Examination
from clusterft.checks.ways import addresses
from clusterft.facts.health.docker import OVER
from clusterft.findings import Finding


@dataclass(frozen=True, slots=True)
class Mend:
    """One thing to do; `node` is empty for this machine."""

    id: str  # of the finding that it mends
    node: str
    words: str
    argv: tuple[str, ...] = ()
    harvest: str = ""  # instead: a run whose container there is over, taken away once its logs are kept
    pin: str = ""  # instead: the address by which the others dial the node, in the cluster's settings here


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of one; `words` are empty where it was done."""

    mend: Mend
    words: str = ""


def mends(seen: Examination, findings: Iterable[Finding]) -> tuple[Mend, ...]:
    """What would be done, in order; nothing for findings that a person has to mend."""
    found: list[Mend] = []
    for one in findings:
        plan = _PLANS.get(one.id)
        if plan and one.status in ("fail", "warn"):
            found += plan(seen, one)
    return tuple(dict.fromkeys(found))


def _modes(seen: Examination, found: Finding) -> Iterator[Mend]:
    if not found.nodes:
        for one in seen.desk.loose:
            words = f"chmod {one.wanted:o} {one.path}"
            yield Mend(found.id, "", words, ("chmod", f"{one.wanted:o}", one.path))
    for node in found.nodes:
        ours = seen.health[node].ours
        for mode, paths in (("600", ours.open_keys or ()), ("700", ours.open_places or ())):
            for path in paths:
                script = 'cd && chmod "$1" -- "$2"'
                yield Mend(found.id, node, f"chmod {mode} ~/{path}", ("sh", "-c", script, "sh", mode, path))


def _shared_login(seen: Examination, found: Finding) -> Iterator[Mend]:
    """Nobody joins that connection any more; who uses it now goes on, and the next command makes a new one."""
    for one in seen.desk.shared:
        if one.node in found.nodes:
            words = f"ssh -O stop -S {shlex.quote(one.socket)} {one.node}"
            yield Mend(found.id, "", words, ("ssh", "-O", "stop", "-S", one.socket, one.node))


def _leftover(seen: Examination, found: Finding) -> Iterator[Mend]:
    """Doctor's own containers, and a run's that have ended; one that still runs is for a person to judge."""
    for node, one, _ in containers.left_behind(seen):
        facts = seen.survey.facts.get(node)
        engine = facts.docker.command if facts and facts.docker else ()
        if node not in found.nodes or not engine:
            continue
        if containers.DOCTOR in one.labels:
            yield Mend(found.id, node, f"docker rm -f {one.id[:12]}", (*engine, "rm", "-f", one.id))
        elif one.run and one.state in OVER:
            yield Mend(found.id, node, f"take away {one.name}, and keep its logs", harvest=one.run)


def _address(seen: Examination, found: Finding) -> Iterator[Mend]:
    """Settles which address, and with it which interface, training uses; what the hostfile says stays its own."""
    plain = {node.name for node in seen.survey.cluster.active if node.addr is None or node.settled}
    for node, address in addresses.leading(seen, found.nodes).items():
        if node in plain:
            yield Mend(found.id, node, f"dial it at {address} (kept in the cluster's settings)", pin=address)


_PLANS: Mapping[str, Callable[[Examination, Finding], Iterable[Mend]]] = {
    "ctl.modes": _modes,
    "ctl.stale-mux": _shared_login,
    "dk.leftover": _leftover,
    "nccl.bridge": _address,
    "net.public-addr": _address,
    "net.wrong-nic": _address,
}
