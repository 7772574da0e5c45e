"""A TCP connection that a node's sshd makes for us: what the node itself can reach, without a program on it.

Owns sshd's own words on why it could not, which paramiko replaces by others. Refuses to listen: nothing is
forwarded the other way.
"""

from __future__ import annotations

import threading
from typing import Any

import paramiko
from paramiko.ssh_exception import SSHException

from clusterft.remote.unreachable import Broken

CONNECT_FAILED = 2  # of RFC 4254, 5.1; 1 is "administratively prohibited"


class NotForwarded(Exception):
    """It did not come about. `words` are what the node's kernel said, else why it was not even tried."""

    def __init__(self, words: str, *, tried: bool) -> None:
        super().__init__(words)
        self.words = words
        self.tried = tried


class Transport(paramiko.Transport):
    """The one of paramiko, which also keeps what the other side says when it opens no channel."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._mine = threading.local()
        self._said: dict[int, tuple[int, str]] = {}
        super().__init__(*given, **options)

    def refusal(self) -> tuple[int, str] | None:
        """(reason, words) for the channel that this thread asked for last."""
        return self._said.pop(getattr(self._mine, "number", -1), None)  # a session that is gone gives no number

    def _next_channel(self) -> int:
        number: int = super()._next_channel()  # type: ignore[misc]
        self._mine.number = number
        return number

    def _parse_channel_open_failure(self, m: Any) -> None:
        at = m.packet.tell()
        number, reason, words = m.get_int(), m.get_int(), m.get_text()
        self._said[number] = (reason, words)
        m.packet.seek(at)
        super()._parse_channel_open_failure(m)  # type: ignore[misc]


def connect(transport: Transport, address: str, port: int, seconds: float) -> paramiko.Channel:
    """The connection; NotForwarded, or Broken when the way to the node broke."""
    try:
        channel = transport.open_channel(
            "direct-tcpip", dest_addr=(address, port), src_addr=("127.0.0.1", 0), timeout=seconds
        )
    except (OSError, SSHException, EOFError) as error:
        said = transport.refusal()
        if said:
            raise NotForwarded(said[1] or str(error), tried=said[0] == CONNECT_FAILED) from None
        if not transport.is_active():
            raise Broken(str(error)) from None
        raise NotForwarded("timed out", tried=True) from None
    channel.settimeout(seconds)
    return channel
