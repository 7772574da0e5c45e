"""Resumable states on disk: written under a temporary name, listed in a manifest, then renamed.

Owns `checkpoints/` of a run. A folder without a readable manifest does not exist, whatever its
name; one whose files are not what the manifest says is passed over, and told of. Refuses to continue
a run whose pictures, batch, seed, engine or world size have changed: its position in the data would
mean something else. How fast the weights move may change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterft_trainer import dist, metrics
from clusterft_trainer.buckets import Position
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import RunError, storing

if TYPE_CHECKING:
    from accelerate import Accelerator

SCHEMA = 1
_NAME = re.compile(r"step-(\d{8})")
_DRAFT = ".new-"


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for a data position to keep its meaning."""

    world: int
    global_batch: int
    seed: int
    data: str
    engine: str
    precision: str
    learn: str  # the trained parts and the optimizer: what the saved optimizer state belongs to
    model: str


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
    identity: dict[str, Any]  # what must be the same for the position to keep its meaning
    tuning: dict[str, Any]  # settings that may change when training continues, as they were
    files: dict[str, dict[str, Any]]  # path in the folder -> size in bytes, sha256


@dataclass(frozen=True, slots=True)
class Found:
    """A complete checkpoint."""

    folder: Path
    state: State
    identity: dict[str, Any]
    tuning: dict[str, Any]
    files: dict[str, str]  # path in the folder -> sha256


class Keeper:
    """Writes, finds, restores and thins out the checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, identity: Identity, tuning: dict[str, Any], place: Place) -> None:
        self._folder = folder
        self._keep = keep
        self._identity = identity
        self._tuning = tuning
        self._place = place

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole, if it continues this very run; rank 0 looks for all."""
        every = dist.on_lead(self._place, lambda: complete(self._folder))
        for found in every:
            refuse_changes(found, self._identity)
            broken = self._broken(found)
            if not broken:
                return found
            if self._place.leads:
                metrics.notice(f"{found.folder} is corrupt and passed over: {'; '.join(broken)}.")
        if every:
            # Beginning anew by itself would write over what may still be saved.
            raise RunError(
                "resume",
                f"All checkpoints in {self._folder} are corrupt, {every[0].folder.name} the newest.",
                "Check that storage; bring back a copy, or move the folder away to begin anew.",
            )
        return None

    def restore(self, accelerator: Accelerator, found: Found) -> list[str]:
        """Load weights, optimizer and random states on every rank; tells which settings have changed since."""
        accelerator.load_state(str(found.folder))
        before, now = found.tuning, self._tuning
        return [f"{k} is {now[k]} now, {before[k]} before" for k in now if k in before and before[k] != now[k]]

    def _broken(self, found: Found) -> list[str]:
        """What is wrong with the files; the ranks divide them, since one could not read them fast."""
        mine = sorted(found.files)[self._place.rank :: self._place.world]
        told = [_fault(found.folder / name, found.files[name]) for name in mine]
        return [fault for part in dist.gather(told) for fault in part if fault]

    def write(self, accelerator: Accelerator, state: State) -> None:
        """All ranks write; the manifest comes last, the final name after it."""
        began = time.monotonic()
        final = self._folder / f"step-{state.step:08d}"
        draft = self._folder / f"{_DRAFT}{final.name}"
        dist.on_lead(self._place, lambda: _clear(draft))
        with storing("The checkpoint", draft):
            accelerator.save_state(str(draft))
            dist.barrier()
            files = self._seal(draft)
        dist.on_lead(self._place, lambda: self._publish(draft, final, state, files))
        if self._place.leads:
            metrics.saved("checkpoint", final, state.step, began)

    def _seal(self, draft: Path) -> dict[str, dict[str, Any]]:
        """Flush and hash the files; the ranks divide them, since one could not read them fast."""
        seen = dist.gather(_names(draft))
        mine = {n: _file_entry(draft / n) for n in share(seen, self._place.rank)}
        merged: dict[str, dict[str, Any]] = {}
        for part in dist.gather(mine):
            merged |= part
        return dict(sorted(merged.items()))

    def _publish(self, draft: Path, final: Path, state: State, files: dict[str, dict[str, Any]]) -> None:
        position = state.position
        manifest = Manifest(
            SCHEMA, state.step, position.epoch, position.batch, asdict(self._identity), self._tuning, files
        )
        with storing("The checkpoint", draft):
            text = draft / "manifest.json"
            text.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
            for path in (text, *(p for p in draft.rglob("*") if p.is_dir()), draft):
                _flush(path)
            _remove(final)
            draft.rename(final)
            _flush(self._folder)
            # A later one was passed over as corrupt, so it must not count for one that is kept.
            known = [f for f in complete(self._folder) if f.state.step <= state.step]
            for old in known[self._keep :]:
                _remove(old.folder)


