"""What one node is told to do: the file that the launcher writes and the supervisor reads. Torch-free.

Owns the fields and the JSON form. Holds no secret: those travel in a file of their own, mode 0600.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Assignment:
    """One node's part of one attempt of a run."""

    run: str
    cluster: str
    node: str
    machine_rank: int
    machines: int
    slots: int
    attempt: int
    argv: tuple[str, ...]  # the command that starts this node's ranks
    env: dict[str, str]  # the whole environment of the ranks, but for secrets
    work_dir: str  # where the ranks start
    log_dir: str  # on a local disk of the node: a hung share must not stop training output
    mirror_dir: str  # in the shared dir; logs are copied there as they grow
    events_file: str  # in the shared dir; written by this node alone
    lock_file: str  # held while the node is in use; names the run that holds it
    secrets_file: str | None = None
    grace_seconds: float = 600.0  # from the polite signal to the final one: a large checkpoint takes minutes

    def to_json(self) -> str:
        """Indented, since people read it when a run fails."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def parse(text: str) -> Assignment:
    """The reverse of to_json; ValueError says what does not fit."""
    body = json.loads(text)
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"not an assignment of schema {SCHEMA}")
    names = {f.name for f in fields(Assignment)}
    missing = names - body.keys()
    if missing:
        raise ValueError("the assignment lacks " + ", ".join(sorted(missing)))
    known = {name: body[name] for name in names}
    known["argv"] = tuple(known["argv"])
    return Assignment(**known)
