"""Two ends of one connection: who does not know the token, or says what is not its own, is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from clusterft_trainer.supervisor import wire
from clusterft_trainer.supervisor.messages import Asked, Message, Moved, Stop, decode, encode
from clusterft_trainer.supervisor.wire import Channel

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection's two sockets."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


def talk(*channels: Channel, now: float = 0.0, rounds: int = 6) -> list[list[Message]]:
    """Let them exchange what they have."""
    heard: list[list[Message]] = [[] for _ in channels]
    for _ in range(rounds):
        for number, channel in enumerate(channels):
            heard[number] += channel.pump(now)
    return heard


def test_both_prove_the_token_and_then_hear_each_other(pair: Pair) -> None:
    head, member = Channel(pair[0], "head", "t", 0.0), Channel(pair[1], "member", "t", 0.0)
    member.send(Moved(0, 1))
    head.send(Stop(1))
    assert talk(head, member) == [[Moved(0, 1)], [Stop(1)]]
    assert head.proven and member.proven and not head.closed and not member.closed


def test_a_member_with_another_token_is_refused_and_hears_nothing(pair: Pair) -> None:
    head, member = Channel(pair[0], "head", "t", 0.0), Channel(pair[1], "member", "other", 0.0)
    head.send(Stop(1))
    member.send(Asked(1))
    assert talk(head, member) == [[], []]
    assert "does not know this run's token" in head.closed and not member.proven


def test_a_head_that_does_not_know_the_token_learns_nothing(pair: Pair) -> None:
    member = Channel(pair[1], "member", "t", 0.0)
    member.send(Asked(1))
    pair[0].send(b'{"nonce":"00"}\n')
    talk(member)
    answer = json.loads(pair[0].recv(4096))
    assert answer.keys() == {"nonce", "proof"}
    pair[0].send(b'{"proof":"' + answer["proof"].encode() + b'"}\n')  # its own proof, sent back
    talk(member)
    assert "does not know" in member.closed and not member.proven


STRANGE = [b"GET / HTTP/1.1\r\n", b"[]\n", b"x" * 5000, b'{"nonce": 3}\n' * 3, b"\xff\xfe\n"]


@pytest.mark.parametrize("line", STRANGE)
def test_strangers_are_shown_the_door(pair: Pair, line: bytes) -> None:
    head = Channel(pair[0], "head", "t", 0.0)
    pair[1].send(line)
    talk(head)
    assert head.closed and not head.proven


def test_one_that_says_nothing_is_not_waited_for(pair: Pair) -> None:
    head = Channel(pair[0], "head", "t", 0.0)
    talk(head, now=9.0)
    assert not head.closed
    talk(head, now=11.0)
    assert head.closed == "no introduction in time"


def test_silence_ends_a_connection_and_beats_keep_it(pair: Pair) -> None:
    head, member = Channel(pair[0], "head", "t", 0.0), Channel(pair[1], "member", "t", 0.0)
    talk(head, member)
    for now in range(1, 60):
        assert talk(head, member, now=float(now)) == [[], []]
    assert not head.closed and not member.closed
    head.pump(59.0 + wire.SILENT + 1)
    assert head.closed.startswith("silent for")


def test_a_line_cannot_be_said_twice_nor_changed(pair: Pair) -> None:
    head, member = Channel(pair[0], "head", "t", 0.0), Channel(pair[1], "member", "t", 0.0)
    talk(head, member)
    member.send(Asked(1))
    member.pump(0.0)
    line = pair[0].recv(4096)
    for forged in (line + line, line.replace(b'"times":1', b'"times":2')):
        one, other = socket.socketpair()
        with one, other:
            head = Channel(one, "head", "t", 0.0)
            member = Channel(other, "member", "t", 0.0)
            talk(head, member)
            other.send(forged)  # sealed for another connection
            assert talk(head) == [[]]
            assert head.closed == "a line with a wrong seal"


def test_a_reader_that_is_gone_does_not_fill_the_memory(pair: Pair) -> None:
    head, member = Channel(pair[0], "head", "t", 0.0), Channel(pair[1], "member", "t", 0.0)
    talk(head, member)
    for number in range(100_000):
        head.send(Moved(number, number))
        if head.closed:
            break
    assert head.closed == "nobody reads there"


FOREIGN = ["", "[]", "{}", '{"kind": "no"}', '{"kind": "stop"}', '{"kind": "hello", "member": 3}']


@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_no_message_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert decode(encode(Stop(2))[:-1] + ', "later": 1}') == Stop(2)
