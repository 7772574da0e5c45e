"""Checks of what clusterft itself keeps, here and on the nodes: private things that others may touch."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.findings import Finding


def modes(seen: Examination) -> Iterator[Finding]:
    """ctl.modes: keys that ssh refuses to use, or directories that let others at them."""
    if seen.desk.loose:
        yield Finding(
            id="ctl.modes",
            status="fail" if any(one.path.endswith("id_ed25519") for one in seen.desk.loose) else "warn",
            nodes=(),
            summary="files of this cluster on this machine are open to others",
            evidence="\n".join(f"{one.mode:o} {one.path}, must be {one.wanted:o}" for one in seen.desk.loose),
            cause="copied from elsewhere, or restored from a backup without its modes",
            fix=tuple(f"chmod {one.wanted:o} {one.path}" for one in seen.desk.loose),
            blast_radius="these files",
        )
    for node, health in seen.health.items():
        keys, places = health.ours.open_keys or (), health.ours.open_places or ()
        if keys or places:
            yield Finding(
                id="ctl.modes",
                status="fail" if keys else "warn",
                nodes=(node,),
                summary="the node's relay key is open to others, so ssh refuses it"
                if keys
                else "directories of this cluster are open to others",
                evidence="\n".join(f"~/{path}" for path in (*keys, *places)),
                fix=tuple(
                    f"on {node}: chmod {mode} ~/{path}"
                    for mode, paths in (("600", keys), ("700", places))
                    for path in paths
                ),
                blast_radius="these files",
            )


CHECKS: tuple[Check, ...] = (Check(("ctl.modes",), modes, reads=("facts", "health")),)
