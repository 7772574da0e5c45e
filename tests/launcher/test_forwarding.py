"""Proves that sshd's own words for a connection that did not come about are kept, for the right channel."""

from __future__ import annotations

import threading
from typing import Any

import paramiko
import pytest
from paramiko.message import Message

from clusterft.remote.forwarding import CONNECT_FAILED, Transport


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
