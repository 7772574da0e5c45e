"""What a supervisor must know again after it was killed: state.json, written whole or not at all.

Owns the file's form. The head's holds the history of the gang; any other member's, what it last took part in.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clusterft_trainer.assignment import Assignment, Member
from clusterft_trainer.supervisor.messages import NEVER, Over
from clusterft_trainer.supervisor.policy import Past

SCHEMA = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Ledger:
    """The state of a part, and at the head that of the gang."""

    incarnation: int = 0  # how often it was brought back
    boot: str = ""  # the machine's, since it last started
    rebooted: bool = False  # between the incarnation before and this one
    left: bool = False  # the incarnation before was asked to end by the machine
    attempt: int = NEVER  # the newest that was started
    stops: int = 0
    over: Over | None = None
    # of the head alone
    running: tuple[int, ...] = ()  # machine ranks in the attempt in progress; none: no attempt is in progress
    port: int | None = None
    looked: bool = False  # the members have tried ports and shared dir
    members: tuple[Member, ...] = ()  # as replaced
    boots: dict[str, str] = field(default_factory=dict)  # node -> its machine's, when it was last heard
    history: list[Past] = field(default_factory=list)
    began: float = 0.0  # unix seconds of the first incarnation


def boot_id() -> str:
    """Which boot of this machine it is."""
    return _BOOT.read_text(encoding="ascii").strip()


def load(path: Path, told: Assignment, at: float) -> Ledger:
    """That of the incarnation before, taken over; a new one for a new part, or for one that is resumed."""
    found = _read(path)
    boot = boot_id()
    if found is None or (found.over is not None and told.first_attempt > found.attempt):
        return Ledger(boot=boot, attempt=told.first_attempt - 1, members=told.members, began=at)
    found.incarnation += 1
    found.rebooted, found.boot = found.boot != boot, boot
    return found


def keep(path: Path, ledger: Ledger) -> str:
    """On the disk when this returns, or why it is not: a full disk must not end training; one tries again."""
    draft = path.with_suffix(".new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, **asdict(ledger)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"
    return ""


def _read(path: Path) -> Ledger | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if body.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not of schema {SCHEMA}: the run was begun by another version")
    known = {f.name: body[f.name] for f in fields(Ledger) if f.name in body}
    known["over"] = Over(**known["over"]) if known.get("over") else None
    known["running"] = tuple(known.get("running", ()))
    known["members"] = tuple(Member(**one) for one in known.get("members", ()))
    known["history"] = [Past(**one) for one in known.get("history", ())]
    return Ledger(**known)
