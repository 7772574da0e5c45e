"""InfiniBand and RoCE: on all nodes or on none, with every port up and as fast as its like. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping

from clusterft.checks.examination import Examination
from clusterft.facts import InfiniBand
from clusterft.findings import Finding

_OFF = "NCCL_IB_DISABLE"


def mixed(seen: Examination) -> Iterator[Finding]:
    """nccl.net-mix: nodes that would use RDMA, and nodes that cannot; they wait for each other for ever."""
    known = {name: facts.infiniband for name, facts in seen.survey.facts.items()}
    for name, ports in known.items():
        if ports is None:
            yield Finding("nccl.net-mix", "unknown", (name,), "its RDMA devices could not be read")
    able = {name: _active(ports) for name, ports in known.items() if ports is not None}
    with_it = [name for name, ports in able.items() if ports]
    without = [name for name, ports in able.items() if not ports]
    if not with_it or not without or _given(seen).get(_OFF, "0") not in ("", "0"):
        return
    fabric = any(one.link_layer == "InfiniBand" for name in with_it for one in able[name])
    yield Finding(
        id="nccl.net-mix",
        status="fail" if fabric else "warn",  # a card that could do RoCE may be there without anybody using it
        nodes=tuple(without),
        summary=f"has no RDMA port that is up, and {', '.join(with_it)} would use theirs",
        evidence="\n".join(f"{name}: {_told(known[name] or ())}" for name in able),
        cause="NCCL takes InfiniBand or RoCE where it finds it, and sockets elsewhere: the two never meet",
        fix=(
            f"in job.yaml: env: {{{_OFF}: '1'}}   all nodes then use sockets",
            *(f"or bring it up on {name}: ibstat" for name in without),
        ),
        blast_radius="the job, or the node's RDMA ports",
    )


def ports(seen: Examination) -> Iterator[Finding]:
    """nccl.ib-timeout: a port that is down or slower where its like on other nodes is up and fast."""
    if _given(seen).get(_OFF, "0") not in ("", "0"):
        return
    like: dict[tuple[str, int], dict[str, InfiniBand]] = {}
    for name, facts in seen.survey.facts.items():
        for one in facts.infiniband or ():
            like.setdefault((one.device, one.port), {})[name] = one
    for (device, port), there in like.items():
        yield from _down(device, port, there)
        yield from _slow(device, port, there)


def _down(device: str, port: int, there: Mapping[str, InfiniBand]) -> Iterator[Finding]:
    up = [name for name, one in there.items() if one.state == "ACTIVE"]
    for name, one in there.items():
        if up and one.state not in ("ACTIVE", None):
            waiting = one.state in ("INIT", "ARMED")
            yield Finding(
                id="nccl.ib-timeout",
                status="warn",
                nodes=(name,),
                summary=f"{device} port {port} is {one.state}, and ACTIVE on {', '.join(up)}",
                evidence=f"/sys/class/infiniband/{device}/ports/{port}/state: {one.state}",
                cause="no subnet manager has set it up" if waiting else "a cable, an optic or a switch port",
                fix=(
                    f"on {name}: ibstat {device} {port}",
                    "start opensm on one node, or in the switch" if waiting else "replace the cable or optic",
                ),
                blast_radius="the node's RDMA port",
            )


def _slow(device: str, port: int, there: Mapping[str, InfiniBand]) -> Iterator[Finding]:
    rates = {name: rate for name, one in there.items() if one.state == "ACTIVE" and (rate := _gbit(one.rate))}
    if len(rates) < 2:
        return
    usual = statistics.median_high(rates.values())
    for name, rate in rates.items():
        if rate < usual:
            yield Finding(
                id="nccl.ib-timeout",
                status="warn",
                nodes=(name,),
                summary=f"{device} port {port} runs at {rate:g} Gbit/s, and at {usual:g} on the other nodes",
                evidence=f"/sys/class/infiniband/{device}/ports/{port}/rate: {there[name].rate}",
                cause="a cable or an optic that does not carry the full rate",
                fix=(f"on {name}: ibstat {device} {port}", "replace the cable or optic"),
                blast_radius="the node's RDMA port",
            )


def _active(found: tuple[InfiniBand, ...]) -> tuple[InfiniBand, ...]:
    return tuple(one for one in found if one.state == "ACTIVE")


def _told(found: tuple[InfiniBand, ...]) -> str:
    return ", ".join(f"{one.device} port {one.port} {one.link_layer} {one.state}" for one in found) or "none"


def _gbit(rate: str | None) -> float | None:
    match = re.match(r"(\d{1,5}(?:\.\d{1,3})?) Gb/sec", rate or "")
    return float(match.group(1)) if match else None


def _given(seen: Examination) -> Mapping[str, str]:
    return seen.wanted.job.env if seen.wanted.job else {}
