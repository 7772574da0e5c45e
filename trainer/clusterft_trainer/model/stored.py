"""Safetensors files, tensor by tensor: headers without data, one tensor without the others, a file as a stream.

The library's own reader maps a whole file and its writer wants every tensor in memory at once; a full-size model
is 7 to 14 GB. Owns the format (8 bytes of header length, JSON, data) and refuses, with the file's name and what to
do, whatever is no complete file of it: the format itself is defined by safetensors, whose reader the tests use.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from clusterft_trainer.errors import DataError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; the library's own limit
_AGAIN = "Copy or download it again, and compare its size or checksum with the source's."


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: what it is, and at which bytes it lies."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """torch's name of the number format."""
        if self.kind not in DTYPES:
            raise DataError(
                f"{self.path} holds numbers of format {self.kind}, which were rounded for making pictures only.",
                "Give the model's fp16, bf16 or fp32 file.",
            )
        return DTYPES[self.kind]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its data."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors whose names begin so, without that beginning."""
        return {n[len(prefix) :]: e.shape for n, e in self.entries.items() if n.startswith(prefix)}


def header(path: Path) -> Header:
    """Read what is in a file, and make sure that all of it is there."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            _refuse_other_formats(path, start, length)
            if size < 8 + length:
                raise _truncated(path, 8 + length, size, "its header alone")
            body = json.loads(file.read(length))
            entries, metadata, total = _entries(path, body, 8 + length)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Put the file there on every node, readable for the user that trains.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a safetensors file: its header cannot be read.", _AGAIN) from error
    if size < total:
        raise _truncated(path, total, size, "header and tensors")
    if size > total:
        raise DataError(f"{path} is damaged: {size} bytes, where its header accounts for {total}.", _AGAIN)
    return Header(path, entries, metadata)


def _entries(path: Path, body: dict[str, Any], data: int) -> tuple[dict[str, Entry], dict[str, str], int]:
    metadata = {str(k): str(v) for k, v in body.pop("__metadata__", {}).items()}
    entries, total = {}, data
    for name, told in body.items():
        first, last = told["data_offsets"]
        shape = tuple(int(n) for n in told["shape"])
        entry = Entry(path, told["dtype"], shape, data + int(first), data + int(last))
        kind = DTYPES.get(entry.kind)
        if kind is not None and entry.end - entry.begin != kind.itemsize * _count(shape):
            raise DataError(f"{path} is damaged: tensor {name} has another length than its shape says.", _AGAIN)
        entries[name], total = entry, max(total, entry.end)
    return entries, metadata, total


def _refuse_other_formats(path: Path, start: bytes, length: int) -> None:
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x03"):
        raise DataError(
            f"{path} is a pickled checkpoint (.ckpt, .pt, .bin), which can run any code when it is opened.",
            "Give the model as .safetensors.",
        )
    if start.startswith(b"version "):
        raise DataError(
            f"{path} is a Git LFS pointer, not the file itself.", "Fetch it with `git lfs pull`, or download it."
        )
    if not 2 <= length <= _LARGEST_HEADER:
        raise DataError(f"{path} is not a safetensors file.", _AGAIN)


def _truncated(path: Path, wanted: int, size: int, what: str) -> DataError:
    return DataError(f"{path} is cut off: {what} take {wanted} bytes, but the file has {size}.", _AGAIN)


def _count(shape: Iterable[int]) -> int:
    number = 1
    for side in shape:
        number *= side
    return number


def read(entry: Entry, third: int | None = None) -> torch.Tensor:
    """One tensor, or one of three equal runs of its rows, as it is stored."""
    begin, shape = entry.begin, entry.shape
    if third is not None:
        shape = (shape[0] // 3, *shape[1:])
        begin += third * (entry.end - entry.begin) // 3
    tensor = torch.empty(shape, dtype=entry.dtype)
    if tensor.numel() == 0:
        return tensor
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    with entry.path.open("rb", buffering=0) as file:
        file.seek(begin)
        done = 0
        while done < len(view):  # a raw read may end early, and at 2 GB it does
            count = file.readinto(view[done:])
            if not count:
                raise DataError(f"{entry.path} ended while it was read: another program changes it.", _AGAIN)
            done += count
    return tensor


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor that will be written: known in shape now, made when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


def write(file: BinaryIO, leaves: Mapping[str, Leaf], metadata: Mapping[str, str]) -> list[str]:
    """Write a whole file; the names of tensors that are not finite, after which it is not worth keeping."""
    # the library's order: wide numbers first, so that each begins at a multiple of its own size
    order = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))
    body: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        leaf = leaves[name]
        end = offset + leaf.dtype.itemsize * _count(leaf.shape)
        body[name] = {
            "dtype": _NAMES[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    broken = []
    for name in order:
        tensor = leaves[name].make().detach().to("cpu", leaves[name].dtype).contiguous()
        if tuple(tensor.shape) != leaves[name].shape:
            raise ValueError(f"{name} was announced as {leaves[name].shape} and is {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken.append(name)
        if tensor.numel() and not broken:
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return broken


_SAMPLE, _SAMPLES = 1 << 16, 16  # bytes, and places of a file, by which it is known


def fingerprint(model: Path) -> str:
    """What tells a model from another without reading all of it: sizes, and samples spread over each file."""
    digest = hashlib.sha256()
    for path in sorted(model.rglob("*.safetensors")) if model.is_dir() else [model]:
        size = path.stat().st_size
        digest.update(f"{size}:".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
