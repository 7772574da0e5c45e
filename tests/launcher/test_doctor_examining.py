"""Proves that a part of doctor's look that breaks, or leaves something behind, is told and costs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft.apply import examining
from clusterft.checks.examination import Wanted
from clusterft.errors import UsageError
from clusterft.fleet import Fleet
from clusterft.probing.crew import Crew, Talk, Way
from clusterft.remote import Unreachable

HERE = scenes.cluster("a slots=1 transport=local\nb slots=1 transport=local\n")
WANTED = Wanted("cpu", contained=False)


def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: Any) -> examining.Examined:
    """At two nodes that are both this machine, with another port matrix."""
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path))
    monkeypatch.setattr(examining.links, "look", links)
    with Fleet(HERE, tmp_path / "known_hosts") as fleet:
        return examining.examine(HERE, fleet, WANTED, "usual", lambda words: None)


def test_a_part_that_breaks_is_a_bug_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("gone")

    done = look(tmp_path, monkeypatch, broken)
    assert done.broken and any("a bug of clusterft: KeyError: 'gone'" in note for note in done.notes)
    assert done.seen.links is None and set(done.seen.health) == {"a", "b"}
    assert "KeyError" in done.seen.absent["links"]["a"].words


def test_what_a_part_says_for_the_user_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise UsageError("the address of b towards the other nodes is not known")

    done = look(tmp_path, monkeypatch, refused)
    assert not done.broken and done.seen.absent["links"]["b"].words.startswith("the address of b")


class Line:
    """A program's stream that nobody reads."""

    def close(self) -> None:
        """It is let go."""


class Nodes:
    """A fleet whose engine on b does not answer any more."""

    def each(self, work: Any) -> dict[str, Any]:
        """As the fleet does it."""
        return {"a": None, "b": Unreachable("ssh.timeout", "no answer within 10 s")}


def test_a_container_that_may_be_left_is_named_with_the_command_that_takes_it_away() -> None:
    way = Way("image", ("docker", "run", "tag"), docker=("sudo", "-n", "docker"))
    crew = Crew(Nodes(), {"a": way, "b": way})  # type: ignore[arg-type]
    with crew:
        crew._talks += [Talk(name, Line(), f"clusterft-doctor-{name}") for name in ("a", "b")]  # type: ignore[arg-type]
    (told,) = crew.left
    assert "left on b (no answer within 10 s)" in told
    assert told.endswith("there: sudo -n docker rm -f clusterft-doctor-b")
