"""Ingest against a bare loop that does the same reading: pairs, a second run, kohya's JSON, a whole small process.

The sets are synthetic. A few hundred distinct pictures are each linked under many names, so that a set of any size
lies in the page cache: what is measured is the work, not the disk. On a cold disk all is closer to the floor.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _figures import Figure, ratio
from PIL import Image

PROCESSES = 2
DISTINCT = 200
SMALL, USUAL = 64, 1024  # KB of a picture: a thumbnail, and one of a megapixel or more
_PART = 2048
_SOURCES = "from clusterft_trainer.config.sources import FolderSource, KohyaSource"
_CAPTION = "1girl, solo, long hair, looking at viewer, blush, smile, open mouth, bangs, blue eyes, number "


def pairs(quick: bool, scratch: Path) -> list[Figure]:
    """A first ingest against the floor, then one after adding a hundredth; small pictures and usual ones.

    What a second run saves is the reading, so the larger the pictures, the more; the floor is hardest to keep near
    to where there is next to nothing to read.
    """
    return [*_pairs(quick, scratch, SMALL, None), *_pairs(quick, scratch, USUAL, 0.1)]


def _pairs(quick: bool, scratch: Path, kilobytes: int, target: float | None) -> list[Figure]:
    count, rounds = (4_000, 1) if quick else (200_000, 3)
    root = _made_pairs(scratch / "pairs", count, kilobytes)
    ours, bare, again = [], [], []
    for number in range(rounds):
        out = scratch / f"out{number}"
        bare.append(_timed(lambda: _bare(root)))
        ours.append(_timed(lambda out=out: _ingested(root, out)))
        added = _add(root, count + number * (count // 100), count // 100)
        again.append(_timed(lambda out=out: _ingested(root, out)))
        shutil.rmtree(out)
        for path in added:
            path.unlink()
    shutil.rmtree(root)
    name = f"ingest.{kilobytes}KB"
    share = statistics.median(again) / statistics.median(ours)
    return [
        *ratio(f"{name}.floor", ours, bare, 2.0),
        Figure(f"{name}.rate", round(count / statistics.median(ours)), "pairs/s"),
        Figure(f"{name}.again", round(share, 3), "x", target, None if target is None else share <= target),
    ]


def kohya(quick: bool, scratch: Path) -> list[Figure]:
    """A large metadata JSON with a latent cache for each entry: the memory of all processes at their peak."""
    count = 20_000 if quick else 2_000_000
    root = _made_kohya(scratch / "kohya", count)
    source = f"KohyaSource(kohya={str(root / 'meta.json')!r})"
    began = time.perf_counter()
    memory = _peak(_program(source, scratch / "out-kohya"))
    seconds = time.perf_counter() - began
    size = (root / "meta.json").stat().st_size
    for path in (root, scratch / "out-kohya"):
        shutil.rmtree(path)
    return [
        Figure("kohya.entries", count, "entries"),
        Figure("kohya.json", round(size / 1e6, 1), "MB"),
        Figure("kohya.memory", round(memory / 1e6, 1), "MB", 1500, memory <= 1.5e9),
        Figure("kohya.seconds", round(seconds, 2), "s"),
    ]


def process(quick: bool, scratch: Path, kilobytes: int = USUAL) -> list[Figure]:
    """A whole process that ingests 20,000 pairs, without the start of an interpreter, against the floor."""
    count, rounds = (2_000, 1) if quick else (20_000, 5)
    root = _made_pairs(scratch / "small", count, kilobytes)
    program = _program(f"FolderSource(folder={str(root)!r})", scratch / "out-small")
    ours, bare, start = [], [], []
    for _ in range(rounds):
        start.append(_timed(lambda: _ran([sys.executable, "-c", "pass"])))
        bare.append(_timed(lambda: _bare(root)))
        ours.append(_timed(lambda: _ran(program)))
        shutil.rmtree(scratch / "out-small")
    shutil.rmtree(root)
    without = [seconds - statistics.median(start) for seconds in ours]
    return [
        Figure("process.start", round(statistics.median(start), 4), "s"),
        *ratio("process.against_floor", without, bare, 2.0),
    ]


def _made_pairs(root: Path, count: int, kilobytes: int) -> Path:
    """Flat, as kohya's users have it."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(DISTINCT):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64 + number % 40, 96, 3), np.uint8)).save(out, "JPEG")
        data = out.getvalue()
        # comments make it as large as a picture of a megapixel, without the time to draw one
        filling = b"\xff\xfe\xff\xff" + rng.bytes(65_533)
        whole = data[:2] + filling * (kilobytes // 64) + data[2:]
        (root.parent / f"{root.name}-{number}.jpg").write_bytes(whole)
    _add(root, 0, count)
    for number in range(DISTINCT):
        (root.parent / f"{root.name}-{number}.jpg").unlink()
    return root


def _add(root: Path, first: int, count: int) -> list[Path]:
    made = []
    for number in range(first, first + count):
        path = root / f"{number:08d}.jpg"
        original = root.parent / f"{root.name}-{number % DISTINCT}.jpg"
        os.link(original if original.exists() else root / f"{number % DISTINCT:08d}.jpg", path)
        path.with_suffix(".txt").write_text(f"{_CAPTION}{number}")
        made += [path, path.with_suffix(".txt")]
    return made


def _made_kohya(root: Path, count: int) -> Path:
    """Caches are linked, too: each inode takes 50,000 names."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "one").mkdir(parents=True)
    for number in range(count // 50_000 + 1):
        np.savez(
            root / "one" / f"{number}.npz",
            latents=np.zeros((4, 8, 8), np.float32),
            original_size=np.array([1024, 768]),
            crop_ltrb=np.zeros(4),
        )
    tags = _CAPTION * 4
    with (root / "meta.json").open("w") as file:
        file.write("{\n")
        for number in range(count):
            os.link(root / "one" / f"{number // 50_000}.npz", root / f"{number:08d}.npz")
            body = {"tags": f"{tags}{number}", "train_resolution": [1024, 768]}
            file.write(f'  "{number:08d}": {json.dumps(body, indent=2)}{"," if number + 1 < count else ""}\n')
        file.write("}\n")
    return root


def _bare_part(names: list[str]) -> int:
    total = 0
    for name in names:
        for path in (name, name[:-4] + ".txt"):
            size = os.stat(path).st_size
            handle = os.open(path, os.O_RDONLY)
            total += len(os.read(handle, size + 1))
            os.close(handle)
    return total


def _bare(root: Path) -> None:
    """The floor: list, stat, open, read, close, in as many processes."""
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        names = sorted(os.path.join(root, name) for name in os.listdir(root) if name.endswith(".jpg"))
        list(pool.imap_unordered(_bare_part, [names[k : k + _PART] for k in range(0, len(names), _PART)]))


def _ingested(root: Path, out: Path) -> None:
    from clusterft_trainer.config.data import Problems
    from clusterft_trainer.config.sources import FolderSource
    from clusterft_trainer.corpus.ingest import ingest

    ingest([FolderSource(folder=str(root))], Problems(), out / "x-y", processes=PROCESSES, say=lambda _: None)


def _program(source: str, out: Path) -> list[str]:
    lines = [
        "from pathlib import Path",
        "from clusterft_trainer.config.data import Problems",
        _SOURCES,
        "from clusterft_trainer.corpus.ingest import ingest",
        f"ingest([{source}], Problems(), Path({str(out)!r}) / 'x-y', processes={PROCESSES}, say=lambda _: None)",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


def _ran(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _peak(command: list[str]) -> int:
    """The most memory of a process and its children together: private, plus its share of what is shared."""
    process, most = subprocess.Popen(command), 0
    while process.poll() is None:
        most = max(most, sum(_held(number) for number in _family(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def _family(number: int) -> list[int]:
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:  # it has just ended
        return []
    return [number, *(one for child in children for one in _family(int(child)))]


def _held(number: int) -> int:
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
