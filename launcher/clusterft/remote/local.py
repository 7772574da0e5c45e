"""This machine as a node: subprocesses in sessions of their own, so that a Ctrl-C at the terminal spares them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

from clusterft.remote.protocol import Completed, Unreachable

_LAST_BREATH = 2.0  # seconds


class LocalRemote:
    """The Remote of `transport=local`."""

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        """Run to the end; the whole session is ended when the deadline passes."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return Completed(127, "", str(error))  # what a shell on a remote node would answer
        try:
            out, err = process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            raise Unreachable("local.timeout", f"{argv[0]} did not end within {seconds:g} s") from None
        return Completed(process.returncode, _text(out), _text(err))

    def lines(self, argv: tuple[str, ...]) -> LocalLines:
        """Follow a command's stdout."""
        return LocalLines(argv)

    def close(self) -> None:
        """Nothing is held open."""


class LocalLines:
    """A running command of this machine."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __iter__(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield _text(line).rstrip("\n")
        self._process.wait()

    def close(self) -> None:
        """End the command; its reader then sees the end of the output."""
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended since it was polled
            os.killpg(process.pid, signal.SIGKILL)
    # A process that waits for a dead file server cannot be killed: it is left behind rather than waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_LAST_BREATH)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")
