"""What of a node a container may see: the same path inside as outside. Pure.

Owns the rule of what never goes in: what would hand the node itself to the container, or hide what the image or
the engine puts there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_READ_ONLY = ":ro"
# The node itself, its engines and its other containers.
_NODE = ("/", "/run", "/var", "/var/run", "/var/lib", "/var/lib/docker", "/var/lib/containerd", "/boot")
# The image's own, which the mount would hide; /home/clusterft is HOME in a container.
_IMAGE = ("/bin", "/etc", "/home", "/home/clusterft", "/lib", "/lib64", "/opt", "/opt/clusterft", "/sbin", "/usr")
# Made by the engine for each container: nothing goes onto or below them.
_ENGINE = ("/dev", "/proc", "/run/clusterft", "/sys")
_PATTERN = frozenset("*?[")
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".tar")  # what a data set may be named by
_SOCKETS = ("docker.sock", "containerd.sock", "podman.sock")


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the node inside a container."""

    path: str
    read_only: bool = False

    def __str__(self) -> str:
        """As a job has it."""
        return self.path + _READ_ONLY * self.read_only


def parse(text: str) -> Mount:
    """`/data` or `/data:ro`; ValueError says what is wrong with it."""
    path = text.removesuffix(_READ_ONLY)
    if not path.startswith("/"):
        raise ValueError(f'"{text}": give the whole path on the nodes, from / on')
    if ":" in path:
        raise ValueError(f'"{text}": a path is the same inside as outside, so that only :ro may follow it')
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f'"{text}": write the path without ..')
    plain = "/" + str(PurePosixPath(path)).lstrip("/")  # POSIX keeps two leading slashes apart from one
    why = refusal(plain)
    if why:
        raise ValueError(why)
    return Mount(plain, text.endswith(_READ_ONLY))


def refusal(path: str) -> str:
    """Why a path never goes into a container; empty if it may."""
    at = PurePosixPath(path)
    if path in _NODE or at.name in _SOCKETS:
        return f"{path} in a container would hand the node itself to it"
    if path in _IMAGE:
        return f"{path} would hide what the image has there"
    if any(at.is_relative_to(one) for one in _ENGINE):
        return f"{path}: the engine makes it for each container"
    return ""


def seat(path: str) -> str:
    """What is mounted so that a file or a pattern can be read with what lies beside it.

    A single file would be the wrong one once another has taken its name; and pictures lie beside a table.
    """
    at = PurePosixPath(path)
    plain = next((one for one in reversed((at, *at.parents)) if _PATTERN & set(one.name)), at)
    whole = plain.parent if plain != at or _PATTERN & set(at.name) or at.suffix.lower() in _FILES else at
    return path if refusal(str(whole)) and not _PATTERN & set(path) else str(whole)


def covered(path: str, mounts: Iterable[Mount]) -> bool:
    """Whether a path is seen through one of the mounts."""
    return any(PurePosixPath(path).is_relative_to(one.path) for one in mounts)
