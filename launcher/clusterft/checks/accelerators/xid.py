"""What the driver's Xids of the last day mean: the card's own trouble, told apart from the programs'.

The meanings are those of NVIDIA's "Xid Errors" and of gpud's and Azure's health checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from clusterft.checks.examination import Examination
from clusterft.facts.health.xid import Xid
from clusterft.findings import Finding


class _Meaning(NamedTuple):
    words: str
    blocks: bool
    fix: str


_RESET = (
    "sudo reboot   (or, with nothing on the card: sudo nvidia-smi --gpu-reset -i {card}; the log keeps the Xid "
    "for a day even so)"
)
_REPLACE = "sudo reboot; if it comes back: seat the card anew, check its power, and replace it"
_LOOK = "move the run off it and on: clusterft stop RUN, clusterft resume RUN; if it comes back: sudo reboot"
# 13, 31, 43 and 45 are mostly the program's own, 63 is a repair that has worked: nothing is said of them.
_KNOWN = {
    48: _Meaning("memory error that cannot be corrected", True, _RESET),
    62: _Meaning("its internal controller stopped", True, _RESET),
    64: _Meaning("broken memory could not be taken out of use", True, _RESET),
    74: _Meaning(
        "NVLink error", False, "sudo nvidia-smi nvlink -e   (counts errors by link); reseat or replace it"
    ),
    79: _Meaning("it has fallen off the bus", True, _REPLACE),
    92: _Meaning("many memory errors that were corrected", False, "watch it; replace the card if it goes on"),
    94: _Meaning("memory error that ended one program", False, _LOOK),
    95: _Meaning("memory error that may have reached any program", True, _RESET),
    109: _Meaning("switching between programs took too long", False, _RESET),
    119: _Meaning("its system processor (GSP) does not answer", True, _RESET),
    120: _Meaning("its system processor (GSP) failed", True, _RESET),
}


def xid(seen: Examination) -> Iterator[Finding]:
    """gpu.xid: of this boot and the last day; unknown where the kernel's log cannot be read."""
    for name, health in seen.health.items():
        if not health.gpu.driver:
            continue
        if health.gpu.xids is None:
            yield Finding(
                "gpu.xid",
                "unknown",
                (name,),
                "the kernel's log needs root here: sudo dmesg | grep 'NVRM: Xid'   or let the user read it: "
                "sudo usermod -aG adm USER",
            )
            continue
        for one in health.gpu.xids:
            meaning = _KNOWN.get(one.number)
            if meaning:
                index = {card.bus_id.lower()[-12:-2]: card.index for card in health.gpu.cards}.get(one.card)
                yield _told(name, one, meaning, index)


def _told(node: str, one: Xid, meaning: _Meaning, index: int | None) -> Finding:
    card = f"card {index}" if index is not None else f"the card at {one.card}"
    return Finding(
        id="gpu.xid",
        status="fail" if meaning.blocks else "warn",
        nodes=(node,),
        summary=f"Xid {one.number} of {card}{_when(one.ago)}: {meaning.words}",
        evidence=one.line,
        fix=(f"on {node}: " + meaning.fix.format(card=one.card if index is None else index),),
        needs_root=True,
        blast_radius="the whole machine",
    )


def _when(ago: float | None) -> str:
    if ago is None:
        return ""
    return f" {ago / 3600:.0f} h ago" if ago >= 5400 else f" {max(1.0, ago / 60):.0f} min ago"
