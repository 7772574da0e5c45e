"""What a container of the run's own image got on a node, with the mounts and limits of a run. Pure.

Owns how the program `agent.box` answers, and what an engine's refusal to start a container says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clusterft.facts import mounted
from clusterft.facts.mounted import Mounted
from clusterft.facts.storage import Disk

NO_LIMIT = -1

# What a refusal is about, by the engine's and the NVIDIA toolkit's own words; the first that fits is meant.
Refusal = Literal[
    "no toolkit",
    "no runtime",
    "runtime gone",
    "old driver",
    "mismatch",
    "no driver",
    "no card",
    "nvml",
    "keys",
    "room",
    "source",
    "python",
    "threadless",
    "starved",
    "program",
    "slow",
    "hung",
    "other",
]
# The engine knows a runtime by its path, and there is nothing there.
_RUNTIME = r"unable to retrieve OCI runtime error \([^)]*\): "
_NO_PROGRAM = r"fork/exec (?P<path>\S+): no such file|exec: \"(?P<name>[^\"]+)\": executable file not found"
_WORDS: tuple[tuple[Refusal, str], ...] = (
    ("no toolkit", r"could not select device driver|no known GPU vendor found"),
    ("no runtime", r"unknown or invalid runtime name|[Uu]nknown runtime specified"),
    ("runtime gone", f"{_RUNTIME}(?:{_NO_PROGRAM})|nvidia-container-runtime[^\\n]*(?:no such file|not found)"),
    ("old driver", r"unsatisfied condition: (?:cuda|driver)"),
    ("mismatch", r"[Dd]river/library version mismatch"),
    ("no driver", r"libnvidia-ml\.so[^\n]*cannot open|nvml error: driver not loaded|load library failed"),
    ("no card", r"unknown device|device error: |no such device"),
    ("nvml", r"nvml error|initialization error|nvidia-container-cli: "),
    # Of these two the container was started, and Python in it has said so: the engine's own words are not such.
    ("threadless", r"RuntimeError: can't start new thread"),
    ("starved", r"^MemoryError\b"),
    ("keys", r"session key\w*: [^\n]*[Dd]isk quota exceeded"),  # those that the kernel keeps, and no disk
    ("room", r"[Nn]o space left on device|[Dd]isk quota exceeded"),
    ("source", r"bind source path does not exist|invalid mount config for type \"bind\""),
    ("python", r"exec: \"python[0-9.]*\""),
    ("program", r"Traceback \(most recent call last\)|Fatal Python error"),  # it was started, and broke
    ("hung", r"no answer in time"),
)
_ROOMLESS = re.compile(r"(/[^\s:\"']+)\"?: (?:no space left on device|disk quota exceeded)", re.IGNORECASE)
# As whoever asks may not look into Docker's own directories, the nearest one above that can be seen counts.
_ROOM = """\
p=$1
while [ ! -d "$p" ] && [ "$p" != / ]; do p=$(dirname -- "$p"); done
[ -w "$p" ] && echo yes || echo no
timeout -k 1 3 df -Pk -- "$p"; timeout -k 1 3 df -Pi -- "$p"
"""


@dataclass(frozen=True, slots=True)
class Torch:
    """What the image's torch says."""

    version: str | None
    cuda: str | None = None  # that it was built for
    nccl: str | None = None
    archs: tuple[str, ...] = ()  # sm_86, compute_90, ...
    available: bool | None = None
    complaints: str = ""  # what it warned of, or why it says nothing


@dataclass(frozen=True, slots=True)
class Threads:
    """Of a container in which Python could begin no thread: what the kernel says there."""

    clone3: str | None = None  # the name of the error that a bare clone3 ends with; ENOSYS and EINVAL are well
    processes: int | None = None  # RLIMIT_NPROC, soft; NO_LIMIT for none
    pids: int | None = None  # the cgroup's pids.max


@dataclass(frozen=True, slots=True)
class Box:
    """One container, or why there is none."""

    node: str
    refused: Refusal | None = None  # the engine made none
    words: str = ""  # its own
    memlock: int | None = None  # the soft limit in bytes; NO_LIMIT for none
    sees: Mounted | None = None  # what lies under the shared dir, inside
    pinned: bool = False  # it was asked for as with InfiniBand
    carded: bool = False  # it was asked for with cards
    smi_code: int | None = None
    smi: str | None = None  # what nvidia-smi says inside; None: not asked
    torch: Torch | None = None
    threads: Threads | None = None  # of one that could begin none
    room: Disk | None = None  # of the place that the engine's words say is full, looked at after that


def refusal(words: str) -> Refusal:
    """What an engine's complaint is about."""
    return next((kind for kind, pattern in _WORDS if re.search(pattern, words, re.MULTILINE)), "other")


def gone(words: str) -> str:
    """The program of a runtime that is not there, by the engine's complaint."""
    found = re.search(f"{_RUNTIME}(?:{_NO_PROGRAM})", words)
    return (found["path"] or found["name"]) if found else "nvidia-container-runtime"


def full(words: str) -> str:
    """The path for which there was no room, by the engine's complaint; empty where it names none."""
    found = _ROOMLESS.search(words)
    path = found[1] if found else ""
    return "/run" + path.removeprefix("/var/run") if path.startswith("/var/run/") else path


def room(path: str) -> tuple[str, ...]:
    """The command that tells of the room at a path, as `storage.disk` reads it."""
    return ("sh", "-c", _ROOM, "sh", path)


def threads(body: Mapping[str, Any]) -> Threads:
    """What the program says where it could begin none."""
    return Threads(_text(body.get("clone3")), _whole(body.get("processes")), _whole(body.get("pids")))


def shaped(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Box in the program's first answer; what is not as it should be is left out."""
    return {"memlock": _whole(body.get("memlock")), "sees": mounted.over(body.get("mounts"))}


def torch(body: Mapping[str, Any]) -> Torch:
    """What the program says of torch."""
    archs = body.get("archs")
    problem = next((str(body[key]) for key in ("error", "missing") if body.get(key)), "")
    return Torch(
        version=_text(body.get("torch")),
        cuda=_text(body.get("cuda")),
        nccl=_text(body.get("nccl")),
        archs=tuple(str(one) for one in archs) if isinstance(archs, list) else (),
        available=body["available"] if isinstance(body.get("available"), bool) else None,
        complaints="\n".join(one for one in (problem, _text(body.get("complaints"))) if one),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
