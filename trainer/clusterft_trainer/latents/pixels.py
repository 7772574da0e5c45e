"""A picture of the index as the pixels of its bucket, if it still is the one that was indexed.

An entry of the cache is named after the picture's bytes, so the bytes are compared before they are decoded. Owns
that, and telling apart what can be wrong: bytes that cannot be had now, others than were indexed, and no whole
picture. Refuses all three by an exception that the cache counts; what is decoded is decoded as `decoding` does it.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import xxhash
from PIL import Image, ImageOps

from clusterft_trainer import decoding
from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.corpus.index import Row

Kind = Literal["broken", "changed", "unreadable"]


class Unusable(Exception):
    """A picture that yields no pixels; only one that is broken will not do so later either."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def load(row: Row, fit: Fit, bucket: Bucket) -> np.ndarray:
    """(H, W, 3) uint8."""
    data = _bytes(row)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as found:
            warnings.simplefilter("ignore")  # of large pictures and untidy metadata
            image = decoding.rgb(ImageOps.exif_transpose(found))
        if image.size != (row.width, row.height):
            raise ValueError(f"it is {image.width}x{image.height}, not {row.width}x{row.height}")
        return decoding.cut(image, fit, bucket)
    except decoding.BROKEN as error:
        raise Unusable("broken", f"{type(error).__name__}: {error}") from error


def _bytes(row: Row) -> bytes:
    try:
        with decoding.stored(row) as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a URL that fsspec cannot read
        raise Unusable("unreadable", f"{type(error).__name__}: {error}") from error
    if xxhash.xxh3_128_digest(data) != row.hash:
        raise Unusable("changed", f"{len(data)} bytes, other ones than the {row.size} that were indexed")
    return data
