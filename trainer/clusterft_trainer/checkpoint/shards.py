"""One rank's file of a checkpoint, and reading any part of any tensor out of all of them.

A file is a safetensors file: flattened runs of elements under `kind|name|offset`. Whoever reads asks for elements
of a tensor, and gets them from whichever files hold them: so a checkpoint has no world size and no engine.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from clusterft_trainer.errors import RunError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_BLOCK = 8 << 20  # bytes written, hashed and read back at once
_PAGE = 4096  # what writing past the page cache is counted in
_SHAPES = "shapes"  # what every file says of the weights, so that none needs the model to be read
REST = "rest"  # kind of what is no element for each weight; its offset is the state's own key


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file, still where it is computed with."""

    key: str
    tensor: torch.Tensor
    shape: tuple[int, ...]


def entry(kind: str, name: str, at: int | str, tensor: torch.Tensor) -> Entry:
    """Name a tensor for a file."""
    return Entry(f"{kind}|{name}|{at}", tensor, tuple(tensor.shape))


class Stage:
    """Host memory that holds a rank's file, byte for byte, while training goes on; made once, used again."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0

    def take(self, entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Copy everything; afterwards the weights may move. `shapes` are those of the whole weights."""
        ordered = sorted(entries, key=lambda e: -e.tensor.element_size())  # keeps each one aligned
        header = _header(ordered, shapes)
        self._size = len(header) + sum(_bytes(e.tensor) for e in ordered)
        self._make_room(_pages(self._size))
        self._memory[: len(header)].copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))
        places, sources, at = [], [], len(header)
        for one in ordered:
            size = _bytes(one.tensor)
            places.append(self._memory[at : at + size].view(one.tensor.dtype))
            sources.append(one.tensor.detach().reshape(-1))
            at += size
        torch._foreach_copy_(places, sources, non_blocking=self._pinned)
        if self._pinned:
            torch.cuda.current_stream().synchronize()

    def _make_room(self, size: int) -> None:
        if self._memory.numel() < size:
            whole = torch.empty(size + _PAGE, dtype=torch.uint8)
            self._memory = whole[-whole.data_ptr() % _PAGE :][:size]
            if self._pinned:
                # torch's own pinned memory comes in powers of two: up to twice of what is needed. Where the system
                # lets no more memory be pinned, copying into it is slower and right all the same.
                torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)

    def write(self, path: Path) -> dict[str, Any]:
        """Put it on the disk, past the page cache, then read it back and compare; its size and checksum.

        The page cache would cost more of the processor than everything else here, and is of no use: nobody reads
        the file soon, and what is read back shall come from the disk.
        """
        body, crc = self._memory.numpy(), 0
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
            for first in range(0, _pages(self._size), _BLOCK):
                _write(handle, memoryview(body[first : min(first + _BLOCK, _pages(self._size))]))
                crc = zlib.crc32(memoryview(body[first : min(first + _BLOCK, self._size)]), crc)
            os.ftruncate(handle, self._size)
            os.fsync(handle)
        self._compare(path)
        return {"size": self._size, "crc32": f"{crc:08x}"}

    def _compare(self, path: Path) -> None:
        room = mmap.mmap(-1, _BLOCK)  # begins with a page, as reading past the page cache needs
        given = np.frombuffer(room, dtype=np.uint8)
        with _opened(path, os.O_RDONLY) as handle:
            at = 0
            while got := os.readv(handle, [room]):
                if not _equal(given[:got], self._memory.numpy()[at : min(at + got, self._size)]):
                    raise OSError(f"{path.name} reads back otherwise than it was written, from byte {at} on")
                at += got
        if at != self._size:
            raise OSError(f"{path.name} reads back {at} of its {self._size} bytes")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """By eight bytes at a time, as far as that goes."""
    whole = len(one) // 8 * 8
    return (
        len(one) == len(other)
        and np.array_equal(one[:whole].view(np.uint64), other[:whole].view(np.uint64))
        and np.array_equal(one[whole:], other[whole:])
    )


