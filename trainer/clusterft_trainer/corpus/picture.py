"""Whether some bytes are a picture that training can decode, how large it is shown, and what marks its content.

Owns the verdict on one picture: the fast reader first, Pillow for all that it leaves open, and the most pixels
that Pillow would decode. A picture that Pillow would refuse when it is needed is refused here. Pillow is imported
when the first such picture comes.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO

from clusterft_trainer.config.sources import PICTURES
from clusterft_trainer.corpus.headers import SIDEWAYS, Bytes, Size, shown

SUFFIXES = PICTURES
MOST_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)  # Pillow refuses to decode more
_ORIENTATION = 274
# What Pillow raises over a file that is not as it should be
BROKEN = (
    RuntimeError,  # of libavif
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    struct.error,
    zlib.error,
)


class NoPicture(Exception):
    """Bytes that are no whole picture; says why."""


class TooLarge(NoPicture):
    """More pixels than a picture has: decoding it would take all memory."""


def size_of(data: Bytes, size: int) -> Size:
    """Width and height as shown of the picture in the first `size` bytes."""
    found = shown(data, size) or _judged(data, size)
    if found[0] * found[1] > MOST_PIXELS:
        raise TooLarge(f"{found[0]}x{found[1]} pixels, more than {MOST_PIXELS}")
    return found


def _judged(data: Bytes, size: int) -> Size:
    """What Pillow says, by decoding."""
    from PIL import Image

    if not size:
        raise NoPicture("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and untidy metadata
        try:
            with Image.open(BytesIO(bytes(data[:size]))) as image:
                width, height = image.size
                told = image.getexif().get(_ORIENTATION, 1)
                image.load()
        except Image.DecompressionBombError as error:
            raise TooLarge(str(error)) from error
        except BROKEN as error:
            raise NoPicture(str(error).replace(_memory_address(error), "bytes") or type(error).__name__) from error
    return (height, width) if told in SIDEWAYS else (width, height)


def _memory_address(error: BaseException) -> str:
    """Pillow names what it could not read by its place in memory, which tells nobody anything."""
    text = str(error)
    start = text.find("<_io.BytesIO")
    return text[start : text.find(">", start) + 1] if start >= 0 else "\0"


def suffix_of(name: str) -> str:
    """What follows the last dot, if it is a picture's."""
    return name[name.rfind(".") :].lower() if "." in name.rpartition("/")[2] else ""


def stem_of(name: str) -> str:
    """A name without a picture's suffix."""
    return name[: name.rfind(".")] if suffix_of(name) in SUFFIXES else name
