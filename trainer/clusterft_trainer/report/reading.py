"""The files of a run directory, read into an Account. What cannot be read is put down in words, never raised.

Owns the names of the files. Streams what may be large: of log lines only each rank's last words are kept.
Refuses to write anything.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar, get_args

from clusterft_trainer import progress, stream
from clusterft_trainer.report import loose
from clusterft_trainer.report.account import MOST, Account, Delivered, Kept, Listener
from clusterft_trainer.report.soundness import sound

_LONGEST = 1 << 20  # bytes of a line; what is longer was not written by a supervisor
_LAST_WORDS = 24  # lines of each rank
_TAIL_TEXT = 2_000  # characters of one of them
_DOCUMENT = 64 << 20  # bytes
_STEP_FOLDER = re.compile(r"step-(\d{8})")
_MANIFEST_SCHEMA = 2
_RECORD_SCHEMA = 2
_OUTCOME_SCHEMA = 1
# As stream.encode writes it: nearly all of a large file is log lines, and they need not be decoded.
_LOG = re.compile(rb'\{"schema": %d, "kind": "log", "rank": (-?\d{1,9}), ' % stream.SCHEMA)
_KINDS = {kind.kind for kind in (*get_args(stream.Plain), stream.Progress)}
_T = TypeVar("_T")


def read(folder: Path) -> Account:
    """Everything that a run directory tells."""
    account = Account(folder)
    account.record = _document(account, "run.json", _RECORD_SCHEMA)
    account.outcome = _document(account, "outcome.json", _OUTCOME_SCHEMA)
    account.job_text = _read_or(account, "job.yaml", lambda: _text(folder / "job.yaml"), "")
    _read_or(account, "metrics.jsonl", lambda: _metrics(account), None)
    events = _names(account, "events", lambda name: name.endswith(".jsonl"))
    if not events:
        account.unread.append("events/ holds no file: nothing is known of attempts, restarts and nodes")
    for name in events:
        _read_or(account, f"events/{name}", partial(_events, account, name), None)
    steps = _names(account, "checkpoints", lambda name: _STEP_FOLDER.fullmatch(name) is not None)
    account.checkpoints = [_checkpoint(folder / "checkpoints" / name) for name in steps]
    account.samples = _names(account, "samples", lambda name: name.endswith(".png"))
    account.exports = _read_or(account, "export", lambda: _exports(folder / "export"), [])
    return account


def _read_or(account: Account, name: str, work: Callable[[], _T], otherwise: _T) -> _T:
    """Do the reading; where the file is missing or the disk refuses, say so and go on."""
    try:
        return work()
    except FileNotFoundError:
        if "/" in name or "." in name:
            account.unread.append(f"{name} is not there")
    except OSError as error:
        account.unread.append(f"{name} cannot be read: {error.strerror or error}")
    return otherwise


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_DOCUMENT).decode("utf-8", "replace")


def _document(account: Account, name: str, schema: int) -> object:
    text = _read_or(account, name, lambda: _text(account.folder / name), "")
    if not text:
        return None
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        account.unread.append(f"{name} is not whole: {error}")
        return None
    written = loose.number(body, "schema")
    if written is not None and written > schema:
        account.unread.append(
            f"{name} has schema {written:g}, this version knows {schema}: what it knows of it is shown"
        )
    return body


def _names(account: Account, folder: str, wanted: Callable[[str], bool]) -> list[str]:
    def listed() -> list[str]:
        return sorted(name for name in os.listdir(account.folder / folder) if wanted(name))

    return _read_or(account, folder, listed, [])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; an overlong one comes as its beginning, which nobody can decode."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            yield number, line
            while len(line) == _LONGEST and not line.endswith(b"\n"):
                line = file.readline(_LONGEST)


class _Complaints:
    """Lines of one file that could not be read: how many, which was the first, and whether they are newer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._broken: list[int] = []  # the first, and how many
        self._newer = 0

    def add(self, number: int, line: bytes, schema: int) -> None:
        if not line.strip():
            return
        if _is_newer(line, schema):
            self._newer += 1
            return
        self._broken = [self._broken[0], self._broken[1] + 1] if self._broken else [number, 1]

    def told(self) -> list[str]:
        found = []
        if self._broken:
            first, many = self._broken
            rest = "" if many == 1 else f" and {many - 1} more"
            found.append(f"{self._name}: line {first}{rest} cannot be read (cut short, or not a line of ours)")
        if self._newer:
            found.append(f"{self._name}: {self._newer} lines are of a newer version than this page's maker")
        return found


