"""This machine as a node: subprocesses in sessions of their own, so that a Ctrl-C at the terminal spares them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
from typing import Any

from clusterft.remote.protocol import SILENCE_SECONDS, Completed, Unreachable
from clusterft.remote.stream import Deadline, Lines, Stream, Tail, text, until_ready

_LAST_BREATH = 2.0  # seconds
_CHUNK = 1 << 16
_LOOK_AGAIN = 0.1  # seconds


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
        return Completed(process.returncode, text(out), text(err))

    def lines(self, argv: tuple[str, ...], *, silence: float | None = SILENCE_SECONDS) -> Lines:
        """Follow a command's stdout; this machine is not taken for dead, however silent it is."""
        stream = LocalStream(argv)
        stream.shutdown(socket.SHUT_WR)
        return Lines(stream, None)

    def stream(self, argv: tuple[str, ...]) -> LocalStream:
        """Start a command with a socket for its stdin and stdout."""
        return LocalStream(argv)

    def close(self) -> None:
        """Nothing is held open."""


class LocalStream(Stream):
    """A running command of this machine; one that cannot be started has ended with 127, as in a shell."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        super().__init__()
        self._tail = Tail()
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        ends = other.fileno()
        with other:
            try:
                self._process = subprocess.Popen(
                    argv, stdin=ends, stdout=ends, stderr=subprocess.PIPE, start_new_session=True
                )
            except OSError as error:
                self._tail.add(str(error).encode())
        self._errors = self._process.stderr if self._process else None
        if self._errors:
            os.set_blocking(self._errors.fileno(), False)

    def recv(self, size: int) -> bytes:
        """What it has written; stderr is emptied meanwhile, or a talkative command would stop."""
        deadline = Deadline(self._timeout)
        while True:
            descriptor = self._socket.fileno()
            try:
                return self._socket.recv(size)
            except BlockingIOError:
                pass
            except OSError as error:
                # It ended without reading all that it was sent; or another thread has let go of it.
                if descriptor < 0 or error.errno in (errno.ECONNRESET, errno.EBADF):
                    return b""
                raise
            errors = [self._errors.fileno()] if self._drain() and self._errors else []
            until_ready(deadline.left(), descriptor, *errors)

    def sendall(self, data: Any) -> None:
        """Write to its stdin."""
        left = memoryview(data).cast("B")
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                until_ready(self._timeout, self._socket.fileno(), event=select.POLLOUT)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                    raise BrokenPipeError("the command no longer reads") from None
                raise

    def fileno(self) -> int:
        """The socket itself."""
        return self._socket.fileno()

    def code(self, seconds: float) -> int:
        """Wait for the exit code."""
        if self._process is None:
            return 127
        deadline = Deadline(seconds)
        while True:
            self._drain()
            try:
                return self._process.wait(min(deadline.left() or 0.0, _LOOK_AGAIN))
            except subprocess.TimeoutExpired:
                if not deadline.left():
                    raise Unreachable("local.timeout", f"it did not end within {seconds:g} s") from None

    def complaint(self) -> str:
        """The end of what it has said on stderr."""
        self._drain()
        return str(self._tail)

    def _drain(self) -> bool:
        """Take what stderr holds; whether more may come."""
        while self._errors and not self._errors.closed:
            try:
                data = os.read(self._errors.fileno(), _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail.add(data)
        return False

    def _end_writing(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a reader in another thread, which close() does not
        self._socket.close()
        if self._process:
            _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # It ended since it was polled; or it is root's, by sudo, and ends because its pipes are closed.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    # A process that waits for a dead file server cannot be killed: it is left behind rather than waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_LAST_BREATH)
