"""How a file that matters is written: under another name, flushed, then given its own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from clusterft_trainer.errors import storing

DRAFT = ".new-"


def replace(path: Path, text: str) -> None:
    """Write a file under another name, flush it and give it its own: a reader sees all or nothing of it."""
    draft = path.with_name(f"{DRAFT}{path.name}-{secrets.token_hex(4)}")
    with storing("The index", path):
        draft.write_text(text, encoding="utf-8")
        flush(draft)
        draft.replace(path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Have the disk keep a file or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
