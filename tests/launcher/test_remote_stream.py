"""A command as a socket: what docker's SDK and long transfers rely on, here with commands of this machine."""

from __future__ import annotations

import select
import socket
import threading
import time

import pytest

from clusterft.remote import Unreachable
from clusterft.remote.local import LocalRemote, LocalStream

REMOTE = LocalRemote()


def sh(script: str) -> LocalStream:
    """A shell script as a stream."""
    return REMOTE.stream(("sh", "-c", script))


def everything(stream: LocalStream) -> bytes:
    """All that it says until its end."""
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def test_both_ways_and_a_half_close() -> None:
    with REMOTE.stream(("cat",)) as stream:
        stream.sendall(b"one ")
        assert stream.recv(100) == b"one "
        stream.sendall(memoryview(b"two"))
        stream.shutdown(socket.SHUT_WR)
        assert everything(stream) == b"two" and stream.code(5) == 0


def test_a_big_answer_meets_a_big_question() -> None:
    body = bytes(range(256)) * 40_000  # far beyond what any buffer holds
    with REMOTE.stream(("cat",)) as stream:

        def ask() -> None:
            stream.sendall(body)
            stream.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=ask)
        thread.start()
        assert everything(stream) == body
        thread.join(5)


def test_the_end_of_stderr_is_kept_and_a_flood_of_it_stops_nothing() -> None:
    with sh("i=0; while [ $i -lt 30000 ]; do echo 0123456789 >&2; i=$((i+1)); done; echo last >&2; echo out") as s:
        assert everything(s) == b"out\n" and s.code(5) == 0
        words = s.complaint()
    assert words.endswith("0123456789\nlast") and len(words) < 5000
    with sh("head -c 300000 /dev/zero >&2; exit 3") as silent:
        assert silent.code(10) == 3, "waiting for the end empties stderr too"


def test_exit_codes_of_what_fails_what_is_killed_and_what_is_not_there() -> None:
    for script, code in (("exit 7", 7), ("kill -9 $$", -9)):
        with sh(script) as stream:
            assert everything(stream) == b"" and stream.code(5) == code
    with REMOTE.stream(("no-such-program",)) as nothing:
        assert everything(nothing) == b"" and nothing.code(1) == 127
        assert "no-such-program" in nothing.complaint()
    with sh("sleep 60") as late, pytest.raises(Unreachable, match=r"within 0\.2 s"):
        late.code(0.2)


def test_a_timeout_counts_for_reading_and_for_writing() -> None:
    with sh("sleep 60") as stream:
        stream.settimeout(0.2)
        for stuck in (lambda: stream.recv(1), lambda: stream.sendall(bytes(1 << 22))):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                stuck()
            assert time.monotonic() - began < 3


def test_who_no_longer_reads_is_a_broken_pipe() -> None:
    with sh("exec <&-; exec >&-; exit 0") as stream:
        assert everything(stream) == b""
        with pytest.raises(BrokenPipeError):
            for _ in range(100):
                stream.sendall(bytes(1 << 16))


def test_a_file_outlives_close_and_reads_to_the_end() -> None:
    stream = sh("echo one; sleep 0.2; echo two")
    with stream.makefile("rb") as file:
        stream.close()  # http.client does so as soon as it has the headers of a last answer
        assert file.readline() == b"one\n" and file.read() == b"two\n"
    assert everything(stream) == b""


def test_nothing_that_was_buffered_is_lost_to_who_takes_the_socket() -> None:
    """docker's SDK reads the headers through a file, then the frames from file.raw, which it polls first."""
    with sh("printf 'head\\nframe'; sleep 5") as stream:
        file = stream.makefile("rb")
        assert file.readline() == b"head\n"
        rest = file.raw
        poll = select.poll()
        poll.register(rest, select.POLLIN)
        assert poll.poll(2000), "what lies in the buffer counts as readable"
        assert rest.recv(100) == b"frame"
        poll = select.poll()
        poll.register(rest, select.POLLIN)
        assert not poll.poll(100), "then only what is new does"


def test_another_thread_can_end_it() -> None:
    stream = sh("sleep 60")
    threading.Timer(0.2, stream.abort).start()
    assert stream.recv(1) == b""
    assert stream.code(5) == -9


def test_lines_end_with_a_code_and_a_complaint() -> None:
    lines = REMOTE.lines(("sh", "-c", "echo one; printf two; echo oh >&2; exit 4"))
    assert list(lines) == ["one", "two"] and lines.code(5) == 4 and lines.complaint() == "oh"
    stuck = REMOTE.lines(("sh", "-c", "cat; echo no stdin; sleep 60"))
    assert next(iter(stuck)) == "no stdin"
    stuck.close()
