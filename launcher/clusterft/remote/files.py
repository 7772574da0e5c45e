"""Putting files on a node with nothing but tar and sh there: new directories at once, single files atomically."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from clusterft.errors import ClusterftError
from clusterft.remote.protocol import Remote

# The name is a parameter, never part of the text. sync: a crash after the rename must not leave an empty file.
# Two controllers may write the same file of a shared directory at once, over two nodes: each has its own draft.
_WRITE = (
    'new=$1.$(uname -n).$$.new; mkdir -p "$(dirname "$1")" && umask 077 && { cat > "$new" && chmod "$2" "$new" '
    '&& sync "$new" && mv "$new" "$1" || { rm -f "$new"; exit 1; }; }'
)


class NewFile(NamedTuple):
    """One file of a new directory; the path is relative to it."""

    path: str
    text: str
    mode: int


def create(remote: Remote, directory: PurePosixPath, files: Iterable[NewFile]) -> None:
    """Make a directory (0700) that was not there, with its files, in one round trip."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            data = file.text.encode("utf-8")
            entry = tarfile.TarInfo(file.path)
            entry.size, entry.mode = len(data), file.mode
            tar.addfile(entry, io.BytesIO(data))
    script = 'umask 077; mkdir -p "$1" && cd -- "$1" && tar -xpof -'  # tar -C would unquote backslashes
    _check(remote.run(("sh", "-c", script, "sh", str(directory)), stdin=packed.getvalue()), str(directory))


def write(remote: Remote, path: PurePosixPath, text: str, mode: int = 0o644) -> None:
    """Write one file so that a reader sees the old one or the new one, never half of it."""
    argv = ("sh", "-c", _WRITE, "sh", str(path), f"{mode:o}")
    _check(remote.run(argv, stdin=text.encode("utf-8")), str(path))


def _check(done: tuple[int, str, str], path: str) -> None:
    code, _, err = done
    if code != 0:
        raise CannotWrite(
            f"{path} cannot be written: {err.strip() or f'exit code {code}'}",
            remedy="is its parent a directory that is mounted, writable for this user, and not full?",
        )


class CannotWrite(ClusterftError):
    """A file could not be put on a node; the words are the node's own."""

    exit_code = 3
    kind = "cannot-write"
