"""Part: how one node's part of a started run is addressed. All that follow, stop, logs and status need of a plan.

Pure. Owns the command line of the supervisor's verbs. run.json holds the parts, so that any controller can act on
a run that it did not plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Runtime = Literal["docker", "process"]


@dataclass(frozen=True, slots=True)
class Part:
    """One node's part of a run."""

    node: str
    machine_rank: int
    runtime: Runtime
    directory: str  # where it lies: in the container, or on the node
    python: str  # in the container, or on the node

    def supervisor(self, verb: str, *rest: str) -> tuple[str, ...]:
        """The command that runs, starts, follows or stops this part."""
        # -P: a json.py that lies in the directory of whoever calls must not become part of the supervisor.
        return (self.python, "-P", "-m", "clusterft_trainer.supervisor", verb, self.directory, *rest)

    def to_dict(self) -> dict[str, Any]:
        """As run.json holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Part:
        """The reverse; ValueError says what does not fit."""
        try:
            part = cls(**{name: body[name] for name in ("node", "machine_rank", "runtime", "directory", "python")})
        except KeyError as error:
            raise ValueError(f"the part lacks {error.args[0]}") from None
        if part.runtime not in ("docker", "process"):
            raise ValueError(f"the part has the unknown runtime {part.runtime}")
        return part
