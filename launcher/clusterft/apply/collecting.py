"""All that tells of a run that failed, fetched: streams of its ranks, kernels' messages, containers, files.

Reads and changes nothing. Big logs pass through a line at a time; what cannot be read is kept as words, and never
left out.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO

from clusterft.apply import listening, reading, runs
from clusterft.apply.runs import Located
from clusterft.board import Board
from clusterft.board.verdict import Verdict, judge
from clusterft.diagnosis import naming, sieve
from clusterft.diagnosis.heard import Heard, Source
from clusterft.diagnosis.hearing import Hearing, inspected
from clusterft.engine import Engine, NoEngine
from clusterft.errors import ClusterftError, UsageError
from clusterft.events import Gone, Said
from clusterft.remote import Asker, Remote
from clusterft.runtime import docker

_CHUNK = 1 << 18
_LONGEST = 1 << 20  # bytes of a line; what is longer is cut
_KEPT = 12  # last lines of a calm piece: what somebody wrote last
_FILES = 5_000
_INSPECT = 4 << 20
_KERNEL_SECONDS = 20.0
_BEFORE, _AFTER = 900.0, 300.0  # seconds around a run in which its kernels' words matter
_SKIPPED = frozenset(
    ".pt .pth .bin .safetensors .npz .npy .png .jpg .webp .html .zip .tar .parquet .md .py .yaml .csv".split()
)
# The kernel's messages with unix times: from the journal, else from its ring, whose times count from the start.
_KERNEL = r"""
since=$1; pattern=$2
if out=$(journalctl -k -q --no-pager -o short-unix --since "@$since" 2>&1) && [ -n "$out" ]; then
    echo "unix"; printf '%s\n' "$out" | grep -E "$pattern" | tail -n 2000; exit 0
fi
if out=$(dmesg 2>&1); then
    up=$(cut -d ' ' -f 1 /proc/uptime); now=$(date +%s)
    echo "boot $now $up"; printf '%s\n' "$out" | grep -E "$pattern" | tail -n 2000; exit 0
fi
echo "unread"; printf '%s\n' "$out" | tail -n 1
"""
_WORDS = (
    "[Kk]illed process|NVRM: Xid|nfs: server|[Rr]emounting filesystem read-only|blocked for more than|oom-kill|"
    "I/O error|uncorrectable"
)


@dataclass(slots=True)
class Collected:
    """What was heard of a run, and what the run's own gang made of it."""

    heard: Heard
    run: str = ""
    state: str = ""
    verdict: Verdict | None = None
    unread: list[str] = field(default_factory=list)


# -- files that are given --------------------------------------------------------------------------


def files(paths: tuple[Path, ...]) -> Collected:
    """From logs and folders of logs; UsageError for one that is not there."""
    hearing = Hearing()
    unread: list[str] = []
    for path, root in _chosen(paths, unread):
        try:
            year = time.gmtime(path.stat().st_mtime).tm_year
            _read(hearing, path, naming.source(str(path), year, str(root) if root else ""))
        except (OSError, EOFError, zlib.error) as error:
            unread.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    heard = hearing.done()
    heard.unread += tuple(unread)
    return Collected(heard)


def _chosen(paths: tuple[Path, ...], unread: list[str]) -> Iterator[tuple[Path, Path | None]]:
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no file {path}", remedy="clusterft doctor --log FILE, or a folder of logs")
        if not path.is_dir():
            yield path, None
            continue
        found = sorted(one for one in _below(path) if one.suffix.lower() not in _SKIPPED and one.is_file())
        if not found:
            unread.append(f"{path}: no logs in it")
        if len(found) > _FILES:
            unread.append(f"{path}: {len(found) - _FILES} of {len(found)} files, the last by name")
        yield from ((one, path) for one in found[:_FILES])


def _below(folder: Path) -> Iterator[Path]:
    """Of a run's folder the streams, which have every line of its logs with its time."""
    if (folder / "run.json").is_file() and (folder / "events").is_dir():
        return (folder / "events").glob("*.jsonl")
    return (one for one in folder.rglob("*") if one.name not in ("note.json", "run.json", "outcome.json"))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed:
            yield packed  # type: ignore[misc]
    else:
        with path.open("rb") as file:
            yield file


