"""Rank 0's account of a run: progress lines, metrics.jsonl, TensorBoard and the loss curve.

Owns those files in the run directory. On a resumed run, steps behind the checkpoint are taken out
first: they are trained again, and no step may stand in the account twice. Refuses to work on any
other rank.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clusterft_trainer import curve
from clusterft_trainer.config import Wandb
from clusterft_trainer.errors import ConfigError, storing
from clusterft_trainer.progress import Done, Failed, HeldOut, Notice, Phase, Record, Saved, Step, encode

# Characters of one text as JSON writes it. Whoever reads a log cuts lines of many thousands, and a progress line
# that is cut is none: the reason why a run ended would be lost.
LONGEST = 2_000
_CUT = " ... "


def tell(record: Record) -> None:
    """One progress line, at once."""
    print(encode(record), flush=True)


def phase(name: str) -> None:
    """Say that a stage begins."""
    tell(Phase(name, time.time()))


def notice(text: str) -> None:
    """Tell something that does not stop the run."""
    tell(Notice(_bounded(text), time.time()))


def failed(failure: str, message: str, remedy: str) -> None:
    """Say why training stops."""
    tell(Failed(failure, _bounded(message), _bounded(remedy), time.time()))


def saved(what: str, path: Path, step: int, began: float) -> None:
    """Say that something is complete on disk; `began` in seconds of time.monotonic()."""
    tell(Saved(what, str(path), step, time.monotonic() - began, time.time()))


class Journal:
    """The steps of a run, on disk and in memory."""

    def __init__(self, run_dir: Path, resumed_from: int | None, wandb: Wandb | None = None) -> None:
        self._run_dir = run_dir
        self._wandb = None if wandb is None else _open_wandb(wandb, run_dir)
        self._path = run_dir / "metrics.jsonl"
        self._resumed_from = resumed_from
        self._board: Any = None
        with self._storing():
            self.losses = self._rewind(resumed_from or 0)
            self._file = self._path.open("a", encoding="utf-8")

    def step(self, record: Step) -> None:
        """Write one finished step everywhere."""
        tell(record)
        self.losses.append(record.loss)
        with self._storing():
            self._file.write(json.dumps(_plain(record)) + "\n")
            self._file.flush()
            self._chart(record)

    def held_out(self, record: HeldOut) -> None:
        """Tell the loss on pictures that are not trained, and put it into the charts."""
        tell(record)
        with self._storing():
            self._scalars({"held_out": record.loss}, record.step)

    def _chart(self, record: Step) -> None:
        names = (
            "loss",
            "rate",
            "images_per_second",
            "data_wait",
            "peer_wait",
            "communication",
            "grad_norm",
            "mfu",
            "memory",
        )
        values = {name: getattr(record, name) for name in names}
        self._scalars({name: value for name, value in values.items() if value is not None}, record.step)

    def _scalars(self, values: dict[str, float], step: int) -> None:
        board = self._open_board()
        for name, value in values.items():
            board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def finish(self, name: str) -> None:
        """Draw the curve, close the files, and say that the run is done."""
        began, step = time.monotonic(), len(self.losses)
        path = self._run_dir / "loss.svg"
        draft = path.with_suffix(".svg.new")
        with self._storing():
            draft.write_text(curve.draw(self.losses, name), encoding="utf-8")
            draft.replace(path)
        self.close()
        saved("curve", path, step, began)
        saved("tensorboard", self._run_dir / "tensorboard", step, began)
        tenth = max(1, step // 10)
        first, last = _mean(self.losses[:tenth]), _mean(self.losses[-tenth:])
        tell(Done(step, first, last, time.time(), self._resumed_from))

    def close(self) -> None:
        """Put everything on the disk."""
        if self._file.closed:
            return
        with self._storing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self._board is not None:
                self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _storing(self) -> AbstractContextManager[None]:
        return storing("The account of the run in", self._run_dir)

    def _open_board(self) -> Any:
        if self._board is None:
            # imported here: it costs half a second that the first step should not wait for
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(self._run_dir / "tensorboard"), purge_step=(self._resumed_from or 0) + 1
            )
        return self._board

    def _rewind(self, last: int) -> list[float]:
        """Keep the steps up to `last`; a line that a dying process cut short is no step."""
        if not self._path.exists():
            return []
        kept, losses = [], []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                body = json.loads(line)
            except ValueError:
                continue
            if body["step"] <= last:
                kept.append(line + "\n")
                losses.append(math.nan if body["loss"] is None else float(body["loss"]))
        draft = self._path.with_suffix(".jsonl.new")
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(self._path)
        return losses


def _open_wandb(settings: Wandb, run_dir: Path) -> Any:
    """A run of that service that goes on where this run's earlier attempt ended."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"wandb: is set, but the package cannot be imported ({error}).",
            "Put it into the image (image.pip: [wandb]), or remove the section.",
            everywhere=False,
        ) from error
    try:
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            dir=str(run_dir),
            id=run_dir.name,
            name=run_dir.name,
            resume="allow",
        )
    except wandb.Error as error:
        raise ConfigError(
            f"wandb: {settings.project} could not be opened: {error}.",
            "Give WANDB_API_KEY among the job's secrets, or set wandb.mode: offline.",
        ) from error


def _plain(record: Step) -> dict[str, object]:
    body = asdict(record)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in body.items()}


def _bounded(text: str) -> str:
    """Both ends of a text that is too long: the beginning says what failed, the end often why."""
    kept, short = (LONGEST - len(_CUT) - 2) // 2, text
    while len(json.dumps(short)) > LONGEST:
        short = f"{text[:kept]}{_CUT}{text[-kept:]}"
        kept = kept * 3 // 4
    return short


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
