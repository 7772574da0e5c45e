"""Writes, finds, restores and thins out the checkpoints of one run.

Owns `checkpoints/` of a run. Saving copies this rank's pieces and returns; another process writes them, flushes
and reads them back while training goes on, and at a later step boundary all ranks agree that all files are there.
Only then the manifest is written and the folder gets its name. Refuses to delete an older one before that.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer import dist, metrics
from clusterft_trainer.buckets import Epochs
from clusterft_trainer.checkpoint import changes, manifest, policy, shards
from clusterft_trainer.checkpoint.manifest import Found, Identity, Manifest, Role, State
from clusterft_trainer.checkpoint.shards import Entry, Shards, Stage
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.disk import flush
from clusterft_trainer.dist import Place
from clusterft_trainer.engine.base import Engine, Source
from clusterft_trainer.engine.ema import Ema
from clusterft_trainer.errors import RunError, TrainerError, storing

WEIGHT, EMA = "weight", "ema"


@dataclass(slots=True)
class _Pending:
    """A checkpoint that is being written."""

    draft: Path
    final: Path
    manifest: dict[str, Any]  # all fields but the files
    work: Future[dict[str, Any]]
    began: float
    sealed: bool = False  # every rank's file is on the disk
    publishing: Future[None] | None = None  # on rank 0, once it is sealed


class Keeper:
    """The checkpoints of one run, as one rank sees them."""

    def __init__(
        self, folder: Path, config: TrainConfig, identity: Identity, place: Place, left: tuple[str, ...] = ()
    ) -> None:
        """`left`: digests of pictures that the run was asked to go on without."""
        self._folder = folder
        self._left = left
        self._config = config
        self._identity = identity
        self._place = place
        self._stage = Stage(pinned=place.device != "cpu")
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: _Pending | None = None

    def newest(self) -> Found | None:
        """The newest one that is whole, if it continues this very run; says what it passed over and why."""
        dist.on_lead(self._place, lambda: _clear(self._folder))
        every, unread = dist.on_lead(self._place, lambda: manifest.survey(self._folder))
        broken = list(unread)
        for found in every:
            changes.refuse(found, self._identity, self._left)
            faults = self._faults(found)
            if not faults:
                self._tell_passed_over(broken)
                return found
            broken.append(f"{found.folder.name}: {'; '.join(faults)}")
        self._tell_passed_over(broken)
        if every or broken:
            # Beginning anew by itself would write over what may still be saved.
            raise RunError(
                "resume",
                f"No checkpoint in {self._folder} is whole: {'; '.join(sorted(broken))}.",
                "Check that storage; bring back a copy, or move the folder away to begin anew.",
            )
        return None

    def others(self, found: Found) -> bool:
        """Whether it was written with other pictures than those of now, as was asked for."""
        return changes.others(found, self._identity, self._left)

    def _tell_passed_over(self, broken: list[str]) -> None:
        if self._place.leads:
            for sentence in sorted(broken, reverse=True):
                metrics.notice(f"Checkpoint passed over: {sentence}.")

    def _faults(self, found: Found) -> list[str]:
        """What is wrong with the files; the ranks divide them, since one could not read them fast."""
        files = found.manifest.files
        mine = sorted(files)[self._place.rank :: self._place.world]
        told = [shards.check(found.folder / n, files[n]["size"], files[n]["xxh3"]) for n in mine]
        return [fault for part in dist.gather(told) for fault in part if fault]

    def restore(self, engine: Engine, ema: Ema | None, found: Found) -> list[str]:
        """Load weights, optimizer and running mean on every rank; what could not be taken over, in sentences."""
        m, notes = found.manifest, []
        stored = Shards(found.folder, [n for n in m.files if n.endswith(".safetensors")])
        states = tuple(sorted(stored.kinds - {WEIGHT, EMA}))
        rest, count = stored.rest(), m.count
        name = self._config.learn.optimizer.name
        if m.optimizer != name:
            notes.append(f"the state of {m.optimizer} means nothing to {name}, which begins anew")
            states, rest, count = (), {}, 0.0
        engine.load(_Reading(stored, states, count, rest))
        if m.scalars and m.engine == engine.kind:
            engine.take_scalars(m.scalars)
        elif m.scalars:
            notes.append(f"the loss scale of {m.engine} means nothing to {engine.kind}, which finds its own anew")
        if ema is not None:
            kind = EMA if EMA in stored.kinds else WEIGHT
            ema.load(lambda piece: stored.read(kind, piece.name, piece.offset, piece.end))
            if kind == WEIGHT:
                notes.append("there was no running mean before: it begins with the weights as they are")
        return notes

    def save(self, engine: Engine, ema: Ema | None, what: Saving) -> None:
        """Begin a checkpoint; all ranks call this. It waits for an earlier one that is still being written."""
        began = time.monotonic()
        self.finish()
        final = self._folder / f"step-{what.state.step:08d}"
        draft = dist.on_lead(self._place, lambda: _begin(self._folder, final.name))
        with storing("The checkpoint", draft):  # the memory that holds it counts as a file, too
            self._stage.take(self._entries(engine, ema), engine.shapes)
        path = draft / f"rank-{self._place.rank:05d}-of-{self._place.world:05d}.safetensors"
        work = self._writer.submit(_write, self._stage, path)
        self._pending = _Pending(draft, final, self._described(engine, what), work, began)
        if what.wait or not self._config.checkpoints.background:
            self.finish()

    def _entries(self, engine: Engine, ema: Ema | None) -> list[Entry]:
        found = []
        for piece in engine.pieces():
            found.append(shards.entry(WEIGHT, piece.name, piece.offset, piece.weight))
            found += [shards.entry(key, piece.name, piece.offset, value) for key, value in piece.states.items()]
        if ema is not None:
            found += [shards.entry(EMA, name, offset, values) for name, offset, values in ema.parts()]
        rest = sorted(engine.rest().items())
        for name, values in rest[self._place.rank :: self._place.world] if engine.replicated else rest:
            found += [shards.entry(shards.REST, name, key, _tensor(value)) for key, value in values.items()]
        return found

    def _described(self, engine: Engine, what: Saving) -> dict[str, Any]:
        position = what.state.position
        return {
            "schema": manifest.SCHEMA,
            "step": what.state.step,
            "epoch": position.epoch,
            "batch": position.batch,
            "earlier": [list(pair) for pair in position.earlier],
            "sample": what.epochs.sample(position),
            "global_batch": what.epochs.size,
            "world": self._place.world,
            "engine": engine.kind,
            "optimizer": self._config.learn.optimizer.name,
            "count": engine.count,
            "scalars": engine.scalars(),
            "roles": list(what.roles),
            "held_out": what.held_out,
            "identity": asdict(self._identity),
            "config": self._config.model_dump(mode="json"),
        }

    @property
    def ready(self) -> bool:
        """Whether this rank has done what the next `advance` needs of it."""
        if self._pending is None:
            return False
        if self._pending.publishing is not None:
            return self._pending.publishing.done()
        return self._pending.sealed or self._pending.work.done()

    def advance(self) -> None:
        """Take the checkpoint under way one stage further, waiting if it has to; all ranks call this together.

        First all ranks' files are on the disk, then rank 0 has given the checkpoint its name: that too takes a
        disk some time, and training does not wait for it.
        """
        pending = self._pending
        if pending is None:
            return
        if not pending.sealed:
            files = self._sealed(pending)
            pending.sealed = True
            if self._place.leads:
                pending.publishing = self._writer.submit(self._publish, pending, files)
            return
        self._pending = None
        dist.on_lead(self._place, lambda: pending.publishing.result() if pending.publishing else None)
        if self._place.leads:
            metrics.saved("checkpoint", pending.final, pending.manifest["step"], pending.began)

    def finish(self) -> None:
        """Wait until the checkpoint under way is complete; all ranks call this."""
        while self._pending is not None:
            self.advance()

    def _sealed(self, pending: _Pending) -> dict[str, dict[str, Any]]:
        """Every rank's file with its size and checksum, once all are written."""
        entry, problem = None, None
        try:
            entry = pending.work.result()
        except TrainerError as error:
            problem = error
        outcomes = dist.gather((entry, problem))
        if any(problem is not None for _, problem in outcomes):
            self._pending = None
            # What is of no use must not take the room that the next start needs.
            dist.on_lead(self._place, lambda: shutil.rmtree(pending.draft, ignore_errors=True))
        dist.agree(problem)
        return {name: body for part, _ in outcomes for name, body in (part or {}).items()}

    def close(self) -> None:
        """Wait until older ones are deleted, too."""
        self.finish()
        self._writer.shutdown(wait=True)
        self._stage.close()

    def _publish(self, pending: _Pending, files: dict[str, dict[str, Any]]) -> None:
        """The manifest last, the name after it, then what is no longer needed."""
        _refuse_replaced(self._folder.parent)
        with storing("The checkpoint", pending.draft):
            seen = {n: (pending.draft / n).stat().st_size for n in files}
            short = [n for n, size in seen.items() if size != files[n]["size"]]
            if short:
                raise OSError(
                    f"{short[0]} has {seen[short[0]]} bytes here, {files[short[0]]['size']} were written"
                )
            body = Manifest(**pending.manifest, files=files, written=time.time())
            path = pending.draft / "manifest.json"
            path.write_text(manifest.to_json(body), encoding="utf-8")
            flush(path)
            flush(pending.draft)
            _set_aside(pending.final)
            pending.draft.rename(pending.final)
            flush(self._folder)
            # A later one was passed over as corrupt, so it must not count for one that is kept.
            known = [f for f in manifest.complete(self._folder) if f.manifest.step <= body.step]
            for old in policy.superfluous(known, self._config.checkpoints.keep):
                _set_aside(old.folder)
            _delete_set_aside(self._folder)


