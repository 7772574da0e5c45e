"""A `clusterft` command that is under way: typed, watched, interrupted, killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.upping import Desk


@dataclass
class Controller:
    """A `clusterft` command that is under way."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(seconds)

    def interrupt(self) -> None:
        """One Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """As when the laptop's battery is empty."""
        self.process.kill()
        self.process.wait()

    def said(self) -> dict[str, Any]:
        """The one JSON document on its stdout."""
        text = self.out.read_text()
        assert text.count("\n") == 1, text + self.err.read_text()
        body: dict[str, Any] = json.loads(text)
        return body

    def words(self) -> str:
        """All that it wrote, for the message of a test that failed."""
        return self.out.read_text()[-6000:] + self.err.read_text()[-6000:]


def begin(desk: Desk, number: int, *words: str) -> Controller:
    """Type a command at a desk, and do not wait for it."""
    out, err = desk.root / f"said-{number}.json", desk.root / f"said-{number}.err"
    with out.open("wb") as to, err.open("wb") as also:
        process = subprocess.Popen(
            [sys.executable, "-m", "clusterft", *words],
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=also,
            env=desk.env,
            cwd=desk.root,
            start_new_session=True,
        )
    return Controller(process, out, err)


def until(met: Callable[[], bool], seconds: float, what: str, controller: Controller | None = None) -> None:
    """Wait for a condition, not longer than the command that should bring it about lives."""
    deadline = time.monotonic() + seconds
    while not met():
        if controller is not None and controller.process.poll() is not None and not met():
            raise AssertionError(f"the command ended while the test waited for {what}:\n{controller.words()}")
        if time.monotonic() > deadline:
            said = controller.words() if controller else ""
            raise AssertionError(f"waited {seconds:.0f} s for {what}\n{said}")
        time.sleep(0.25)
