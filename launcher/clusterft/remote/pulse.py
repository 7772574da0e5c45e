"""Noticing a node that is gone: every connection is asked for an answer now and then, and ended if none comes.

paramiko's own keep-alive only sends. A peer whose kernel answers for frozen processes, or that lies behind a
bastion, would be waited for as long as the system pleases.
"""

from __future__ import annotations

import threading
import time
import weakref

import paramiko

_EVERY = 15.0  # seconds
_PATIENCE = 30.0


class Pulse:
    """One thread that asks for all connections, as long as there are any."""

    def __init__(self, every: float = _EVERY, patience: float = _PATIENCE) -> None:
        self._every, self._patience = every, patience
        self._watched: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
        self._turn = threading.Lock()
        self._running = False

    def watch(self, transport: paramiko.Transport) -> None:
        """Keep asking until the connection ends."""
        with self._turn:
            self._watched.add(transport)
            if not self._running:
                self._running = True
                threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(self._every)
            alive = self._alive()
            if not alive:
                return
            self._ask(alive)
            del alive  # a sleeping thread must not keep closed connections in memory

    def _alive(self) -> list[paramiko.Transport]:
        with self._turn:
            alive = [one for one in self._watched if one.is_active()]
            self._watched = weakref.WeakSet(alive)
            self._running = bool(alive)
            return alive

    def _ask(self, transports: list[paramiko.Transport]) -> None:
        """All at once; a request that is not answered would wait for ever, and ends with its connection."""
        asked = [(one, threading.Thread(target=_request, args=(one,), daemon=True)) for one in transports]
        for _, thread in asked:
            thread.start()
        deadline = time.monotonic() + self._patience
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
