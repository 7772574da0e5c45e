"""The thread that makes shards of what was encoded, and writes down what became of each task.

A task is over when `<task>.done` is there: then its shard is published and its problems are listed. Owns that
order. Refuses to publish a task that another worker has taken over.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clusterft_trainer.errors import storing
from clusterft_trainer.latents import shard, tables
from clusterft_trainer.latents.feeding import Problem
from clusterft_trainer.latents.key import KEY
from clusterft_trainer.latents.leases import DONE, OVER, Directory, Lease, Leases
from clusterft_trainer.latents.plan import Task
from clusterft_trainer.latents.pulse import Pulse
from clusterft_trainer.latents.shard import Form

PROBLEMS = "problems"  # folder beside the shards
_WAITING = 4  # batches between encoder and disk
_LOOK = 0.2  # seconds
_RECENT = 60.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where a plan is carried out."""

    shards: Path  # folder of the cache
    work: Directory
    group: str  # of the plan's leases in `work`
    leases: Leases
    pulse: Pulse

    def finished(self, task: str) -> bool:
        """Whether a task is over; asks the disk."""
        return self.work.read(f"{self.group}/{task}{DONE}") is not None

    @property
    def over(self) -> bool:
        """Whether the whole plan is."""
        return self.work.read(f"{self.group}{OVER}") is not None


@dataclass(slots=True)
class Under:
    """A task under way."""

    task: Task
    lease: Lease
    form: Form
    encoded: int = 0
    keys: list[bytes] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    lost: bool = False


class Tally:
    """What one worker has done, for its own account and for whoever watches."""

    def __init__(self) -> None:
        self.entries = 0
        self.tasks = 0
        self.problems = 0
        self.lost = 0
        self.encoding = 0.0  # seconds in the encoder
        self.waiting = 0.0  # seconds in which the encoder waited for inputs
        self.open = 0  # entries encoded, but of tasks that are not over
        self._recent: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def count(self, entries: int, waiting: float, encoding: float) -> None:
        """One batch more."""
        self.entries += entries
        self.waiting += waiting
        self.encoding += encoding
        self._recent.append((time.monotonic(), self.entries))
        while len(self._recent) > 2 and self._recent[1][0] < self._recent[-1][0] - _RECENT:
            self._recent.pop(0)

    def add(self, other: Tally) -> None:
        """What the same worker has done for an earlier plan."""
        self.entries += other.entries
        self.tasks += other.tasks
        self.problems += other.problems
        self.lost += other.lost
        self.encoding += other.encoding
        self.waiting += other.waiting

    @property
    def rate(self) -> float:
        """Entries a second in the last minute."""
        (first, before), (_, now) = self._recent[0], self._recent[-1]
        return (now - before) / max(1e-9, time.monotonic() - first)

    def told(self) -> dict[str, float | int]:
        """For the beat."""
        return {
            "entries": self.entries,
            "open": self.open,
            "rate": round(self.rate, 3),
            "problems": self.problems,
        }


@dataclass(slots=True)
class _Part:
    under: Under
    keys: list[bytes]
    arrays: list[np.ndarray]
    problems: Sequence[Problem]
    last: bool


class Writer:
    """Takes encoded batches in order; whatever goes wrong is raised where the next one is put."""

    def __init__(self, site: Site, tally: Tally, stop: threading.Event) -> None:
        self._site = site
        self._tally = tally
        self._stop = stop
        self._parts: queue.Queue[_Part] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all that was put is written."""
        self._check()
        return self._parts.unfinished_tasks == 0

    def put(
        self, under: Under, keys: list[bytes], arrays: list[np.ndarray], problems: Sequence[Problem], *, last: bool
    ) -> None:
        """Pass a batch on; waits while the disk is behind, unless all is to stop."""
        part = _Part(under, keys, arrays, problems, last)
        while not self._stop.is_set():
            self._check()
            try:
                return self._parts.put(part, timeout=_LOOK)
            except queue.Full:
                continue

    def settle(self, seconds: float) -> None:
        """Wait a moment for what is being written."""
        end = time.monotonic() + seconds
        while not self.idle and time.monotonic() < end:
            time.sleep(seconds / 10)

    def finish(self) -> None:
        """Wait until all is written."""
        while not self.idle:
            time.sleep(0.01)

    def close(self) -> None:
        """Write what is being written to its end, and no more."""
        self._closed.set()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                part = self._parts.get(timeout=_LOOK)
            except queue.Empty:
                continue
            try:
                if not part.under.lost:
                    self._add(part)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that puts
                self._error = error
                return
            finally:
                self._parts.task_done()

    def _add(self, part: _Part) -> None:
        under = part.under
        under.keys += part.keys
        under.problems += part.problems
        for number in range(len(part.keys)):
            under.payloads.append(shard.payload(under.form, [array[number] for array in part.arrays]))
        if part.last:
            self._end(under)

    def _end(self, under: Under) -> None:
        site, name = self._site, under.task.name
        # Of the entries that could be made: under the task's name there would be other bytes another time.
        keys = np.frombuffer(b"".join(under.keys), np.uint8).reshape(-1, KEY)
        path = site.shards / shard.name(under.form.width, under.form.height, keys)
        with storing("The shard", path):
            draft = tables.draft_of(path, site.leases.owner)
            try:
                if under.keys:
                    shard.write_draft(draft, under.form, keys, under.payloads)
                if site.pulse.lost(under.lease):
                    self.drop(under)
                    return
                if under.keys:
                    shard.publish(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            if under.problems:
                _list(site.shards / PROBLEMS, name, under.problems)
            told = {"schema": 1, "entries": len(under.keys), "problems": len(under.problems)}
            site.work.create(f"{site.group}/{name}{DONE}", json.dumps(told).encode())
        self._tally.tasks += 1
        self._tally.problems += len(under.problems)
        self._close(under)

    def drop(self, under: Under) -> None:
        """Somebody else does it now; nothing more of it is written."""
        under.lost = True
        self._tally.lost += 1
        self._close(under)

    def _close(self, under: Under) -> None:
        self._tally.open -= under.encoded
        under.payloads.clear()
        self._site.pulse.drop(under.lease)


def _list(folder: Path, task: str, found: Sequence[Problem]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(line(one)) for one in found]
    path = folder / f"{task.removesuffix(shard.SUFFIX)}.jsonl"
    draft = tables.draft_of(path)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def line(found: Problem) -> dict[str, str]:
    """An entry that could not be made."""
    return {
        "key": found.key.hex(),
        "kind": found.kind,  # broken: so it stays; changed: since it was read; unreadable: tried again
        "name": found.name,  # relative to its source
        "file": found.file,
        "why": found.why[:500],
    }


def problems(folder: Path) -> list[dict[str, str]]:
    """All problems that are listed in a cache's folder."""
    found = []
    for path in sorted((folder / PROBLEMS).glob("*.jsonl")):
        if path.name.startswith(tables.DRAFT):
            continue  # of one that was killed while it wrote
        try:
            found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise tables.damaged(path, "it is no list of problems") from error
    return found


def hopeless(found: Iterable[Mapping[str, str]]) -> np.ndarray:
    """Keys (n, 16) of broken pictures: they will stay so until they change, and then they have other keys."""
    return key_table(p for p in found if p["kind"] == "broken")


def key_table(found: Iterable[Mapping[str, str]]) -> np.ndarray:
    """Keys (n, 16) of listed problems."""
    return np.frombuffer(b"".join(bytes.fromhex(p["key"]) for p in found), np.uint8).reshape(-1, KEY)