@dataclass(frozen=True, slots=True)
class Saving:
    """One checkpoint that is wanted."""

    state: State
    epochs: Epochs
    roles: tuple[Role, ...]
    held_out: float | None = None
    wait: bool = False  # the run ends with it: return only when it is complete


@dataclass(frozen=True, slots=True)
class _Reading(Source):
    """A stored checkpoint as an engine reads it."""

    stored: Shards
    states: tuple[str, ...]
    count: float
    rest: dict[str, dict[str, Any]]

    def read(self, kind: str, name: str, first: int, end: int) -> torch.Tensor:
        return self.stored.read(kind, name, first, end)


def _write(stage: Stage, path: Path) -> dict[str, Any]:
    with storing("The checkpoint", path):
        return {path.name: stage.write(path)}


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _refuse_replaced(run_dir: Path) -> None:
    """A gang that was cut off may still reach the shared dir, while others go on with its run on other nodes."""
    mine = os.environ.get("CLUSTERFT_ATTEMPT")
    if mine is None:
        return  # started by hand: nobody plans this run
    with storing("The plan of this run, in", run_dir):
        try:
            text = (run_dir / "run.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return
    first = json.loads(text)["plan"].get("first_attempt", 0)
    if first > int(mine):
        raise RunError(
            "replaced",
            f"This is attempt {mine} of a run that was planned anew from attempt {first} on: "
            "its checkpoint does not count.",
            "Nothing: the run goes on with the other nodes.",
        )


def _clear(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    with storing("The checkpoints in", folder):
        for leftover in folder.glob(f"{manifest.DRAFT}step-*") if folder.is_dir() else ():
            shutil.rmtree(leftover)


def _begin(folder: Path, name: str) -> Path:
    """Make room for a new one, under a name that no earlier attempt can be writing into."""
    _clear(folder)
    draft = folder / f"{manifest.DRAFT}{name}-{secrets.token_hex(4)}"
    with storing("The checkpoint", draft):
        draft.mkdir(parents=True)
    return draft


def _set_aside(folder: Path) -> None:
    """Take a checkpoint's name away: a kill in the middle of deleting leaves nothing that looks complete."""
    if folder.exists():
        folder.rename(folder.with_name(f"{manifest.DRAFT}old-{time.monotonic_ns()}-{folder.name}"))


def _delete_set_aside(folder: Path) -> None:
    for doomed in folder.glob(f"{manifest.DRAFT}old-*"):
        shutil.rmtree(doomed, ignore_errors=True)  # what resists is no checkpoint, and is tried again next time
