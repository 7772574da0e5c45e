"""Shares over time as a strip of coloured cells, one picture for all cards of a node. Pure.

A PNG made here of a few hundred bytes stands for thousands of elements. There are two: for a light page and a
dark one.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from clusterft_trainer.report.markup import Markup, el

_LEVELS = 100
_ROW = 12  # pixels a card on the page
_GAP = 2
Colour = tuple[int, int, int]
# From idle to busy; each step is darker (on a dark page lighter) than the one before, so that hue is not needed.
_LIGHT: tuple[Colour, ...] = ((232, 237, 243), (150, 186, 230), (45, 108, 192), (16, 56, 120))
_DARK: tuple[Colour, ...] = ((36, 42, 50), (33, 78, 138), (74, 144, 226), (178, 214, 255))


def draw(rows: Sequence[Sequence[float | None]], label: str) -> Markup:
    """A strip of as many rows; None is a cell that shows the ground."""
    height = len(rows) * (_ROW + _GAP) - _GAP
    return el(
        "picture",
        el("source", srcset=_url(rows, _DARK), media="(prefers-color-scheme: dark)"),
        el("img", src=_url(rows, _LIGHT), alt=label, style=f"height:{height}px"),
        class_="strip",
    )


def _url(rows: Sequence[Sequence[float | None]], ramp: Sequence[Colour]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(rows, ramp)).decode("ascii")


def png(rows: Sequence[Sequence[float | None]], ramp: Sequence[Colour]) -> bytes:
    """An indexed picture, a pixel a cell, with a see-through line between the rows."""
    palette = b"\0\0\0" + b"".join(bytes(_mixed(ramp, level / _LEVELS)) for level in range(_LEVELS + 1))
    width = max((len(row) for row in rows), default=1)
    lines: list[bytes] = []
    for number, row in enumerate(rows):
        if number:
            lines += [bytes(width)] * _GAP
        lines += [bytes(map(_index, row)).ljust(width, b"\0")] * _ROW
    header = struct.pack(">IIBBBBB", width, len(lines), 8, 3, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines), 9)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"tRNS", b"\0"), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _index(value: float | None) -> int:
    return 0 if value is None else 1 + round(min(1.0, max(0.0, value)) * _LEVELS)


def _mixed(ramp: Sequence[Colour], share: float) -> Colour:
    place = share * (len(ramp) - 1)
    low = min(int(place), len(ramp) - 2)
    part = place - low
    first, second = ramp[low], ramp[low + 1]
    return (
        round(first[0] + (second[0] - first[0]) * part),
        round(first[1] + (second[1] - first[1]) * part),
        round(first[2] + (second[2] - first[2]) * part),
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