def _is_newer(line: bytes, schema: int) -> bool:
    """Of a newer schema, or of this one with a kind that a later writer has added."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return False
    written, kind = loose.number(body, "schema"), loose.words(body, "kind")
    if written is None or not kind:
        return False
    return written > schema or (written == schema and kind not in _KINDS)


def _metrics(account: Account) -> None:
    complaints = _Complaints("metrics.jsonl")
    try:
        for number, line in _lines(account.folder / "metrics.jsonl"):
            step = _step(line)
            if step is None:
                complaints.add(number, line, progress.SCHEMA)
            else:
                account.metrics.add(step)
    finally:
        account.unread.extend(complaints.told())


def _step(line: bytes) -> progress.Step | None:
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    record = progress.from_dict({**body, "kind": progress.Step.kind}) if isinstance(body, dict) else None
    if isinstance(record, progress.Step) and sound(stream.Progress(0, record)):
        return record
    return None


def _events(account: Account, name: str) -> None:
    node = name.removesuffix(".jsonl")
    listener, complaints = Listener(account, node), _Complaints(f"events/{name}")
    tails: dict[int, deque[bytes]] = {}
    logs = 0
    try:
        for number, line in _lines(account.folder / "events" / name):
            if match := _LOG.match(line):
                logs += 1
                _keep(tails, int(match[1]), line)
                continue
            known = _decoded(line)
            if known is None:
                complaints.add(number, line, stream.SCHEMA)
            elif isinstance(known, stream.Log):
                logs += 1
                _keep(tails, known.rank, line)
            else:
                listener.hear(known)
    finally:
        account.node(node).log_lines = logs
        account.unread.extend(complaints.told())
        for rank, raw in tails.items():
            account.tails[node, rank] = [one for line in raw if (one := _said(line)) is not None]


def _keep(tails: dict[int, deque[bytes]], rank: int, line: bytes) -> None:
    known = tails.get(rank)
    if known is None:
        if len(tails) > MOST:
            return
        known = tails[rank] = deque(maxlen=_LAST_WORDS)
    if len(line) > 4 * _TAIL_TEXT:
        short = _said(line)
        if short is None:
            return
        line = stream.encode(stream.Log(rank, short, 0.0)).encode("utf-8", "replace")
    known.append(line)


def _said(line: bytes) -> str | None:
    known = _decoded(line)
    return known.text[:_TAIL_TEXT] if isinstance(known, stream.Log) else None


def _decoded(line: bytes) -> stream.Line | None:
    try:
        known = stream.decode(line.decode("utf-8", "replace"))
    except (TypeError, ValueError, AttributeError, RecursionError):  # JSON, but of no shape that a line has
        return None
    return known if known is not None and sound(known) else None


def _checkpoint(folder: Path) -> Kept:
    """A checkpoint as its manifest tells, and whether its files have the sizes that it says."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    step = int(match[1]) if match else 0
    try:
        body = json.loads(_text(folder / "manifest.json"))
    except OSError as error:
        return Kept(step, (), None, None, None, None, f"its manifest cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError):
        return Kept(step, (), None, None, None, None, "its manifest is not whole")
    files = loose.pairs(body, "files")
    sizes = {name: loose.whole(entry, "size") for name, entry in files.items()}
    return Kept(
        step=loose.whole(body, "step") or step,
        roles=tuple(loose.texts(body, "roles")),
        held_out=loose.number(body, "held_out"),
        size=sum(size or 0 for size in sizes.values()),
        written=loose.number(body, "written"),
        global_batch=loose.whole(body, "global_batch"),
        problem=_problem(folder, loose.whole(body, "schema"), sizes),
        config=loose.at(body, "config"),
    )


def _problem(folder: Path, schema: int | None, sizes: dict[str, int | None]) -> str:
    if schema is None or schema > _MANIFEST_SCHEMA:
        return f"its manifest has schema {schema}, this version knows {_MANIFEST_SCHEMA}"
    if not sizes:
        return "its manifest lists no files"
    for name, size in sizes.items():
        try:
            real = (folder / name).stat().st_size
        except (OSError, ValueError) as error:
            return f"{name} is missing ({error})" if isinstance(error, ValueError) else f"{name} is missing"
        if real != size:
            return f"{name} has {real} bytes, its manifest says {size}"
    return ""


def _exports(folder: Path) -> list[Delivered]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [Delivered(str(path.relative_to(folder.parent)), path.stat().st_size) for path in islice(found, MOST)]
