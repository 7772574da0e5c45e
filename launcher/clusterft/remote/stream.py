"""A command's stdin and stdout as one socket-like object, whatever carries it; its stderr is kept, shortened.

Complete enough for http.client and for docker's SDK: timeouts, a readable descriptor for poll(), and a makefile()
that outlives close(). A connection that breaks is an Unreachable; a command that ends is an end of file.
"""

from __future__ import annotations

import io
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from clusterft.remote.unreachable import Unreachable

_CHUNK = 1 << 16
_KEPT = 4096  # bytes of stderr: the last words are what matters


class Stream(ABC):
    """A running command, both ways. One reader and one writer at a time, in two threads if need be."""

    def __init__(self) -> None:
        self._timeout: float | None = None
        self._files = 0
        self._let_go = False
        self._turn = threading.Lock()

    @abstractmethod
    def recv(self, size: int) -> bytes:
        """Up to that many bytes; none at the end; TimeoutError after the timeout, Unreachable when it broke."""

    @abstractmethod
    def sendall(self, data: Any) -> None:
        """Send everything; BrokenPipeError when the command no longer reads, Unreachable when it broke."""

    @abstractmethod
    def fileno(self) -> int:
        """For poll() alone: readable when recv() would not wait, and now and then for nothing."""

    @abstractmethod
    def code(self, seconds: float) -> int:
        """Wait for the command's exit code, below zero if a signal ended it; read its output first."""

    @abstractmethod
    def complaint(self) -> str:
        """The end of what it has said on stderr so far."""

    @abstractmethod
    def _end_writing(self) -> None: ...

    @abstractmethod
    def _hang_up(self) -> None: ...

    def settimeout(self, seconds: float | None) -> None:
        """Of each recv and each piece of a sendall; None waits for ever."""
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """What settimeout was told."""
        return self._timeout

    def shutdown(self, how: int) -> None:
        """socket.SHUT_WR or SHUT_RDWR: the command reads an end of file. Reading goes on."""
        if how:
            self._end_writing()

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedReader:
        """A buffered reader; the stream is not let go before it is closed too."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{mode}: a stream is read as a file, and written with sendall")
        with self._turn:
            self._files += 1
        return _File(_Raw(self), buffering if buffering and buffering > 1 else _CHUNK)

    def close(self) -> None:
        """Let go of the command, which reads an end of file; safe from another thread, and more than once."""
        with self._turn:
            self._let_go = True
            over = self._files == 0
        if over:
            self._hang_up()

    def abort(self) -> None:
        """Let go at once, open files or not: a reader in another thread then sees the end."""
        self._hang_up()

    def _file_closed(self) -> None:
        with self._turn:
            self._files -= 1
            over = self._let_go and self._files == 0
        if over:
            self._hang_up()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()


class Lines:
    """A stream's output line by line; ends when the command does or after close()."""

    def __init__(self, stream: Stream, silence: float | None) -> None:
        self._stream = stream
        self._silence = silence
        stream.settimeout(silence)

    def __iter__(self) -> Iterator[str]:
        rest = b""
        while chunk := self._next():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield text(line)
        if rest:
            yield text(rest)

    def _next(self) -> bytes:
        try:
            return self._stream.recv(_CHUNK)
        except TimeoutError:
            raise Unreachable("ssh.timeout", f"nothing was heard for {self._silence:g} s") from None

    def code(self, seconds: float) -> int:
        """The command's exit code, once all lines are read; Unreachable when the connection broke before it."""
        return self._stream.code(seconds)

    def complaint(self) -> str:
        """The end of what it said on stderr."""
        return self._stream.complaint()

    def close(self) -> None:
        """Stop reading; safe from another thread, and more than once."""
        self._stream.abort()


class Tail:
    """The last bytes of an output that may be long."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        """More of it."""
        self._kept += data
        del self._kept[:-_KEPT]

    def __str__(self) -> str:
        return text(bytes(self._kept)).strip()


def text(data: bytes) -> str:
    """What a program printed, whatever it was."""
    return data.decode("utf-8", errors="backslashreplace")


def until_ready(timeout: float | None, *descriptors: int, event: int = select.POLLIN) -> None:
    """Wait for any of them; TimeoutError when none is in time. poll() has no limit of 1024 as select() has."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, event)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("timed out")


class Deadline:
    """What is left of a timeout that may be none."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds, never below zero; None is for ever."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())


class _Raw(io.RawIOBase):
    """What a BufferedReader reads from."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.dry = False  # nothing may be read for now

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.dry:
            return None  # "would block"
        data = self.stream.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def fileno(self) -> int:
        return self.stream.fileno()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.stream._file_closed()


class _File(io.BufferedReader):
    """A BufferedReader whose `raw`, which docker's SDK takes for the socket, loses nothing of what is buffered."""

    def __init__(self, raw: _Raw, size: int) -> None:
        super().__init__(raw, size)
        self._below = raw

    @property
    def raw(self) -> Any:  # type: ignore[override]
        """The rest of the stream, as a socket."""
        return _Rest(self, self._below.stream, self._anything_buffered)

    def _anything_buffered(self) -> bool:
        self._below.dry = True
        try:
            return bool(self.peek(1))
        finally:
            self._below.dry = False


class _Rest:
    """A stream from which a buffer has already taken something: first that, then the stream itself."""

    def __init__(self, file: io.BufferedReader, stream: Stream, buffered: Callable[[], bool]) -> None:
        self._file = file
        self._stream = stream
        self._buffered = buffered

    def recv(self, size: int) -> bytes:
        return self._file.read1(size)

    def fileno(self) -> int:
        """What lies in the buffer makes no descriptor readable: then one that always is stands in."""
        return _always_readable() if self._buffered() else self._stream.fileno()

    def sendall(self, data: bytes) -> None:
        self._stream.sendall(data)

    def settimeout(self, seconds: float | None) -> None:
        self._stream.settimeout(seconds)

    def gettimeout(self) -> float | None:
        return self._stream.gettimeout()

    def shutdown(self, how: int) -> None:
        self._stream.shutdown(how)

    def close(self) -> None:
        self._file.close()
        self._stream.close()


_null: io.FileIO | None = None


def _always_readable() -> int:
    """/dev/null is at its end, which counts as readable."""
    global _null
    if _null is None:
        _null = io.FileIO("/dev/null")
    return _null.fileno()
