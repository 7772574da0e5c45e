"""The checks of the rendezvous layer: interfaces that a job names, InfiniBand on all nodes or none, the port."""

from __future__ import annotations

from clusterft.checks.check import Check
from clusterft.checks.ways import fabric, meeting

CHECKS: tuple[Check, ...] = (
    Check(("nccl.ifname",), meeting.ifname, ("facts", "job")),
    Check(("nccl.bridge",), meeting.bridge_by_name),
    Check(("nccl.net-mix",), fabric.mixed, cuda=True),
    Check(("nccl.ib-timeout",), fabric.ports, cuda=True, after=("nccl.net-mix",)),
    Check(("rdzv.inuse",), meeting.inuse, reads=("facts", "health")),
)
