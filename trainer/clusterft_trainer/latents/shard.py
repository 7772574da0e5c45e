"""One file of the cache: up to a thousand entries of one size, each with its key and a checksum.

A shard is a safetensors file with the tensors `offsets`, `sums` (XXH3-64 of each entry's stored bytes), `keys` and
`data`, and with recipe, size, arrays, codec and a checksum of the three tables in its metadata. It holds no times
and no names, so the same entries give the same bytes, whoever writes them. Owns that layout. Refuses a file that
is cut off, whose tables were changed, or that another recipe made.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from clusterft_trainer import disk
from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.latents import tables
from clusterft_trainer.latents.key import KEY, Recipe, TextRecipe
from clusterft_trainer.latents.leases import NO_LINKS

SUFFIX = ".safetensors"
SCHEMA = "1"
MOST_ENTRIES = 1000
MOST_BYTES = 256 << 20
_LEVEL = 3  # of zstd; latents hardly shrink, so more would cost time alone
Codec = Literal["none", "zstd"]


@dataclass(frozen=True, slots=True)
class Array:
    """One of the arrays that every entry consists of."""

    name: str
    dtype: str  # as safetensors calls it: F32 or BF16
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return tables.DTYPES[self.dtype].itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Form:
    """What all entries of a shard have in common."""

    recipe: str  # as JSON
    arrays: tuple[Array, ...]
    width: int  # of the bucket in pixels; 0 for text
    height: int
    codec: Codec = "none"

    @property
    def size(self) -> int:
        """Bytes of an entry before the codec."""
        return sum(array.size for array in self.arrays)

    @property
    def most(self) -> int:
        """Entries that a shard of this form may hold."""
        return max(1, min(MOST_ENTRIES, MOST_BYTES // max(1, self.size)))


def latent_form(recipe: Recipe, shape: tuple[int, int, int], size: tuple[int, int], codec: Codec = "none") -> Form:
    """The form of latents (4, h, w) of a bucket (width, height); mirrored ones follow where the recipe says so."""
    whole = (2, *shape) if recipe.flip else shape
    array = Array("latents", _STORED[recipe.dtype], whole)
    return Form(recipe.to_json(), (array,), size[0], size[1], codec)


def text_form(recipe: TextRecipe, widths: tuple[int, int, int], codec: Codec = "none") -> Form:
    """The form of text states: widths of both encoders' states and of the pooled one."""
    dtype, length = _STORED[recipe.dtype], recipe.tokens + 2
    one, two = (length, widths[0]), (length, widths[1])
    arrays = (
        Array("hidden_state1", dtype, one),
        Array("hidden_state2", dtype, two),
        Array("pool2", dtype, (widths[2],)),
    )
    return Form(recipe.to_json(), arrays, 0, 0, codec)


_STORED = {"float32": "F32", "bfloat16": "BF16"}


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to nearest, ties to even; as uint16, which numpy has."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def from_bfloat16(stored: np.ndarray) -> np.ndarray:
    """float32 of stored bfloat16; exact."""
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def payload(form: Form, values: Sequence[np.ndarray]) -> bytes:
    """An entry's bytes as they are stored, from its arrays in float32."""
    parts = []
    for array, value in zip(form.arrays, values, strict=True):
        if tuple(value.shape) != array.shape:
            raise ValueError(f"{array.name} is {tuple(value.shape)} and not {array.shape}")
        stored = to_bfloat16(value) if array.dtype == "BF16" else value
        parts.append(np.ascontiguousarray(stored, tables.DTYPES[array.dtype]).tobytes())
    raw = b"".join(parts)
    return raw if form.codec == "none" else _zstd().compress(raw, asbytes=True)


def values(form: Form, raw: Any, *, as_stored: bool = False) -> dict[str, np.ndarray]:
    """The arrays in an entry's bytes before the codec: float32, or as they are stored."""
    found, at = {}, 0
    for array in form.arrays:
        dtype = tables.DTYPES[array.dtype]
        stored = np.frombuffer(raw, dtype, math.prod(array.shape), at).reshape(array.shape)
        found[array.name] = from_bfloat16(stored) if array.dtype == "BF16" and not as_stored else stored
        at += array.size
    return found


def name(width: int, height: int, keys: np.ndarray) -> str:
    """What a shard of these entries is called: keys (n, 16) in their order."""
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(keys, np.uint8))
    return f"{width}x{height}-{digest}{SUFFIX}"


