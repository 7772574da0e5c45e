"""Where ranks meet: interfaces that a job names by hand, and who is on the rendezvous port already. Pure.

Training sets the interface of each node by itself; only what a job's env: says instead can be wrong here.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.facts import NodeFacts
from clusterft.facts.links import SPAN
from clusterft.findings import Finding

_NAMES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def ifname(seen: Examination) -> Iterator[Finding]:
    """nccl.ifname: an interface that env: names and a node lacks."""
    for variable, value in _given(seen):
        for name, facts in seen.survey.facts.items():
            here = _interfaces(facts)
            if here and not _chosen(variable, value, here):
                yield Finding(
                    id="nccl.ifname",
                    status="fail",
                    nodes=(name,),
                    summary=f"has no interface for {variable}={value}, which the job's env: sets",
                    evidence=f"{name} has {', '.join(here)}",
                    cause="interfaces have other names on this machine",
                    fix=(f"in job.yaml: remove {variable} from env:   each node's own is set by itself",),
                    blast_radius="job.yaml",
                )


def bridge_by_name(seen: Examination) -> Iterator[Finding]:
    """nccl.bridge: env: leaves an interface whose address is the same on several nodes as the first choice."""
    for variable, value in _given(seen):
        for name, facts in seen.survey.facts.items():
            taken = _chosen(variable, value, _interfaces(facts))
            first = taken[0] if taken else ""
            own = [one.ip for one in facts.addresses or () if one.interface == first and "." in one.ip]
            others = [
                other
                for other, each in seen.survey.facts.items()
                if other != name and own and each.boot_id != facts.boot_id and networks.holder(each, own[0])
            ]
            if others:
                yield Finding(
                    id="nccl.bridge",
                    status="fail",
                    nodes=(name,),
                    summary=f"the job's {variable}={value} leads to {first}, whose address other nodes have too",
                    evidence=f"{first} on {name} has {own[0]}, and so have {', '.join(others)}",
                    cause="bridges get the same address on every machine, so that each reaches itself",
                    fix=(f"in job.yaml: remove {variable} from env:   each node's own is set by itself",),
                    blast_radius="job.yaml",
                )


def inuse(seen: Examination) -> Iterator[Finding]:
    """rdzv.inuse: somebody else listens where ranks are to meet; a run of ours is told by `clusterft status`."""
    port, head = seen.wanted.port, seen.nodes[0]
    for name, facts in seen.survey.facts.items():
        health = seen.health.get(name)
        if facts.listening is None:
            yield Finding("rdzv.inuse", "unknown", (name,), "its listening ports could not be read")
            continue
        who = health.network.listeners if health else ()
        still = health is None or health.network.listening is not False
        if port not in facts.listening or not still or any(one.ours for one in who):
            continue
        if not who and health and health.network.running:
            continue  # of a run in a container, which this user may not look into
        last = min(port + SPAN, 65536)
        free = next((one for one in range(port, last) if one not in facts.listening), None)
        named = "\n".join(f"pid {one.pid}: {one.command[:200]}" for one in who)
        lead = "" if name == head else f"; it matters once {head} is lost and {name} leads"
        would = f"a run would meet on port {free} instead" if free else "no port is left for a run to meet on"
        ends = [f"on {name}: sudo kill {one.pid}   if it is not needed" for one in who]
        yield Finding(
            id="rdzv.inuse",
            status="warn" if free or name != head else "fail",
            nodes=(name,),
            summary=f"port {port} is in use: {would}{lead}",
            evidence=named or f"port {port} listens, of another user's process",
            cause="a rank that an earlier run left, or another service",
            fix=(
                *(ends or [f"on {name}: sudo ss -ltnp 'sport = :{port}'   tells whose it is"]),
                f"or port: {free or port + SPAN} in job.yaml",
            ),
            needs_root=True,
            blast_radius="that process, or job.yaml",
        )


def _given(seen: Examination) -> list[tuple[str, str]]:
    env = seen.wanted.job.env if seen.wanted.job else {}
    return [(name, env[name]) for name in _NAMES if env.get(name)]


def _interfaces(facts: NodeFacts) -> tuple[str, ...]:
    """Those that are up and have an address, in the kernel's order."""
    up = {one.name for one in facts.links or () if one.up}
    found = (one.interface for one in facts.addresses or () if facts.links is None or one.interface in up | {"lo"})
    return tuple(dict.fromkeys(found))


def _chosen(variable: str, value: str, here: tuple[str, ...]) -> tuple[str, ...]:
    """As NCCL reads it: ^ leaves out, = is exact, else beginnings of names; gloo takes names as they are."""
    if variable.startswith("GLOO"):
        return tuple(name for name in here if name in value.split(","))
    words = [word for word in value.lstrip("^=").split(",") if word]
    exact = "=" in value[:2]
    hit = [name for name in here if any(name == word if exact else name.startswith(word) for word in words)]
    if value.startswith("^"):
        return tuple(name for name in here if name not in hit and name != "lo")
    return tuple(hit)
