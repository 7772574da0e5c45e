"""Noticing a node that is gone: every connection is asked for an answer now and then, and ended if none comes.

paramiko's own keep-alive only sends. A peer whose kernel answers for frozen processes, or that lies behind a
bastion, would be waited for as long as the system pleases.
"""

from __future__ import annotations

import threading
import time
import weakref

import paramiko

EVERY_SECONDS = 15.0
PATIENCE_SECONDS = 30.0

_watched: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
_turn = threading.Lock()
_running = False


def watch(transport: paramiko.Transport) -> None:
    """Keep asking until the connection ends; one thread does it for all."""
    global _running
    with _turn:
        _watched.add(transport)
        if not _running:
            _running = True
            threading.Thread(target=_beat, name="pulse", daemon=True).start()


def _beat() -> None:
    global _running
    while True:
        time.sleep(EVERY_SECONDS)
        with _turn:
            for ended in [one for one in _watched if not one.is_active()]:
                _watched.discard(ended)
            alive = list(_watched)
            if not alive:
                _running = False
                return
        _ask(alive)
        del alive  # a sleeping thread must not keep closed connections in memory


def _ask(transports: list[paramiko.Transport]) -> None:
    """All at once; a request that is not answered would wait for ever, and ends with its connection."""
    asked = [(one, threading.Thread(target=_request, args=(one,), daemon=True)) for one in transports]
    for _, thread in asked:
        thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for transport, thread in asked:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            transport.close()


def _request(transport: paramiko.Transport) -> None:
    """sshd answers that it knows no such request, which is all that is wanted."""
    try:
        transport.global_request("keepalive@openssh.com", wait=True)
    except (paramiko.SSHException, OSError, EOFError):
        return  # it has ended, and whoever uses it is told so