def _header(entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The beginning of a safetensors file, filled up with spaces to whole pages."""
    body: dict[str, Any] = {"__metadata__": {"format": "pt", _SHAPES: json.dumps(shapes)}}
    at = 0
    for one in entries:
        size = _bytes(one.tensor)
        kind = _NAMES[one.tensor.dtype]
        body[one.key] = {"dtype": kind, "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (_pages(8 + len(text)) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _pages(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // _PAGE) * _PAGE


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Past the page cache, where the file system can; some in memory or in user space cannot."""
    try:
        handle = os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A file may have been made before the flag was refused.
        handle = os.open(path, flags & ~os.O_EXCL, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _write(handle: int, block: memoryview) -> None:
    while block:
        block = block[os.write(handle, block) :]


def check(path: Path, size: int, crc32: str) -> str | None:
    """What is wrong with a file, or nothing."""
    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
            real = file.tell()
    except OSError as error:
        return f"{path.name} cannot be read: {error}"
    if real != size:
        return f"{path.name} has {real} bytes, not {size}"
    return None if f"{crc:08x}" == crc32 else f"{path.name} has not the checksum of the manifest"


@dataclass(frozen=True, slots=True)
class _Run:
    first: int
    end: int
    file: Any
    key: str


class Shards:
    """All files of a checkpoint as flattened tensors."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._runs: dict[tuple[str, str], list[_Run]] = {}
        self._rest: dict[str, dict[str, tuple[Any, str]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(names):
            file: Any = safe_open(folder / name, "pt")
            shapes = json.loads(file.metadata()[_SHAPES])
            self.shapes = {weight: tuple(shape) for weight, shape in shapes.items()}
            for key in file.keys():
                self._note(file, key)
        for runs in self._runs.values():
            runs.sort(key=lambda run: run.first)

    def _note(self, file: Any, key: str) -> None:
        kind, name, at = key.split("|", 2)
        if kind == REST:
            self._rest.setdefault(name, {})[at] = (file, key)
            return
        (numel,) = file.get_slice(key).get_shape()
        self._runs.setdefault((kind, name), []).append(_Run(int(at), int(at) + numel, file, key))

    @property
    def kinds(self) -> set[str]:
        """Of what is there in runs of elements."""
        return {kind for kind, _ in self._runs}

    def names(self, kind: str) -> set[str]:
        """The tensors of a kind."""
        return {name for one, name in self._runs if one == kind}

    def rest(self) -> dict[str, dict[str, Any]]:
        """What is no element for each weight."""
        return {n: {k: _number(f.get_tensor(key)) for k, (f, key) in v.items()} for n, v in self._rest.items()}

    def numel(self, kind: str, name: str) -> int:
        """Elements of a whole tensor."""
        return max((run.end for run in self._runs.get((kind, name), [])), default=0)

    def read(self, kind: str, name: str, first: int, end: int) -> torch.Tensor:
        """Elements of a flattened tensor, wherever they lie."""
        runs = [r for r in self._runs.get((kind, name), []) if r.end > first and r.first < end]
        parts, at = [], first
        for run in self._gapless(runs, first, end, kind, name):
            upto = min(run.end, end)
            parts.append(run.file.get_slice(run.key)[at - run.first : upto - run.first])
            at = upto
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gapless(self, runs: list[_Run], first: int, end: int, kind: str, name: str) -> Iterator[_Run]:
        at = first
        for run in runs:
            if run.first > at:
                break
            if run.end > at:
                yield run
                at = run.end
        if at < end:
            raise RunError(
                "resume",
                f"{self._folder} lacks elements {at} to {end} of {kind} {name}.",
                "It was written by another version or for another model; begin a new run.",
            )


def _number(tensor: torch.Tensor) -> Any:
    """Plain numbers travel as float64 and int64 without a dimension."""
    if tensor.ndim == 0 and tensor.dtype in (torch.float64, torch.int64):
        return tensor.item()
    return tensor
