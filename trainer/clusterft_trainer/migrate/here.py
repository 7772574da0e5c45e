"""What lies beside the file that is migrated: texts that it names, and folders of pictures.

Owns reading them, and how large a text may be. Refuses a text that cannot be read; what is not at hand is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from clusterft_trainer.errors import ConfigError

LARGEST = 4 << 20  # bytes of a settings file; more is something else


class AtHand:
    """What a file names, as far as it is at hand: texts that are given with it, and no folder."""

    def __init__(self, texts: Mapping[str, str] = MappingProxyType({})) -> None:
        self._texts = texts

    def text(self, path: str) -> str | None:
        """The text of a file; None if it is not at hand."""
        return self._texts.get(path)

    def folders(self, path: str) -> tuple[str, ...] | None:
        """Names of the folders in a folder, sorted; None if nobody here can look into it."""
        return None


class Beside(AtHand):
    """The same relative to the file's own folder, or by the whole path."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._folder = file.parent

    def text(self, path: str) -> str | None:
        """As it is read."""
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
        """As they are seen."""
        try:
            with os.scandir(self._folder / path) as entries:
                return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
        except OSError:
            return None
