"""From a picture where it lies, in a file, a tar or an object store, to the pixels of its bucket. Torch-free.

Owns decoding, turning as EXIF says, resizing and cropping. Refuses a picture that is not whole, or that is no
longer the one that was indexed: its error names it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.corpus import picture, reach
from clusterft_trainer.corpus.index import Row
from clusterft_trainer.errors import DataError, RunError

BROKEN = (
    *picture.BROKEN,
    Image.DecompressionBombError,
)  # what Pillow raises over a file that is not as it should be


def pixels(row: Row, fit: Fit, bucket: Bucket, mirrored: bool = False) -> np.ndarray:
    """The bucket-sized RGB pixels of a picture, (H, W, 3) uint8; transparency lies on white."""
    shown = f"{row.file} ({row.name})" if row.offset >= 0 else row.file
    try:
        with stored(row) as file, Image.open(file) as found:
            # before it is decoded: a file that was put in its place may be of any size
            if sorted(found.size) != sorted((row.width, row.height)):
                raise DataError(
                    f"The picture {shown} is {found.width}x{found.height} now; when it was indexed, "
                    f"{row.width}x{row.height} were to be shown.",
                    "Start again: what was changed is then indexed anew.",
                    everywhere=False,
                )
            image = rgb(ImageOps.exif_transpose(found))
    except BROKEN as error:
        raise DataError(
            f"The picture {shown} cannot be decoded ({error}).",
            "Replace or remove it; on a network share, check that this node reads it.",
            everywhere=False,
        ) from error
    return cut(image, fit, bucket, mirrored)


def cut(image: Image.Image, fit: Fit, bucket: Bucket, mirrored: bool = False) -> np.ndarray:
    """Resize, then the part that lies in the bucket; mirrored last, so that it is the same part."""
    size = (fit.resized_width, fit.resized_height)
    if image.size != size:
        smaller = size[0] * size[1] < image.size[0] * image.size[1]
        # averaging over areas when shrinking, as kohya does; Lanczos when growing
        how = Image.Resampling.BOX if smaller else Image.Resampling.LANCZOS
        image = image.resize(size, how)
    edges = (fit.left, fit.top, fit.left + bucket.width, fit.top + bucket.height)
    found = np.array(image.crop(edges), dtype=np.uint8)
    return np.ascontiguousarray(found[:, ::-1]) if mirrored else found


def rgb(image: Image.Image) -> Image.Image:
    """Without transparency, and without a palette."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


@contextmanager
def stored(row: Row) -> Iterator[BinaryIO]:
    """The picture's bytes; an OSError where they cannot be had."""
    if reach.is_url(row.file):
        yield io.BytesIO(fetched(row.file, max(row.offset, 0), None if row.offset < 0 else row.size))
        return
    with open(row.file, "rb") as file:
        if row.offset < 0:
            yield file
            return
        file.seek(row.offset)
        yield io.BytesIO(_whole(file.read(row.size), row.size))


def fetched(place: str, start: int = 0, size: int | None = None) -> bytes:
    """Bytes behind a URL; tried again where storage fails for a moment."""
    client, path = reach.client(place), reach.path_of(place)
    end = None if size is None else start + size
    try:
        data: bytes = reach.tried(place, lambda: client.cat_file(path, start, end))
    except RunError as error:
        raise OSError(error.message) from error
    return data if size is None else _whole(data, size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise OSError(f"it ends {size - len(data)} bytes too soon")
    return data