def save(folder: Path, form: Form, keys: np.ndarray, payloads: Sequence[Any]) -> Path:
    """Write a shard under the name of its entries; one that is there already is the same, and stays."""
    path = folder / name(form.width, form.height, keys)
    with storing("The shard", path):
        draft = tables.draft_of(path)
        try:
            write_draft(draft, form, keys, payloads)
            publish(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def write_draft(draft: Path, form: Form, keys: np.ndarray, payloads: Sequence[Any]) -> None:
    """A whole shard under a name that nobody reads yet."""
    if keys.shape != (len(payloads), KEY):
        raise ValueError(f"{len(payloads)} payloads have keys of shape {keys.shape}")
    lengths = [len(memoryview(one).cast("B")) for one in payloads]
    offsets: np.ndarray = np.zeros(len(payloads) + 1, np.uint64)
    np.cumsum(lengths, out=offsets[1:])
    sums = np.array([xxhash.xxh3_64_intdigest(one) for one in payloads], np.uint64)
    told = metadata(form, _table_sum(offsets, sums, keys))
    parts = [
        tables.part("offsets", "U64", offsets),
        tables.part("sums", "U64", sums),
        tables.part("keys", "U8", keys),
        tables.Part("data", "U8", (int(offsets[-1]),), payloads),
    ]
    tables.write_draft(draft, parts, told)


def metadata(form: Form, table: str) -> dict[str, str]:
    """What a shard says of itself, all of it text."""
    arrays = [[a.name, a.dtype, list(a.shape)] for a in form.arrays]
    return {
        "schema": SCHEMA,
        "recipe": form.recipe,  # JSON: what decides an entry's bytes beside the picture or the caption
        "width": str(form.width),  # of the bucket in pixels; 0 for text states
        "height": str(form.height),
        "arrays": json.dumps(arrays, separators=(",", ":")),  # JSON: name, number format and shape of each
        "codec": form.codec,  # none, or zstd for each entry by itself
        "table": table,  # XXH3-64 of offsets, sums and keys in hexadecimal
    }


def publish(draft: Path, path: Path) -> bool:
    """Give a finished shard its name; False if another one has it already, which then stays.

    Of two workers that made the same shard, the first counts, so nobody sees a file change under its name.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        draft.replace(path)  # a file system without hard links: the bytes are the same, so replacing is harmless
    disk.flush(path.parent)
    return True


class Handle:
    """An open file, closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        number = getattr(self, "number", None)
        if number is not None:
            os.close(number)


class Shard:
    """A shard that was found whole; holds neither the file open nor its tables in memory."""

    __slots__ = ("_begins", "_size", "count", "form", "path")

    def __init__(self, path: Path, handle: Handle | None = None) -> None:
        own = handle or Handle(path)
        found = tables.header(path, own.number)
        self.path = path
        self.form = _form(path, tuple(sorted(found.metadata.items())))
        entries = [found.entry(n, "U8" if n in ("keys", "data") else "U64") for n in _TENSORS]
        self.count = entries[2].shape[0]
        self._begins = tuple(entry.begin for entry in entries)
        self._size = entries[3].end - entries[3].begin
        offsets, sums, keys = self._tables(own)
        if len(offsets) != self.count + 1 or len(sums) != self.count or entries[2].shape != (self.count, KEY):
            raise tables.damaged(path, "its tables differ in length")
        if _table_sum(offsets, sums, keys) != found.metadata.get("table"):
            raise tables.damaged(path, "the checksum of its tables is another one")
        if int(offsets[-1]) != self._size or (np.diff(offsets.astype(np.int64)) < 0).any():
            raise tables.damaged(path, "its table of offsets is no order")
        if self.form.codec == "none" and (np.diff(offsets) != self.form.size).any():
            raise tables.damaged(path, "its entries have another length than their arrays")

    def expect(self, recipe: str) -> Shard:
        """Refuse it if another recipe made it."""
        if self.form.recipe != recipe:
            raise DataError(
                f"{self.path} was made by another recipe: {self.form.recipe}; expected {recipe}.",
                "Give each model and setting its own cache: remove the file, or the folder, and run prep again.",
            )
        return self

    def _tables(self, handle: Handle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, second, third, _ = self._begins
        offsets = np.frombuffer(os.pread(handle.number, second - first, first), "<u8")
        sums = np.frombuffer(os.pread(handle.number, third - second, second), "<u8")
        keys = np.frombuffer(os.pread(handle.number, self.count * KEY, third), np.uint8)
        if len(keys) != self.count * KEY:
            raise tables.damaged(self.path, "it lost its tail while it was read")
        return offsets, sums, keys.reshape(-1, KEY)

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offsets, sums, keys)."""
        return self._tables(Handle(self.path))

    def stored(self, handle: Handle, slot: int, *, check: bool = False) -> bytes:
        """An entry's bytes as they lie in the file, compared with their checksum if asked for."""
        begin, end = self._span(handle, slot)
        found = os.pread(handle.number, end - begin, begin)
        self._whole(handle, slot, found, end - begin, check=check)
        return found

    def raw(self, handle: Handle, slot: int, *, check: bool = False) -> bytes:
        """An entry's bytes before the codec."""
        found = self.stored(handle, slot, check=check)
        if self.form.codec == "none":
            return found
        try:
            return _zstd().decompress(found, decompressed_size=self.form.size, asbytes=True)
        except OSError as error:
            raise tables.damaged(self.path, f"entry {slot} cannot be decompressed ({error})") from error

    def into(self, handle: Handle, slot: int, out: np.ndarray, *, check: bool = False) -> None:
        """Fill a contiguous array with an entry's bytes, without a copy between where there is no codec."""
        if out.nbytes != self.form.size:
            raise ValueError(f"{out.nbytes} bytes of room for an entry of {self.form.size}")
        flat: np.ndarray = out.reshape(-1).view(np.uint8)
        if self.form.codec != "none":
            flat[:] = np.frombuffer(self.raw(handle, slot, check=check), np.uint8)
            return
        begin, _ = self._span(handle, slot)
        done = 0
        while done < len(flat):
            count = os.preadv(handle.number, [flat[done:].data], begin + done)
            if not count:
                break
            done += count
        self._whole(handle, slot, flat[:done], self.form.size, check=check)

    def _span(self, handle: Handle, slot: int) -> tuple[int, int]:
        if not 0 <= slot < self.count:
            raise IndexError(f"{self.path} has {self.count} entries, not {slot}")
        data = self._begins[3]
        if self.form.codec == "none":
            return data + slot * self.form.size, data + (slot + 1) * self.form.size
        first, last = np.frombuffer(os.pread(handle.number, 16, self._begins[0] + 8 * slot), "<u8")
        if not first <= last <= self._size:
            raise tables.damaged(self.path, "its table of offsets has changed")
        return data + int(first), data + int(last)

    def _whole(self, handle: Handle, slot: int, found: Any, size: int, *, check: bool) -> None:
        if len(found) != size:
            raise tables.damaged(self.path, f"entry {slot} lost its tail")
        if check:
            sums = os.pread(handle.number, 8, self._begins[1] + 8 * slot)
            if xxhash.xxh3_64_intdigest(found) != int.from_bytes(sums, "little"):
                raise tables.damaged(self.path, f"the checksum of entry {slot} is another one")


_TENSORS = ("offsets", "sums", "keys", "data")


def _table_sum(offsets: np.ndarray, sums: np.ndarray, keys: np.ndarray) -> str:
    state = xxhash.xxh3_64()
    for table in (offsets, sums, keys):
        state.update(np.ascontiguousarray(table).view(np.uint8))
    return state.hexdigest()


@lru_cache(maxsize=4096)  # most shards of a folder share a few forms
def _form_of(recipe: str, arrays: str, width: str, height: str, codec: str) -> Form:
    listed = json.loads(arrays)
    if codec not in ("none", "zstd") or not isinstance(listed, list) or not 0 < len(listed) <= 16:
        raise ValueError("unknown codec or arrays")
    found = tuple(Array(str(n), str(d), tuple(int(side) for side in shape)) for n, d, shape in listed)
    if any(a.dtype not in tables.DTYPES or min(a.shape, default=1) < 1 for a in found):
        raise ValueError("unknown number format or shape")
    form = Form(recipe, found, int(width), int(height), "zstd" if codec == "zstd" else "none")
    if form.size > MOST_BYTES:
        raise ValueError("an entry larger than a shard may be")
    return form


def _form(path: Path, metadata: tuple[tuple[str, str], ...]) -> Form:
    told = dict(metadata)
    try:
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']} of another version")
        return _form_of(told["recipe"], told["arrays"], told["width"], told["height"], told["codec"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise tables.damaged(path, f"it is no shard of the cache ({error})") from error


def _zstd() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=_LEVEL)
