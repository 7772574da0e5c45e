"""The controller's own files that nobody else may read: written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from clusterft.errors import ClusterftError


class CannotKeep(ClusterftError):
    """A file of the controller could not be written."""

    exit_code = 3
    kind = "cannot-write"


def write(path: Path, data: bytes) -> None:
    """Replace a file (0600, its directory 0700 if it is new); a crash leaves the old one or the new one."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotKeep(
            f"{path} cannot be written: {error.strerror}",
            remedy="make room there, or choose another place: export CLUSTERFT_HOME=...",
        ) from None
