"""The terminal while a screen redraws itself: keys are not shown, and a Ctrl-C throws nothing away.

A terminal that is interrupted drops what was written and not yet shown; a screen that moves its cursor up by what
it has written would then erase the lines above it.
"""

from __future__ import annotations

import atexit
import termios
from typing import Any

_LOCAL = 3  # where termios keeps the local modes


class Still:
    """From its making to `restore`; what is no terminal is left alone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None
        try:
            self._before = termios.tcgetattr(descriptor)
        except termios.error:
            return
        now = list(self._before)
        now[_LOCAL] = (now[_LOCAL] | termios.NOFLSH) & ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSANOW, now)
        atexit.register(
            self.restore
        )  # a process that ends in the middle leaves a terminal that shows what is typed

    def restore(self) -> None:
        """As it was."""
        before, self._before = self._before, None
        if before is not None:
            atexit.unregister(self.restore)
            termios.tcsetattr(self._descriptor, termios.TCSANOW, before)
