"""How large a picture is shown, from its bytes alone: PNG, JPEG, WebP and BMP without a decoder.

Owns the fast answer, and gives it only where the file is as its standard says from the first byte to the last:
a whole picture, and an EXIF orientation that can be read. Refuses to guess: whatever is unusual, truncated or evil
gets no answer here, and Pillow judges it (picture.py), as it will when the picture is decoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from mmap import mmap
from struct import Struct, error

Bytes = bytes | bytearray | mmap
Size = tuple[int, int]

SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_ORIENTATION, _SHORT = 274, 3
_PNG_CHUNK, _PNG_HEAD = Struct(">I4s"), Struct(">IIBB")
_PAIR, _LITTLE_PAIR = Struct(">HH"), Struct("<HH")
_RIFF_CHUNK = Struct("<4sI")
_BMP = Struct("<I4xIIiiHHI")
_ENTRIES = {
    b"II*\0": (Struct("<I"), Struct("<H"), Struct("<HHIHH")),
    b"MM\0*": (Struct(">I"), Struct(">H"), Struct(">HHIHH")),
}
_SEGMENT = Struct(">BBH")
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # of JPEG: those that every decoder reads
# All but tables, comments and foreign metadata: what has no length, rare codings, EXIF, the pixels
_TELLING = frozenset(range(256)) - {0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE}
_XMP_MARK = b"tiff:Orientation"


def shown(data: Bytes, size: int) -> Size | None:
    """Width and height of the picture in the first `size` bytes, after rotation; None: let a decoder judge."""
    reader = _READERS.get(bytes(data[:2]))
    if reader is None:
        return None
    try:
        return reader(data, size)
    except (error, IndexError):  # a length points behind the end
        return None


def orientation(exif: bytes) -> int | None:
    """What an EXIF block says: 0 if it does not tell, None if it is not sound."""
    for _ in range(2):
        exif = exif.removeprefix(b"Exif\0\0")
    found = _ENTRIES.get(exif[:4])
    if found is None:
        return None
    long, short, entry = found
    try:
        (start,) = long.unpack_from(exif, 4)
        (count,) = short.unpack_from(exif, start)
        if start + 2 + 12 * count > len(exif):
            return None
        told = 0
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value, _ = entry.unpack_from(exif, place)
            if tag == _ORIENTATION:
                if kind != _SHORT or number != 1:
                    return None
                told = value
    except error:
        return None
    return told


def _turned(width: int, height: int, told: int | None) -> Size | None:
    if told is None or not width or not height:
        return None
    return (height, width) if told in SIDEWAYS else (width, height)


def _png(data: Bytes, size: int) -> Size | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[8:16] != b"\0\0\0\rIHDR":
        return None
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        return None
    width, height, _, _ = _PNG_HEAD.unpack_from(data, 16)
    told, at, pixels = 0, 33, False
    while at + 12 <= size:
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        if kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            return _turned(width, height, told) if pixels else None
        elif kind == b"eXIf":
            read = orientation(bytes(data[at + 8 : at + 8 + length]))
            if read is None or told:
                return None
            told = read
        elif kind in (b"tEXt", b"iTXt", b"zTXt") and not _harmless(data, at + 8, length, kind):
            return None
        at += 12 + length
    return None


def _harmless(data: Bytes, at: int, length: int, kind: bytes) -> bool:
    """Whether a text in a PNG is surely no metadata that tells an orientation, and not compressed."""
    word, found, rest = bytes(data[at : at + min(length, 82)]).partition(b"\0")
    if not found or kind == b"zTXt" or (kind == b"iTXt" and rest[:1] != b"\0"):
        return False
    return word != b"XML:com.adobe.xmp" and not word.startswith(b"Raw profile")


def _jpeg(data: Bytes, size: int) -> Size | None:
    at, told, found, take = 2, 0, None, _SEGMENT.unpack_from
    while True:
        mark, kind, length = take(data, at)
        if mark != 0xFF or at + 2 + length > size:
            return None
        if kind not in _TELLING:  # tables, comments
            at += 2 + length
            continue
        if kind == 0xDA:
            break
        if kind == 0xFF:  # filling
            at += 1
            continue
        if kind == 0xE1:
            read = _app1(bytes(data[at + 4 : at + 2 + length]))
        elif found or kind not in _FRAMES or data[at + 4] != 8 or data[at + 9] not in (1, 3, 4):
            return None
        else:
            height, width = _PAIR.unpack_from(data, at + 5)
            found, read = (width, height), 0
        if read is None or (read and told):
            return None
        told = told or read
        at += 2 + length
    # compressed data holds no such pair, so the one behind it is the end
    if found is None or (data[size - 2 : size] != b"\xff\xd9" and data.rfind(b"\xff\xd9", at, size) < 0):
        return None
    return _turned(*found, told)


def _app1(body: bytes) -> int | None:
    """The orientation that a segment of metadata tells, 0 if it does not, None if a decoder must read it."""
    if body.startswith(b"Exif\0\0"):
        return orientation(body)
    return None if _XMP_MARK in body else 0


def _webp(data: Bytes, size: int) -> Size | None:
    kind, length = _RIFF_CHUNK.unpack_from(data, 0)
    if kind != b"RIFF" or data[8:12] != b"WEBP" or length + 8 > size:
        return None
    end = length + 8
    kind, length = _RIFF_CHUNK.unpack_from(data, 12)
    if 20 + length > end:
        return None
    if kind == b"VP8X":
        return _extended_webp(data, end, length)
    return _turned(*_still(data, 20, kind), 0)


def _still(data: Bytes, at: int, kind: bytes) -> Size:
    """Size of one frame; 0 if it is none."""
    if kind == b"VP8 " and data[at + 3 : at + 6] == b"\x9d\x01\x2a" and not data[at] & 1:
        width, height = _LITTLE_PAIR.unpack_from(data, at + 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[at] == 0x2F:
        bits = int.from_bytes(data[at + 1 : at + 5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0


def _extended_webp(data: Bytes, end: int, length: int) -> Size | None:
    flags = data[20]
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    told, at, frames = 0, 20 + length + (length & 1), 0
    while at + 8 <= end:
        kind, length = _RIFF_CHUNK.unpack_from(data, at)
        if at + 8 + length > end:
            return None
        if kind in (b"VP8 ", b"VP8L"):
            if _still(data, at + 8, kind) != (width, height):
                return None
            frames += 1
        elif kind == b"ANMF":
            return None
        elif kind == b"EXIF" and flags & 8:
            read = orientation(bytes(data[at + 8 : at + 8 + length]))
            if read is None or told:
                return None
            told = read
        elif kind == b"XMP " and flags & 4 and _XMP_MARK in bytes(data[at + 8 : at + 8 + length]):
            return None
        at += 8 + length + (length & 1)
    return _turned(width, height, told) if frames == 1 else None


def _bmp(data: Bytes, size: int) -> Size | None:
    _, start, head, width, height, planes, bits, packing = _BMP.unpack_from(data, 2)
    if head not in (40, 108, 124) or planes != 1 or bits != 24 or packing or width <= 0:
        return None
    height = abs(height)
    return _turned(width, height, 0) if start + (width * 3 + 3) // 4 * 4 * height <= size else None


_READERS: dict[bytes, Callable[[Bytes, int], Size | None]] = {
    b"\x89P": _png,
    b"\xff\xd8": _jpeg,
    b"RI": _webp,
    b"BM": _bmp,
}
