"""Proves that doctor's look at this machine is bounded whatever hangs here, and dials where ssh would."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenes

from clusterft.checks import Survey, Unreached
from clusterft.facts.desk import Desk
from clusterft.probing import client, desk
from clusterft.remote import shared, way

MANY = scenes.cluster("".join(f"n{i} slots=1\n" for i in range(8)))
TWO = scenes.cluster("a slots=1\nb slots=1\n")


class Fleet:
    """What the others are asked, and what they answer."""

    def __init__(self) -> None:
        self.login_seconds: dict[str, float] = {}
        self.crowded: set[str] = set()
        self.asked: list[tuple[str, ...]] = []

    def each(self, ask: Any) -> dict[str, Any]:
        """Of a alone."""

        def run(argv: tuple[str, ...], seconds: float) -> Any:
            self.asked.append(argv[4:])
            return SimpleNamespace(out="dialled 0 yes\n")

        return {"a": ask("a", SimpleNamespace(run=run))}


def test_masters_that_are_dead_are_waited_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(ways: Any, node: Any) -> tuple[str, tuple[str, ...]] | None:
        time.sleep(0.1 if node.name == "n3" else 30)
        return ("/run/mux", ("me",))

    monkeypatch.setattr(shared, "groups", dead)
    monkeypatch.setattr(shared, "open_keys", lambda ways, node: (("/home/me/.ssh/id", 0o644),))
    monkeypatch.setattr(client, "_HERE_SECONDS", 1.0)
    survey = scenes.survey(MANY, *(scenes.facts(f"n{i}") for i in range(8)))
    fleet: Any = Fleet()
    began = time.monotonic()
    found = client.look(Desk(), MANY, fleet, survey)
    assert time.monotonic() - began < 2.5
    assert [one.node for one in found.shared] == ["n3"], "who answered counts"
    assert [one.nodes for one in found.open_keys] == [tuple(f"n{i}" for i in range(8))]


def lost(monkeypatch: pytest.MonkeyPatch) -> tuple[Survey, Any]:
    """b is not reached; ~/.ssh/config has another name and port for it."""
    to = SimpleNamespace(host="b.lan", port=2222)
    monkeypatch.setattr(way, "Ways", lambda: SimpleNamespace(to=lambda node: to))
    monkeypatch.setattr(shared, "groups", lambda ways, node: None)
    monkeypatch.setattr(shared, "open_keys", lambda ways, node: ())
    return Survey(TWO, {"a": scenes.facts("a")}, (Unreached("b", "ssh.timeout", "b: no answer", ()),), {}), Fleet()


def test_others_dial_where_ssh_does(monkeypatch: pytest.MonkeyPatch) -> None:
    survey, fleet = lost(monkeypatch)
    names: list[str] = []

    def known(host: str, port: int, **_: Any) -> list[Any]:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", port))]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    (one,) = client.look(Desk(), TWO, fleet, survey).closed
    assert names == ["b.lan"] and (one.node, one.by) == ("b", ("a",))
    assert fleet.asked == [("127.0.0.9", "2222")]


def test_a_name_server_that_is_silent_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    survey, fleet = lost(monkeypatch)

    def silent(*_: Any, **__: Any) -> list[Any]:
        time.sleep(30)
        raise socket.gaierror("no answer")  # in a thread that nobody waits for any more

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(client, "_HERE_SECONDS", 0.5)
    began = time.monotonic()
    assert client.look(Desk(), TWO, fleet, survey).closed == ()
    assert time.monotonic() - began < 2 and fleet.asked == []


def test_own_files_that_cannot_be_looked_at_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    within = tmp_path / "file" / "key"  # not a directory
    where: Any = SimpleNamespace(dir=loose, key=within, known_hosts=within, settings=within)
    assert [one.path for one in desk.look(where).loose] == [str(loose)]
