"""The checks of the controller layer: is each entry a machine of its own, and what ssh here holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clusterft.checks import controller
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.findings import Finding


def same_host_twice(seen: Examination) -> Iterator[Finding]:
    """ctl.same-host-twice: two entries that would fight over one machine's cards and ports."""
    return controller.same_host_twice(seen.survey, share_cards=seen.wanted.device == "cpu")


def same_hostname(seen: Examination) -> Iterator[Finding]:
    """ctl.same-hostname: machines with one name."""
    return controller.same_hostname(seen.survey)


def stale_mux(seen: Examination) -> Iterator[Finding]:
    """ctl.stale-mux: the user's own ssh still has the groups of an old login; ours are new."""
    for one in seen.desk.shared:
        facts = seen.survey.facts.get(one.node)
        missing = [name for name in (facts.groups if facts and facts.groups else ()) if name not in one.groups]
        if missing:
            yield Finding(
                id="ctl.stale-mux",
                status="warn",
                nodes=(one.node,),
                summary=f"your ssh keeps a connection from before you were in the group {', '.join(missing)}",
                evidence=f"groups over {one.socket}: {' '.join(one.groups)}; of a new login: "
                f"{' '.join(facts.groups or ()) if facts else ''}",
                cause="ControlMaster: a shared connection has the groups that it began with",
                fix=(
                    f"on this machine: ssh -O stop -S {shlex.quote(one.socket)} {one.node}   "
                    "(what uses the connection now goes on)",
                ),
                blast_radius="the next command logs in anew",
            )


CHECKS: tuple[Check, ...] = (
    Check(("ctl.same-host-twice",), same_host_twice),
    Check(("ctl.same-hostname",), same_hostname),
    Check(("ctl.stale-mux",), stale_mux),
)
