"""Proves that sshd's own words for a connection that did not come about are kept, for the right channel."""

from __future__ import annotations

import threading
from typing import Any

import paramiko
import pytest
from paramiko.message import Message

from clusterft.remote import Unreachable
from clusterft.remote.forwarding import CONNECT_FAILED, Transport, connect


def test_the_words_of_a_refused_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on: list[int] = []

    def below(self: Any, m: Message) -> None:
        passed_on.append(m.get_int())

    monkeypatch.setattr(paramiko.Transport, "_parse_channel_open_failure", below)
    transport = Transport.__new__(Transport)
    transport._mine, transport._said = threading.local(), {}
    said = Message()
    said.add_int(7)
    said.add_int(CONNECT_FAILED)
    said.add_string("Connection refused")
    said.add_string("")
    transport._parse_channel_open_failure(Message(said.asbytes()))
    transport._mine.number = 7
    assert transport.refusal() == (CONNECT_FAILED, "Connection refused")
    assert passed_on == [7], "paramiko still reads the message from its start"
    assert transport.refusal() is None


def test_a_thread_that_got_no_channel_has_no_words_and_the_broken_way_is_told() -> None:
    class Gone(Transport):
        """As paramiko is after the connection broke."""

        def __init__(self) -> None:
            self._mine, self._said = threading.local(), {}

        def open_channel(self, *given: Any, **options: Any) -> paramiko.Channel:
            raise paramiko.SSHException("SSH session not active")

        def is_active(self) -> bool:
            return False

    with pytest.raises(Unreachable, match="the connection broke"):
        connect(Gone(), "10.0.0.2", 29500, 1.0)
