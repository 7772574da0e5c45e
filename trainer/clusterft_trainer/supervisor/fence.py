"""Whether another gang has this run by now: looked at while members are out of reach, without ever waiting for it.

A head that is cut off from its members, but not from the shared dir, could go on and write checkpoints into a run
that a controller has planned anew on other nodes. run.json says so.
"""

from __future__ import annotations

import json
import sys

from clusterft_trainer.supervisor.processes import Child

_EVERY = 10.0  # seconds between two looks
_LOOK = 30.0  # seconds after which a look is given up


class Fence:
    """Looks at run.json in a process of its own."""

    def __init__(self, run_dir: str, first_attempt: int) -> None:
        self._argv = (sys.executable, "-P", "-m", "clusterft_trainer.supervisor.probe", "plan", run_dir)
        self._first_attempt = first_attempt
        self._child: Child | None = None
        self._next = self._deadline = 0.0
        self._lines: list[str] = []

    def turn(self, now: float, *, wanted: bool) -> bool:
        """Whether the run was planned anew, as far as is known at this moment."""
        if self._child is None:
            if not wanted or now < self._next:
                return False
            self._child, self._lines, self._deadline = Child(self._argv), [], now + _LOOK
            return False
        self._lines += self._child.lines()
        code = self._child.code()
        if code is None and now < self._deadline:
            return False
        self._lines += self._child.lines()
        self.close()
        self._next = now + _EVERY
        return code == 0 and any(_first(line) > self._first_attempt for line in self._lines)

    def close(self) -> None:
        """Look no more."""
        if self._child is not None:
            self._child.kill()
            self._child = None


def _first(line: str) -> int:
    """The first attempt of the plan that is there; -1 where that is none of ours."""
    try:
        return int(json.loads(line)["first_attempt"])
    except (ValueError, KeyError, TypeError):
        return -1
