"""The line protocol between a training process and whoever watches it. Torch-free.

A progress line is one stdout line: the marker, a space, one JSON object with `schema` and `kind`. Anything else
on stdout is an ordinary log line. Owns the record types and both directions of the encoding.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

MARKER = "@clusterft"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """The trainer entered a stage: imports, model, data, train, export."""

    kind: ClassVar[str] = "phase"
    phase: str
    at: float  # unix seconds on the node's clock


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step; loss is the mean over the global batch."""

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    epoch: int
    loss: float
    rate: float
    grad_norm: float | None
    images_per_second: float
    data_wait: float  # share of the step's time spent waiting for data, mean over the ranks
    at: float
    peer_wait: float | None = field(default=None)  # share spent waiting for slower ranks at the step's end, mean
    communication: float | None = field(
        default=None
    )  # share in which computing waits for gradients; ddp alone tells
    mfu: float | None = field(default=None)  # useful FLOPs over the cards' peak; null where that is not known
    memory: float | None = field(default=None)  # most bytes that rank 0 has held: of its card, or of the host
    skipped: int = field(default=0)  # steps so far that half precision left out because they overflowed


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The loss on pictures that are not trained."""

    kind: ClassVar[str] = "held-out"
    step: int
    loss: float
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A file or folder that is complete on disk; what is checkpoint, sample, export, curve or tensorboard."""

    kind: ClassVar[str] = "saved"
    what: str
    path: str
    step: int
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know that does not stop the run."""

    kind: ClassVar[str] = "notice"
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Why training stops, in the user's terms; failure is a class such as config, data, nan, oom, disk-full."""

    kind: ClassVar[str] = "failed"
    failure: str
    message: str
    remedy: str
    at: float


@dataclass(frozen=True, slots=True)
class Done:
    """Training and export are complete."""

    kind: ClassVar[str] = "done"
    step: int
    first_loss: float  # mean of the first tenth of the steps
    last_loss: float  # mean of the last tenth
    at: float
    resumed_from: int | None = field(default=None)


Record = Phase | Step | HeldOut | Saved | Notice | Failed | Done
_KINDS: dict[str, type[Record]] = {t.kind: t for t in (Phase, Step, HeldOut, Saved, Notice, Failed, Done)}


def encode(record: Record) -> str:
    """One line without its newline; NaN and infinity become null, since JSON has neither."""
    body = {key: _finite(value) for key, value in asdict(record).items()}
    return f"{MARKER} {json.dumps({'schema': SCHEMA, 'kind': record.kind, **body})}"


def decode(line: str) -> Record | None:
    """The record in a stdout line; None for an ordinary line, a newer schema or a line cut short."""
    if not line.startswith(MARKER + " "):
        return None
    try:
        body = json.loads(line[len(MARKER) + 1 :])
    except ValueError:
        return None  # a dying process may leave half a line
    return from_dict(body) if isinstance(body, dict) else None


def to_dict(record: Record) -> dict[str, object]:
    """The JSON object of a record, for embedding in an event."""
    return {"kind": record.kind, **{k: _finite(v) for k, v in asdict(record).items()}}


def from_dict(body: dict[str, object]) -> Record | None:
    """The reverse of to_dict; fields of a later writer are ignored, missing ones make it None."""
    record = _KINDS.get(str(body.get("kind")))
    if record is None or body.get("schema", SCHEMA) != SCHEMA:
        return None
    known = {f.name: body[f.name] for f in fields(record) if f.name in body}
    for name, value in known.items():
        if value is None and name in ("loss", "first_loss", "last_loss", "images_per_second", "data_wait"):
            known[name] = math.nan
    try:
        return record(**known)  # type: ignore[arg-type]
    except TypeError:
        return None


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
