"""All checks of doctor, in order of dependency: what comes later may be moot by what came before."""

from __future__ import annotations

from clusterft.checks.check import Check
from clusterft.checks.layers import (
    controller,
    deep,
    docker,
    gpu,
    host,
    job,
    network,
    ours,
    rendezvous,
    ssh,
    storage,
)

CHECKS: tuple[Check, ...] = (
    *ssh.CHECKS,
    *controller.CHECKS,
    *ours.CHECKS,
    *host.CHECKS,
    *docker.CHECKS,
    *gpu.CHECKS,
    *network.CHECKS,
    *rendezvous.CHECKS,
    *storage.CHECKS,
    *job.CHECKS,
    *deep.CHECKS,
)
