"""Checks of the operating system of each node: clock and room on disk."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.survey import Survey
from clusterft.facts import Disk
from clusterft.findings import Finding

_CLOCK_WARN, _CLOCK_FAIL = 2.0, 60.0  # seconds; own thresholds: file times mislead, certificates fail
_FEW_INODES = 1000


def clock(survey: Survey) -> Iterator[Finding]:
    """os.clock: offsets against the controller make first causes and file times unreliable."""
    for name, facts in survey.facts.items():
        if facts.clock_offset is None:
            yield Finding("os.clock", "unknown", (name,), "the clock could not be read")
        elif abs(facts.clock_offset) >= _CLOCK_WARN:
            status = "fail" if abs(facts.clock_offset) >= _CLOCK_FAIL else "warn"
            side = "ahead of" if facts.clock_offset > 0 else "behind"
            yield Finding(
                id="os.clock",
                status="fail" if status == "fail" else "warn",
                nodes=(name,),
                summary=f"the clock is {abs(facts.clock_offset):.1f} s {side} the controller's",
                evidence=f"offset {facts.clock_offset:+.3f} s, round trip corrected",
                fix=("sudo timedatectl set-ntp true",),
                needs_root=True,
                blast_radius="the node's clock",
            )


def disks(survey: Survey, wanted: dict[str, int], elsewhere: int) -> Iterator[Finding]:
    """os.disk-full, os.inodes, and directories that cannot be written."""
    for name, facts in survey.facts.items():
        for directory in wanted.keys() - {disk.directory for disk in facts.disks}:
            yield Finding("os.disk-full", "unknown", (name,), f"the room for {directory} could not be read")
        for disk in facts.disks:
            yield from _disk(name, disk, wanted.get(disk.directory, elsewhere))


def _disk(node: str, disk: Disk, wanted: int) -> Iterator[Finding]:
    if not disk.writable:
        yield Finding(
            id="fs.squash",
            status="fail",
            nodes=(node,),
            summary=f"{disk.directory} cannot be written by the SSH user",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"make {disk.directory} writable for this user",),
            blast_radius=disk.directory,
        )
    if disk.free_bytes < wanted:
        yield Finding(
            id="os.disk-full",
            status="fail",
            nodes=(node,),
            summary=f"{_mib(disk.free_bytes)} free for {disk.directory}, {_mib(wanted)} needed",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"free room on {disk.mounted_on}, or choose another directory",),
            blast_radius=disk.mounted_on,
        )
    if disk.free_inodes is not None and disk.free_inodes < _FEW_INODES:
        yield Finding(
            id="os.inodes",
            status="fail",
            nodes=(node,),
            summary=f"{disk.free_inodes} inodes free for {disk.directory}",
            evidence=f"{disk.device} on {disk.mounted_on}",
            fix=(f"delete small files on {disk.mounted_on}",),
            blast_radius=disk.mounted_on,
        )


def _mib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
