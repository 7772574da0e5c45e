"""What lies beside the file that is migrated: texts that it names, and folders of pictures.

Owns reading them, and how large a text may be. Refuses a text that cannot be read; what is not at hand is None.
"""

from __future__ import annotations

import os
from pathlib import Path

from clusterft_trainer.errors import ConfigError

LARGEST = 4 << 20  # bytes of a settings file; more is something else


class Beside:
    """A reader of what a file names, relative to its folder or by the whole path."""

    def __init__(self, file: Path) -> None:
        self._folder = file.parent

    def __call__(self, path: str) -> str | None:
        """The text of a file."""
        found = self._folder / path
        try:
            if not found.is_file() or found.stat().st_size > LARGEST:
                return None
        except OSError:  # a name that is none here
            return None
        try:
            return found.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{found} is not UTF-8 text: {error.reason}.", "Save it as UTF-8.") from None
        except OSError as error:
            raise ConfigError(f"{found} cannot be read: {error.strerror}.", "Make it readable.") from None

    def folders(self, path: str) -> tuple[str, ...] | None:
        """Names of the folders in a folder, sorted; None if nobody here can look into it."""
        try:
            with os.scandir(self._folder / path) as entries:
                return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
        except OSError:
            return None


def beside(file: Path) -> Beside:
    """The reader for a file."""
    return Beside(file)
