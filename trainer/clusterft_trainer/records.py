"""The pictures of a run as a list: path, caption and size, in an order that every machine agrees on.

Torch-free. Owns finding pictures and reading captions; reads image headers only. Refuses a picture
without a caption, an empty folder and a file that is no picture: nothing is skipped silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from clusterft_trainer.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_EXIF_ORIENTATION = 274
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF values that swap width and height on display


@dataclass(frozen=True, slots=True)
class Record:
    """One picture as it is shown: size in pixels after EXIF rotation."""

    path: str
    name: str  # relative to its source folder; what error messages and digests use
    caption: str
    width: int
    height: int


def scan(folder: Path) -> list[Record]:
    """All pictures under a folder, sorted by relative name."""
    if not folder.is_dir():
        raise DataError(
            f"The picture folder {folder} does not exist on this node.",
            "Give a folder that every node sees under the same path: set data.sources.",
        )
    files = sorted(
        (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()),
        key=lambda p: p.relative_to(folder).as_posix(),
    )
    if not files:
        raise DataError(
            f"There is no picture in {folder} (looked for {', '.join(sorted(SUFFIXES))}).",
            "Put pictures there, each with a caption in a .txt file of the same stem.",
        )
    _refuse_missing_captions(folder, files)
    return [_read(folder, path) for path in files]


def digest(records: Iterable[Record]) -> str:
    """What a resumed run compares: names, captions and sizes, not where the folder is mounted."""
    rows = [(r.name, r.caption, r.width, r.height) for r in records]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _refuse_missing_captions(folder: Path, files: list[Path]) -> None:
    missing = [p for p in files if not p.with_suffix(".txt").is_file()]
    if missing:
        shown = ", ".join(p.relative_to(folder).as_posix() for p in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{len(missing)} of {len(files)} pictures in {folder} lack a caption: {shown}{more}.",
            "Write a .txt file of the same stem beside each; an empty file is an empty caption.",
        )


def _read(folder: Path, path: Path) -> Record:
    name = path.relative_to(folder).as_posix()
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not a readable picture ({error}).", "Replace or remove it.") from error
    if orientation in _SIDEWAYS:
        width, height = height, width
    try:
        caption = path.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"The caption {path.with_suffix('.txt')} is not UTF-8.", "Save it as UTF-8.") from error
    return Record(str(path), name, caption, width, height)
