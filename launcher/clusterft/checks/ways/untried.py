"""What of the network was not tried, and why: what nobody tried is unknown, never well. Pure.

Owns whether anything was tried of a node under an id, not what came of it. A node on which a run is at work is
left in peace: what is sent there would be the run's loss, what was measured there the run's traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.facts.health import Health
from clusterft.facts.links import Dial, Flow, Kind, Links
from clusterft.findings import Finding

IN_USE = "not measured: a run of clusterft uses this link"
_KINDS: dict[str, Kind] = {"net.high-ports": "high", "net.master-port": "rendezvous"}


def at_work(health: Health) -> bool:
    """Whether a run of ours is under way on this node, by its processes or by its containers."""
    own = any(one.run and one.state == "running" for one in health.docker.containers or ())
    return own or health.network.running is True


def flows(seen: Examination) -> list[Flow]:
    """What was measured, without that of nodes on which a run is at work: it tells of the run alone."""
    busy = {name for name, health in seen.health.items() if at_work(health)}
    known = seen.links.flows if seen.links else ()
    return [one for one in known if not {one.source, one.target} & busy]


def after(identity: str, *more: str) -> Check:
    """The check that an id comes with: unknown where nothing was tried, and nothing else was found."""
    return Check((identity,), _find(identity), reads=("facts", "links"), after=(identity, *more))


def _find(identity: str) -> Callable[[Examination], Iterator[Finding]]:
    def find(seen: Examination) -> Iterator[Finding]:
        reasons: dict[str, list[str]] = {}
        for name in seen.links.machines if seen.links else ():
            if why := _why(seen, name, identity):
                reasons.setdefault(why, []).append(name)
        for why, nodes in reasons.items():
            yield Finding(identity, "unknown", tuple(nodes), why)

    return find


def _why(seen: Examination, name: str, identity: str) -> str:
    """Why nothing is known of this node; empty where something was tried."""
    links = seen.links
    assert links is not None
    if identity in _KINDS:
        return _undialled(links, name, _KINDS[identity])
    if identity == "net.loopback":
        return "" if name in links.own else "no program of ours runs there, which could have been dialled"
    if identity == "net.mtu":
        tried = any(one.large is not None or one.lost for one in links.dials if name in (one.source, one.target))
        return "" if tried else f"large packets could not be tried: {_alone(links, name)}"
    mine = [one for one in flows(seen) if name in (one.source, one.target)]
    if identity == "net.loss":
        known = any(one.again is not None and one.packets for one in mine)
    else:
        known = any(one.rate for one in mine)
    health = seen.health.get(name)
    if known:
        return ""
    if health and at_work(health):
        return IN_USE
    return links.unsent.get(name, "not measured: there was no node, or no time, to measure it with")


def _undialled(links: Links, name: str, kind: Kind) -> str:
    if name in links.mute:
        return f"it could dial nobody: {links.mute[name]}"
    towards: list[Dial] = [one for one in links.of(kind) if one.target == name]
    if towards:
        return ""
    if kind == "rendezvous" and links.busy.get(name):
        ports = ", ".join(map(str, sorted(links.busy[name])))
        return f"port {ports} is in use there: nothing of ours could wait on it to be dialled"
    return "no other node could dial it"


def _alone(links: Links, name: str) -> str:
    if name in links.mute:
        return f"it could dial nobody: {links.mute[name]}"
    return links.unsent.get(name, "no connection came about")