def _read(hearing: Hearing, path: Path, source: Source) -> None:
    hearing.heard.files += 1
    with _opened(path) as file:
        first = file.read(_CHUNK)
        if first.lstrip()[:1] == b"[" and b'"State"' in first:
            whole = first + file.read(_INSPECT)
            hearing.heard.ends += inspected(whole.decode("utf-8", errors="replace"), source)
            return
        number, rest = 0, b""
        while first:
            piece, cut, tail = (rest + first).rpartition(b"\n")
            rest = tail if len(tail) <= _LONGEST else tail[: _LONGEST // 2]
            number = _take(hearing, source, number, piece + cut)
            first = file.read(_CHUNK)
        _take(hearing, source, number, rest)


def _take(hearing: Hearing, source: Source, number: int, piece: bytes) -> int:
    """Whole lines; the number of the last."""
    if not piece:
        return number
    rows = piece.split(b"\n")
    if not rows[-1]:
        rows.pop()
    begin = 0
    if len(rows) > _KEPT and sieve.calm(piece):
        begin = len(rows) - _KEPT
        hearing.skip(source, begin)
    for place in range(begin, len(rows)):
        hearing.take(source, number + place + 1, rows[place])
    return number + len(rows)


# -- a run of ours ---------------------------------------------------------------------------------


def run(name: str, hosts: Path | None, cluster: str | None, asker: Asker | None) -> Collected:
    """From the nodes and the shared dir, whichever can be read."""
    with runs.locate(name, hosts, cluster, asker) as located:
        offsets = reading.clock_offsets(located.fleet)
        board = reading.empty(located, offsets)
        hearing = Hearing()
        hearing.heard.offsets, hearing.heard.compared = offsets, len(offsets) > 1
        unread: list[str] = []
        _listen(located, hearing, board, unread)
        began = float(located.record.get("began") or 0.0) or _first(hearing)
        for part in located.fleet.unreached:
            unread.append(f"{part.node}: {part.words}")
        _kernels(located, hearing, began, unread)
        _containers(located, hearing, unread)
        hearing.heard.nodes = tuple(part.node for part in located.parts)
        heard = hearing.done()
        heard.unread += tuple(dict.fromkeys(unread))
        heard.end = {"ok": "ok", "stopped": "stopped"}.get(located.state, "")
        over = located.state not in ("running",)
        return Collected(heard, located.run, located.state, judge(board) if over else None)


def _listen(located: Located, hearing: Hearing, board: Board, unread: list[str]) -> None:
    before, now = reading.sources(located)
    numbers: dict[str, int] = {}
    sources: dict[str, Source] = {}
    earlier = listening.listen(before, follow=False, offsets=board.offsets)
    for event in chain(earlier, listening.listen(now, follow=False, offsets=board.offsets)):
        if event is None:
            continue
        board.see(event)
        if isinstance(event, Said):
            node = event.node
            if node not in sources:
                sources[node] = Source(f"events/{node}.jsonl", node=node)
                hearing.heard.files += 1
            numbers[node] = numbers.get(node, 0) + 1
            hearing.events.hear(sources[node], numbers[node], event.line)
        elif isinstance(event, Gone):
            unread.append(f"{event.node}: {event.words}")


def _first(hearing: Hearing) -> float:
    times = [voice.first_at for voice in hearing.voices() if voice.first_at is not None]
    return min(times, default=0.0)


def _kernels(located: Located, hearing: Hearing, began: float, unread: list[str]) -> None:
    """What each node's kernel said of memory, cards, disks and shares meanwhile."""
    since = str(int(max(0.0, began - _BEFORE)))

    def one(_: str, remote: Remote) -> str:
        done = remote.run(("sh", "-c", _KERNEL, "sh", since, _WORDS), seconds=_KERNEL_SECONDS)
        return done.out

    for node, said in located.fleet.each(one).items():
        if not isinstance(said, str):
            unread.append(f"{node}: its kernel's messages: {said.what}")
            continue
        head, _, text = said.partition("\n")
        if head.startswith("unread") or not head:
            why = text.strip().splitlines()[-1:] or ["no answer"]
            unread.append(f"{node}: its kernel's messages: {why[0]}   (sudo dmesg -T there)")
            continue
        _kernel(hearing, node, head, text, float(since))


def _kernel(hearing: Hearing, node: str, head: str, text: str, since: float) -> None:
    booted = None
    words = head.split()
    if words[0] == "boot" and len(words) == 3:
        booted = float(words[1]) - float(words[2])
    source = Source(f"dmesg of {node}", node=node, booted=booted)
    for number, row in enumerate(text.splitlines(), 1):
        hearing.kernel(source, number, row, since)


def _containers(located: Located, hearing: Hearing, unread: list[str]) -> None:
    """How those that are still there have ended."""
    if all(part.runtime == "process" for part in located.parts):
        return

    def one(node: str, remote: Remote) -> list[str]:
        with Engine(remote, docker.command(remote)) as engine:
            owner = docker.owner(remote)
            found = docker.find(engine, cluster=located.cluster.name, run=located.run, owner=owner)
            return [docker.raw(engine, each.id) for each in found]

    def careful(node: str, remote: Remote) -> list[str] | ClusterftError:
        try:
            return one(node, remote)
        except (NoEngine, ClusterftError) as error:
            return error

    for node, said in located.fleet.each(careful).items():
        if isinstance(said, ClusterftError):
            unread.append(f"{node}: its containers: {said.what}")
            continue
        source = Source(f"docker inspect on {node}", node=node)
        for text in said:
            hearing.heard.ends += inspected(text, source)
        if not said and node in {part.node for part in located.parts}:
            unread.append(f"{node}: its container has been cleared away, and with it its exit code")
