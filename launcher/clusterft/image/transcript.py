"""What a classic builder says while it works -> which step it is at, and why it failed. Pure."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from clusterft.events import Progress

STAGE = "image"
KEPT = 40  # lines of a step's output that a failure shows
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_NOISE = re.compile(r"\s*(---> |Removing intermediate container|Successfully |\[Warning\])")


@dataclass(slots=True)
class Transcript:
    """Fed with the builder's messages, one by one."""

    what: str  # is being built, in a word
    step: str = ""
    number: int = 0
    of: int = 0
    error: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    _rest: str = ""

    def feed(self, message: dict[str, Any]) -> Progress | None:
        """Take one message; what there is to show, if anything."""
        if "error" in message:
            self.error = _plain(str(message["error"]))
            return None
        if "stream" in message:
            return self._said(str(message["stream"]))
        if "status" in message:
            return self._pulled(message)
        return None

    def _said(self, words: str) -> Progress | None:
        if found := _STEP.match(words):
            self.number, self.of, self.step = int(found[1]), int(found[2]), " ".join(found[3].split())
            self.tail.clear()
            self._rest = ""
            return self._show(self.step)
        shown = None
        *whole, self._rest = (self._rest + words.replace("\r", "\n")).split("\n")
        for line in map(_plain, whole):
            if line and not _NOISE.match(line):
                self.tail.append(line)
                shown = self._show(line)
        return shown

    def _pulled(self, message: dict[str, Any]) -> Progress:
        """The base comes from a registry: bytes of one layer at a time."""
        detail = message.get("progressDetail") or {}
        words = f"{message['status']} {message.get('id', '')}".strip()
        self.tail.append(_plain(words))
        shown = self._show(_plain(words))
        return Progress("", STAGE, shown.words, detail.get("current"), detail.get("total"))

    def _show(self, line: str) -> Progress:
        where = f"{self.what} {self.number}/{self.of}: " if self.of else f"{self.what}: "
        return Progress("", STAGE, where + line[:160])

    def evidence(self) -> str:
        """The step that failed and the end of what it printed."""
        lines = [line for line in (*self.tail, _plain(self._rest)) if line]
        head = [f"step {self.number}/{self.of}: {self.step[:400]}"] if self.of else []
        return "\n".join([*head, *lines, self.error])


def _plain(text: str) -> str:
    """Without the escapes and colours that a tool draws bars with: evidence goes to terminals and JSON."""
    return _TERMINAL.sub("", text).strip()
