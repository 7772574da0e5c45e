"""An index that stays as it is for whoever began with it: a run over all its attempts, a worker while it works.

Owns a copy of one generation in another folder, by hard links where the file system has them: later ingests may
publish and delete what they like. Refuses nothing: whoever opens it decides what a missing or another one means.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from clusterft_trainer import disk
from clusterft_trainer.corpus.index import HEAD, READ, SCHEMA_NUMBER, Index
from clusterft_trainer.errors import storing

KEPT = "index"  # in a run's directory
LEFT = "index.left-"  # how folders there are called whose pictures the run is no longer to be held to
_NOTE = "kept.json"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_TRIES = 5  # others may publish, and so delete, while it is copied


@dataclass(frozen=True, slots=True)
class Kept:
    """An index that a run began with."""

    folder: Path
    index: Index
    key: str  # of the settings that it was made by


def note(key: str) -> dict[str, object]:
    """By which settings a run knows the index that it keeps."""
    return {
        "schema": SCHEMA_NUMBER,
        "key": key,  # <sources>-<rules>, as its folder in `.clusterft/index/` is called; follows the settings
    }


def kept(run_dir: Path) -> Kept | None:
    """What a run began with; None before its first attempt has read the sources."""
    folder = run_dir / KEPT
    try:
        key = json.loads((folder / _NOTE).read_text(encoding="utf-8"))["key"]
    except FileNotFoundError:
        return None
    return Kept(folder, Index.open(folder), str(key))


def keep(index: Index, run_dir: Path, key: str) -> Kept:
    """Have a run keep the index that is published now; what it has kept before stays."""
    with storing("The run's index", run_dir / KEPT):
        draft = run_dir / f"{disk.DRAFT}{KEPT}-{secrets.token_hex(4)}"
        try:
            _copied(index, draft, copies=True)
            _write(draft / _NOTE, note(key))
            disk.flush(draft)
            try:
                draft.rename(run_dir / KEPT)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            disk.flush(run_dir)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    found = kept(run_dir)
    assert found is not None
    return found


def renew(run_dir: Path, key: str) -> None:
    """Other settings name the same pictures: what a run has kept is from now on known by theirs."""
    disk.replace(run_dir / KEPT / _NOTE, json.dumps(note(key), indent=1))


def left(run_dir: Path) -> tuple[str, ...]:
    """Digests of the indexes that somebody has asked a run to leave."""
    folders = sorted(run_dir.glob(f"{LEFT}*"))
    return tuple(Index.open(folder).digest for folder in folders if (folder / HEAD).is_file())


@contextmanager
def held(index: Index, folder: Path) -> Iterator[Index]:
    """An index for as long as somebody works with it; where there are no links, the published one itself."""
    try:
        with storing("The index in use", folder):
            linked = _copied(index, folder, copies=False)
        yield Index.open(folder) if linked else index
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is left is cleared with those of the dead


def _copied(index: Index, folder: Path, *, copies: bool) -> bool:
    """Put a generation into a folder of its own; False where that takes links and there are none."""
    for left_ in reversed(range(_TRIES)):
        shutil.rmtree(folder, ignore_errors=True)
        place = folder / index.head.generation
        place.mkdir(parents=True)
        try:
            for name in READ:
                if not _put(index.folder / name, place / name, copies=copies):
                    return False
        except FileNotFoundError:
            if not left_:
                raise
            index = Index.open(index.folder.parent)  # it was published, and deleted, in the meantime
            continue
        break
    disk.flush(place)
    head = replace(index.head, bytes={name: index.head.bytes[name] for name in READ})
    _write(folder / HEAD, {"schema": SCHEMA_NUMBER, **asdict(head)})
    disk.flush(folder)
    return True


def _put(source: Path, target: Path, *, copies: bool) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not copies:
            return False
        shutil.copyfile(source, target)
        disk.flush(target)
    return True


def _write(path: Path, body: dict[str, object]) -> None:
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")
    disk.flush(path)
