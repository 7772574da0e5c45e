"""One rank's file of a checkpoint, and reading any part of any tensor out of all of them.

A file is a safetensors file: flattened runs of elements under `kind|name|offset`. Whoever reads asks for elements
of a tensor, and gets them from whichever files hold them: so a checkpoint has no world size and no engine.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open

from clusterft_trainer import scribe
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
    """Memory that holds a rank's file, byte for byte, while training goes on; made once, used again.

    It is shared, so that another process can write it (`scribe`).
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._handle = os.memfd_create("checkpoint")
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0
        self._scribe: subprocess.Popen[str] | None = None

    def take(self, entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Copy everything; afterwards the weights may move. `shapes` are those of the whole weights."""
        ordered = sorted(entries, key=lambda e: -e.tensor.element_size())  # keeps each one aligned
        header = _header(ordered, shapes)
        self._size = len(header) + sum(_bytes(e.tensor) for e in ordered)
        self._make_room(scribe.pages(self._size))
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
            if self._pinned and self._memory.numel():
                torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            os.ftruncate(self._handle, size)
            self._memory = torch.frombuffer(mmap.mmap(self._handle, size), dtype=torch.uint8)
            if self._pinned:
                # torch's own pinned memory comes in powers of two: up to twice of what is needed. Where the system
                # lets no more memory be pinned, copying into it is slower and right all the same.
                torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), size, 0)

    def write(self, path: Path) -> dict[str, Any]:
        """Have it put on the disk and read back by a process of its own; its size and checksum."""
        if self._scribe is None:
            self._scribe = _start_scribe(self._handle)
        asked, told = self._scribe.stdin, self._scribe.stdout
        if asked is None or told is None:
            raise RuntimeError("the writer of checkpoints was started without pipes")
        line = ""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            asked.write(json.dumps({"size": self._size, "path": str(path)}) + "\n")
            asked.flush()
            line = told.readline()
        if not line:
            code, self._scribe = self._scribe.wait(), None
            raise RuntimeError(f"the writer of {path} died ({code}); what it said is in this rank's log")
        answer: dict[str, Any] = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"], str(path))
        return answer

    def close(self) -> None:
        """Let the writer go."""
        if self._scribe is not None and self._scribe.stdin is not None:
            self._scribe.stdin.close()
            self._scribe.wait()
            self._scribe = None


def _start_scribe(memory: int) -> subprocess.Popen[str]:
    path = [str(Path(scribe.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A session of its own: out of the reach of Ctrl-C, which asks for the very file that it may be writing.
    return subprocess.Popen(
        [sys.executable, "-m", scribe.__name__, str(memory)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        pass_fds=[memory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
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
    text += b" " * (scribe.pages(8 + len(text)) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check(path: Path, size: int, xxh3: str) -> str | None:
    """What is wrong with a file, or nothing."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(scribe.BLOCK):
                digest.update(block)
            real = file.tell()
    except OSError as error:
        return f"{path.name} cannot be read: {error}"
    if real != size:
        return f"{path.name} has {real} bytes, not {size}"
    return None if digest.hexdigest() == xxh3 else f"{path.name} has not the checksum of the manifest"


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

    def rest(self) -> dict[str, dict[str, Any]]:
        """What is no element for each weight."""
        return {n: {k: _number(f.get_tensor(key)) for k, (f, key) in v.items()} for n, v in self._rest.items()}

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
