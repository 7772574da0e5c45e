"""Sample pictures for the page: which of them, made small where PIL is there, within a budget of bytes.

Reads files. A sheet holds one picture for each prompt; the page cuts them out, so that a sheet is sent once.
Refuses what is not a whole PNG.
"""

from __future__ import annotations

import base64
import importlib
import io
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGET = 7 << 20  # characters of base64, all together
MOST = 8  # moments of the run that are shown
_CELL = 320  # pixels of a picture on the page, at most: twice what it takes there
_SMALL = 64 << 10  # bytes that need no second writing
_QUALITY = 85
_GAP = 4  # pixels between the pictures of a sheet, as sample.py leaves them
_STEP = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet, ready to stand in the page."""

    name: str
    step: int | None
    width: int  # of the sheet as it was drawn
    height: int
    url: str
    shrunk: bool


@dataclass(frozen=True, slots=True)
class Gallery:
    """What is shown, and what only named."""

    sheets: tuple[Sheet, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]


def gather(folder: Path, names: list[str], prompts: int, budget: int = BUDGET) -> Gallery:
    """The first, the last and those between, as far as the budget goes; `prompts` are on each sheet."""
    writer = _pil()
    taken: dict[str, Sheet] = {}
    problems: list[str] = []
    for name in order(names):
        if len(taken) == MOST:
            break
        try:
            sheet = _sheet(folder / name, prompts, writer)
        except (OSError, ValueError) as error:
            problems.append(f"samples/{name} cannot be shown: {error}")
            continue
        if len(sheet.url) <= budget:
            budget -= len(sheet.url)
            taken[name] = sheet
    shown = tuple(taken[name] for name in names if name in taken)
    return Gallery(shown, tuple(name for name in names if name not in taken), tuple(problems))


def order(names: list[str]) -> list[str]:
    """Those that tell most first: the last, the first, then an even choice of the rest, then what is left."""
    even = [names[round(i * (len(names) - 1) / (MOST - 1))] for i in range(MOST)] if names else []
    return list(dict.fromkeys([*names[-1:], *names[:1], *even, *names]))


def cells(sheet: Sheet, prompts: int) -> list[tuple[int, int, int, int]]:
    """Where each prompt's picture lies on a sheet: left, top, width, height; none if it does not fit."""
    if prompts < 1:
        return []
    columns = math.ceil(math.sqrt(prompts))
    rows = math.ceil(prompts / columns)
    width, odd = divmod(sheet.width - _GAP, columns)
    height, uneven = divmod(sheet.height - _GAP, rows)
    if odd or uneven or width <= _GAP or height <= _GAP:
        return []
    places = (divmod(number, columns) for number in range(prompts))
    return [(_GAP + column * width, _GAP + row * height, width - _GAP, height - _GAP) for row, column in places]


def _sheet(path: Path, prompts: int, writer: Any) -> Sheet:
    raw = path.read_bytes()
    width, height = _dimensions(raw)
    match = _STEP.search(path.stem)
    step = int(match[1]) if match else None
    columns = math.ceil(math.sqrt(max(1, prompts)))
    small = None
    if writer is not None and (len(raw) > _SMALL or width > _CELL * columns):
        small = _shrunk(writer, raw, min(1.0, _CELL * columns / width))
    if small is not None and len(small) < len(raw):
        return Sheet(path.name, step, width, height, _url("jpeg", small), True)
    return Sheet(path.name, step, width, height, _url("png", raw), False)


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _dimensions(raw: bytes) -> tuple[int, int]:
    """Of a whole PNG; ValueError says what is wrong with it."""
    if raw[:8] != b"\x89PNG\r\n\x1a\n" or len(raw) < 33:
        raise ValueError("it is no PNG")
    if b"IEND" not in raw[-16:]:
        raise ValueError("it is cut short")
    width, height = struct.unpack(">II", raw[16:24])
    if not 0 < width <= 1 << 16 or not 0 < height <= 1 << 16:
        raise ValueError(f"its size is {width}x{height}")
    return width, height


def _pil() -> Any:
    """PIL's Image, where it can be imported: not every supervisor's Python has it, and none needs it."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        return None


def _shrunk(writer: Any, raw: bytes, scale: float) -> bytes | None:
    """The sheet as a smaller JPEG; None where PIL refuses it, as it does what is too large."""
    out = io.BytesIO()
    try:
        with writer.open(io.BytesIO(raw)) as picture:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture.convert("RGB").resize(size, writer.Resampling.LANCZOS).save(out, "JPEG", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, writer.DecompressionBombError):
        return None
    return out.getvalue()
