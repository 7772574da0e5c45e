"""Carrier: what can be done with one node's part of a run, whichever way it is carried out.

Putting and starting need the plan; all that comes after needs a Part alone, so that any controller can do it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from clusterft.plan import NodePlan, Part
from clusterft.plan.part import Runtime
from clusterft.remote import Lines, Remote

DOWN = "run.container-down"  # id of an Unreachable: the node is reached, and its container does not run


class Harvest(NamedTuple):
    """What was taken away on a node once the run was over, and where logs lie that the shared dir did not take."""

    removed: bool
    kept: str = ""
    problem: str = ""


class Carrier(Protocol):
    """The parts of one run. Every call is about one node, over its open connection."""

    def put(self, node: NodePlan, remote: Remote, secrets: dict[str, str]) -> None:
        """Bring everything there; nothing runs yet."""

    def start(self, part: Part, remote: Remote) -> None:
        """Start the supervisor; CannotStart says what is in the way."""

    def discard(self, part: Part, remote: Remote) -> None:
        """After a start that failed: end what may still come up, and leave no secret behind."""

    def follow(self, part: Part, remote: Remote, skip: int) -> Lines:
        """What the supervisor says, but for its first lines; Unreachable while it cannot be heard."""

    def stop(self, part: Part, remote: Remote, *, now: bool) -> bool:
        """Ask it for a checkpoint and an end, or with `now` end it; whether there was anything to end."""

    def alive(self, part: Part, remote: Remote) -> bool:
        """Whether its supervisor is there, or will be again."""

    def revive(self, part: Part, remote: Remote) -> bool:
        """Bring back a part that nobody else brings back; whether that was called for."""

    def read(self, part: Part, remote: Remote, name: str) -> str:
        """A small file of the part's directory; empty where there is none."""

    def harvest(self, part: Part, remote: Remote, keep: str, *, kill: bool) -> Harvest:
        """Take away what is left of a part that is over; `keep` is a directory of the node for logs.

        What still runs and has not said its last word is left alone, unless it is known to be over: `kill`.
        """


def carrier(runtime: Runtime, cluster: str, run: str) -> Carrier:
    """The one for this runtime."""
    if runtime == "process":
        from clusterft.runtime.process import Processes

        return Processes()
    from clusterft.runtime.contained import Contained  # docker's SDK costs 0.2 s that plain processes need not pay

    return Contained(cluster, run)
