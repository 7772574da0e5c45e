"""`python -m clusterft_trainer.supervisor.probe ports|share|outcome|plan ...`: a look at network or shared dir.

A process of its own, since either may hang for ever: who started it waits for as long as it likes, and lets go.
Speaks JSON lines: what it has, then for each line on stdin an answer. It tidies up and ends when stdin does.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

from clusterft_trainer.supervisor.messages import Link

DIAL = 5.0  # seconds for a connection
_ECHO = 4.0  # seconds for an echo
_SMALL, _LARGE = 1 << 10, 1 << 16
_SEEN = 6.0  # seconds until another node's file must be visible
_PROOFS = ".proof"


def ports(address: str) -> None:
    """Open a high port that echoes; dial those of others when told."""
    wide = ":" in address
    family = socket.AF_INET6 if wide else socket.AF_INET
    listener = socket.create_server(("::" if wide else "", 0), family=family)
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    _tell({"port": listener.getsockname()[1]})
    for line in sys.stdin:
        peers = [Link(**one) for one in json.loads(line)]
        links: dict[str, Link] = {}
        dialling = [threading.Thread(target=_dial, args=(peer, links), daemon=True) for peer in peers]
        for thread in dialling:
            thread.start()
        for thread in dialling:
            thread.join()
        _tell({"links": [asdict(links[peer.to]) for peer in peers]})


def share(run_dir: str, node: str, word: str) -> None:
    """Leave a proof in the run's directory; look for those of others when told."""
    mine = Path(run_dir, _PROOFS, node)
    _tell({"share": _write(mine, word)})
    for line in sys.stdin:
        unseen, problem = _look(mine.parent, json.loads(line), word)
        _tell({"unseen": unseen, "share": problem})
    try:
        mine.unlink(missing_ok=True)
        mine.parent.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
            raise  # the last one removes the directory


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while chunk := connection.recv(_LARGE):
                connection.sendall(chunk)
        except OSError:
            return  # the one who dialled tells what it saw


def _dial(peer: Link, links: dict[str, Link]) -> None:
    began = time.monotonic()
    try:
        with socket.create_connection((peer.address, peer.port), timeout=DIAL) as connection:
            links[peer.to] = _talk(peer, connection)
    except TimeoutError:
        links[peer.to] = replace(peer, error="timed out", seconds=time.monotonic() - began)
    except OSError as error:
        words = error.strerror or str(error)
        links[peer.to] = replace(peer, error=words, seconds=time.monotonic() - began)


def _talk(peer: Link, connection: socket.socket) -> Link:
    """Small, then large: a path that loses large packets lets small ones through."""
    taken: list[float] = []
    error = ""
    began = time.monotonic()
    for size in (_SMALL, _LARGE):
        began = time.monotonic()
        try:
            _exchange(connection, size, began + _ECHO)
        except OSError as problem:
            words = "timed out" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
            error = f"{size // 1024} KB echo: {words}"
            break
        taken.append(time.monotonic() - began)
    small, large = [*taken, None, None][:2]
    return replace(peer, small=small, large=large, error=error, seconds=time.monotonic() - began)


def _exchange(connection: socket.socket, size: int, deadline: float) -> None:
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    connection.sendall(bytes(size))
    while size > 0:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = connection.recv(size)
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
        size -= len(chunk)


def _write(mine: Path, word: str) -> str:
    """Empty, or the check that this fails and why."""
    try:
        if not mine.parent.parent.is_dir():
            return f"fs.not-shared {mine.parent.parent} is not there"
        mine.parent.mkdir(exist_ok=True)
        with mine.open("w", encoding="utf-8") as file:
            file.write(word)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _named(error)
    return ""


def _look(folder: Path, nodes: list[str], word: str) -> tuple[list[str], str]:
    """Whose proof is not there, after some time for caches; a name is asked for only once it must exist."""
    deadline = time.monotonic() + _SEEN
    unseen = list(nodes)
    while unseen:
        try:
            unseen = [node for node in unseen if not _seen(folder / node, word)]
        except OSError as error:
            return unseen, _named(error)
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return unseen, ""


def _seen(path: Path, word: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == word
    except FileNotFoundError:
        return False


def _named(error: OSError) -> str:
    check = "fs.squash" if error.errno in (errno.EACCES, errno.EPERM) else "fs.not-writable"
    return f"{check} {error.filename or ''}: {error.strerror}"


def _tell(body: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ports", own_address]:
            ports(own_address)
        case ["share", run_dir, own_node, own_word]:
            share(run_dir, own_node, own_word)
        case ["outcome", run_dir]:
            _tell(json.loads(Path(run_dir, "outcome.json").read_text(encoding="utf-8")))
        case ["plan", run_dir]:
            body = json.loads(Path(run_dir, "run.json").read_text(encoding="utf-8"))
            _tell({"first_attempt": body["plan"]["first_attempt"]})
