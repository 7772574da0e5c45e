"""What a cached entry is called: a hash of all that decides its bytes, and of nothing else.

A moved file, another caption, added pictures or another order leave keys as they are; another VAE, resolution or
fit changes those that it concerns. Owns recipes and keys, pure. Refuses a recipe it does not know in full: a cache
of a later version must not pass for one of this.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
import xxhash

from clusterft_trainer.buckets import Bucket, Fit
from clusterft_trainer.errors import DataError

KEY = 16  # bytes
_SCHEMA = 1  # raised whenever the same picture and recipe would give other pixels
_ENTRY = np.dtype(
    [("image", "V16"), ("recipe", "V16"), ("bucket", "<i4", 2), ("resized", "<i4", 2), ("corner", "<i4", 2)]
)
_R = TypeVar("_R", "Recipe", "TextRecipe")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the bytes of a picture's latents beside the picture."""

    vae: str  # identity of the VAE's weights and of the numbers it computes in
    dtype: Literal["float32", "bfloat16"]
    take: Literal["mean", "sample"]
    flip: bool  # the mirrored picture's latents follow
    seed: int  # of the sampling noise; 0 for mean

    def to_json(self) -> str:
        """One line, the same on every machine."""
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The reverse; refuses other fields and other kinds."""
        return _from_json(cls, text)

    def digest(self) -> str:
        """16 hexadecimal digits: the name of the folder."""
        return _digest(self.to_json())


@dataclass(frozen=True, slots=True)
class TextRecipe:
    """What decides the bytes of a caption's states beside the caption."""

    text: str  # identity of both text encoders' weights, their numbers and tokenizers
    dtype: Literal["float32", "bfloat16"]
    tokens: int  # longest caption

    def to_json(self) -> str:
        """One line, the same on every machine."""
        return _to_json(self)

    @classmethod
    def from_json(cls, text: str) -> TextRecipe:
        """The reverse; refuses other fields and other kinds."""
        return _from_json(cls, text)

    def digest(self) -> str:
        """16 hexadecimal digits: the name of the folder."""
        return _digest(self.to_json())


def entry_key(image_hash: bytes, bucket: Bucket, fit: Fit, recipe: Recipe) -> bytes:
    """16 bytes for one picture at one size."""
    size = np.array([[bucket.width, bucket.height]])
    placed = np.array([[fit.resized_width, fit.resized_height, fit.left, fit.top]])
    hashes = np.frombuffer(image_hash, np.uint8).reshape(1, -1)
    return entry_keys(hashes, size, placed, recipe).tobytes()


def entry_keys(hashes: np.ndarray, buckets: np.ndarray, fits: np.ndarray, recipe: Recipe) -> np.ndarray:
    """(n, 16) uint8 for many: hashes (n, 16) uint8, buckets (n, 2), fits (n, 4) as Fit has them.

    A picture without a hash, which has all zeros there, gets a key of zeros, which no cache holds.
    """
    count = len(hashes)
    if hashes.shape != (count, KEY):
        raise ValueError(f"hashes of shape {hashes.shape}, not (n, {KEY})")
    rows: np.ndarray = np.zeros(count, _ENTRY)
    rows["image"] = np.ascontiguousarray(hashes, np.uint8).view("V16")[:, 0]
    rows["recipe"] = np.void(hashlib.sha256(f"{_SCHEMA}:{recipe.to_json()}".encode()).digest()[:16])
    rows["bucket"] = buckets
    rows["resized"], rows["corner"] = fits[:, :2], fits[:, 2:]
    keys = _hashed(rows.view(np.uint8).data, count, _ENTRY.itemsize)
    keys[~hashes.any(axis=1)] = 0
    return keys


def text_key(caption: str, recipe: TextRecipe) -> bytes:
    """16 bytes for one caption, as it is given to the tokenizers."""
    return xxhash.xxh3_128_digest(f"{_SCHEMA}:{recipe.to_json()}\n{caption}".encode("utf-8", "surrogatepass"))


def text_keys(captions: list[str], recipe: TextRecipe) -> np.ndarray:
    """(n, 16) uint8 for many."""
    begun = xxhash.xxh3_128(f"{_SCHEMA}:{recipe.to_json()}\n".encode())
    found = bytearray()
    for caption in captions:
        state = begun.copy()
        state.update(caption.encode("utf-8", "surrogatepass"))
        found += state.digest()
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, KEY)


def _hashed(rows: memoryview, count: int, size: int) -> np.ndarray:
    digest = xxhash.xxh3_128_digest
    joined = b"".join([digest(rows[at : at + size]) for at in range(0, count * size, size)])
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY).copy()


def _to_json(recipe: Recipe | TextRecipe) -> str:
    kind = "latents" if isinstance(recipe, Recipe) else "text"
    return json.dumps({"kind": kind, **asdict(recipe)}, sort_keys=True, separators=(",", ":"))


def _from_json(cls: type[_R], text: str) -> _R:
    kind = "latents" if cls is Recipe else "text"
    try:
        body: Any = json.loads(text)
        if body.pop("kind") != kind or set(body) != {f.name for f in fields(cls)}:
            raise ValueError(f"not a recipe for {kind}")
        return cls(**body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"The cache was made by a recipe that this version cannot read ({error}): {text[:200]}.",
            "Run prep again with this version, in a new folder.",
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
