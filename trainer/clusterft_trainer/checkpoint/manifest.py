"""The document that makes a folder a checkpoint, and what it says of the run that wrote it.

A folder without a readable manifest does not exist, whatever its name. Torch-free: it is read before a model is.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clusterft_trainer.buckets import Position

SCHEMA = 2
NAME = re.compile(r"step-(\d{8})")
DRAFT = ".new-"
Role = Literal["rolling", "kept", "best", "end", "stop", "failure"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for a checkpoint to belong to a run."""

    seed: int
    data: str  # digest of names, captions and sizes of the pictures, with what decides which are trained
    trained: str  # the names and shapes of the trained weights, as a digest
    objective: str  # what the model learns to predict
    model: str  # fingerprint of the file or folder that holds what is not trained


@dataclass(frozen=True, slots=True)
class State:
    """How far a run has come."""

    step: int
    position: Position


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a folder a checkpoint; written last, before the folder gets its name."""

    schema: int
    step: int
    epoch: int
    batch: int  # the next global batch of the epoch
    earlier: list[list[int]]  # [global batch, batches] that the epoch has had before with other sizes
    sample: int  # samples of the epoch that lie behind
    global_batch: int  # samples of one step
    world: int  # ranks that wrote
    engine: str  # ddp, fsdp, or zero- and the stage
    optimizer: str
    count: float  # optimizer steps as the optimizer counts them
    scalars: dict[str, float]  # loss scaling, under fp16
    roles: list[str]  # why it was written: rolling, kept, best, end, stop, failure
    held_out: float | None  # loss on pictures that are not trained, where it was measured at this step
    identity: dict[str, Any]  # what must be the same to continue
    config: dict[str, Any]  # all settings, as they were
    files: dict[str, dict[str, Any]]  # path in the folder -> size in bytes, xxh3 (128 bits, hex)
    written: float  # unix seconds


@dataclass(frozen=True, slots=True)
class Found:
    """A complete checkpoint."""

    folder: Path
    manifest: Manifest
    passed_over: tuple[str, ...] = field(default=())  # newer ones that are not whole, and why

    @property
    def state(self) -> State:
        """How far it had come, in batches of its own size."""
        m = self.manifest
        return State(m.step, Position(m.epoch, m.batch, tuple((a, b) for a, b in m.earlier)))


def to_json(manifest: Manifest) -> str:
    """Indented: people read it."""
    return json.dumps(asdict(manifest), indent=1) + "\n"


def complete(folder: Path) -> list[Found]:
    """Complete checkpoints, newest first; unreadable and half-written ones are passed over."""
    return survey(folder)[0]


def survey(folder: Path) -> tuple[list[Found], list[str]]:
    """Complete checkpoints, newest first, and a sentence about each folder that is none."""
    if not folder.is_dir():
        return [], []
    read = [(path, _read(path)) for path in sorted(folder.iterdir()) if NAME.fullmatch(path.name)]
    whole = [Found(path, found) for path, found in read if isinstance(found, Manifest)]
    broken = [f"{path.name}: {found}" for path, found in read if isinstance(found, str)]
    return sorted(whole, key=lambda f: -f.manifest.step), broken


def _read(folder: Path) -> Manifest | str:
    """The manifest, or why there is none that holds."""
    path = folder / "manifest.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA:
            return f"its manifest has schema {body['schema']}, this version reads {SCHEMA}"
        manifest = Manifest(**body)
        sizes = {name: int(entry["size"]) for name, entry in manifest.files.items()}
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    for name, size in sizes.items():
        try:
            real = (folder / name).stat().st_size
        except OSError as error:
            return f"{name} is missing ({error.strerror})"
        if real != size:
            return f"{name} has {real} bytes, the manifest says {size}"
    return manifest
