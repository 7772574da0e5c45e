"""The checks of the gpu layer: which cards there are, what they say of themselves, and what the image can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clusterft.checks import gpu
from clusterft.checks.accelerators import cards, xid
from clusterft.checks.check import Check
from clusterft.checks.engines import boxes
from clusterft.checks.examination import Examination, Thing
from clusterft.facts.health.gpu import SILENT
from clusterft.findings import Finding

_BOTH: tuple[Thing, ...] = ("facts", "health")
_BOX: tuple[Thing, ...] = ("facts", "box")


def mismatch(seen: Examination) -> Iterator[Finding]:
    """gpu.mismatch: a driver that was upgraded under a running kernel."""
    return gpu.mismatch(seen.survey)


def count(seen: Examination) -> Iterator[Finding]:
    """gpu.count: cards that are not there, or that a driver which hangs does not tell of."""
    for one in gpu.count(seen.survey):
        health = seen.health.get(one.nodes[0])
        if health and health.gpu.words == SILENT:
            yield replace(
                one,
                summary="its cards are not known: nvidia-smi does not answer",
                evidence=SILENT,
                cause="the driver hangs, often after a fault of one card",
                fix=("sudo dmesg | grep -i nvrm   (which card, and why)", "sudo reboot"),
                needs_root=True,
                blast_radius="the whole machine",
            )
        else:
            yield one


def mixed(seen: Examination) -> Iterator[Finding]:
    """gpu.mixed: cards or drivers that differ."""
    return gpu.mixed(seen.survey)


CHECKS: tuple[Check, ...] = (
    Check(("gpu.mismatch",), mismatch, cuda=True),
    Check(("gpu.xid",), xid.xid, _BOTH, cuda=True),
    Check(("gpu.count",), count, after=("gpu.mismatch",), cuda=True),
    Check(("gpu.mixed",), mixed, after=("gpu.mismatch",), cuda=True),
    Check(("gpu.fabric",), cards.fabric, _BOTH, cuda=True),
    Check(("gpu.old-driver",), cards.old_driver, _BOTH, ("gpu.mismatch",), cuda=True, contained=True),
    Check(("gpu.bf16",), cards.bf16, cuda=True),
    Check(("gpu.ecc",), cards.ecc, _BOTH, cuda=True),
    Check(("gpu.power-limit",), cards.power_limit, _BOTH, cuda=True),
    Check(("gpu.throttle",), cards.throttle, _BOTH, cuda=True),
    Check(("gpu.pcie",), cards.pcie, cuda=True),
    Check(("gpu.busy", "gpu.display"), cards.busy, _BOTH, cuda=True),
    Check(("dk.box",), boxes.cards, _BOX, ("dk.nogpu", "dk.runtime", "gpu.mismatch"), cuda=True, contained=True),
    Check(("gpu.arch",), boxes.archs, _BOX, ("gpu.mismatch",), cuda=True, contained=True),
    Check(("nccl.version",), boxes.nccl, _BOX, ("dk.image-drift",), cuda=True, contained=True),
    # run.host-bound is answered for by --deep; this sees it only where a run suffers of it just now.
    Check(("gpu.throttle",), cards.host_bound, _BOTH, cuda=True),
)