def refuse_changes(found: Found, identity: Identity) -> None:
    """Raise if a checkpoint's data position would mean something else in this run."""
    wanted = asdict(identity)
    changed = [k for k in wanted if found.identity.get(k) != wanted[k]]
    if not changed:
        return
    if changed == ["world"] or set(changed) == {"world", "global_batch"}:
        raise RunError(
            "resume",
            f"{found.folder} was written by {found.identity.get('world')} ranks, this run has "
            f"{wanted['world']}; this version cannot redistribute the optimizer state.",
            "Start the same number of slots, or begin a new run.",
        )
    told = ", ".join(f"{k} ({found.identity.get(k)} before, {wanted[k]} now)" for k in changed)
    raise RunError(
        "resume",
        f"{found.folder} belongs to different settings: {told}.",
        "Restore them to continue, or begin a new run.",
    )


def complete(folder: Path) -> list[Found]:
    """Complete checkpoints, newest first; unreadable and half-written ones are passed over."""
    if not folder.is_dir():
        return []
    found = [_read(path) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted((f for f in found if f is not None), key=lambda f: -f.state.step)


def _read(folder: Path) -> Found | None:
    try:
        body = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA:
            return None
        state = State(int(body["step"]), Position(int(body["epoch"]), int(body["batch"])))
        sizes = {name: int(entry["size"]) for name, entry in body["files"].items()}
        sums = {name: str(entry["sha256"]) for name, entry in body["files"].items()}
        identity, tuning = dict(body["identity"]), dict(body.get("tuning", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = all((folder / n).is_file() and (folder / n).stat().st_size == s for n, s in sizes.items())
    return Found(folder, state, identity, tuning, sums) if whole else None


def share(seen: list[list[str]], rank: int) -> list[str]:
    """The files that a rank hashes, given what every rank sees.

    A network file system may show one node a new file later than another. So the ranks divide what
    any of them sees, and each file falls to one that does see it: none is left out, none is missing.
    """
    mine = []
    for number, name in enumerate(sorted(set().union(*seen))):
        holders = [r for r, names in enumerate(seen) if name in names]
        if holders[number % len(holders)] == rank:
            mine.append(name)
    return mine


def _names(draft: Path) -> list[str]:
    return [p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file()]


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "sha256": digest}


def _fault(path: Path, sha256: str) -> str | None:
    """What is wrong with one file of a checkpoint."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name} cannot be read: {error}"
    return None if digest == sha256 else f"{path.name} has not the checksum of the manifest"


def _clear(draft: Path) -> None:
    """Remove what a killed run left half-written, then make room."""
    with storing("The checkpoint", draft):
        draft.parent.mkdir(parents=True, exist_ok=True)
        for leftover in draft.parent.glob(f"{_DRAFT}*"):
            shutil.rmtree(leftover)
        draft.mkdir()


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a kill in the middle leaves nothing that looks complete."""
    if folder.exists():
        doomed = folder.with_name(f"{_DRAFT}old-{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
