"""Proves that --deep loads no node of which it does not know that it is free."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenes

from clusterft.checks import job
from clusterft.checks.examination import Wanted
from clusterft.facts.gpu import GpuProcess
from clusterft.probing import occupied
from clusterft.remote import Unreachable

TWO = scenes.cluster("a slots=1\nb slots=1\n")
SHELLS = [("dash",), ("bash", "--posix"), ("busybox", "sh")]


def reason(b: str | Unreachable = "looked\n", *, wanted: Wanted | None = None, **facts: Any) -> str:
    """Of two nodes that are free, but for what b says and has."""
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", **facts))
    fleet = SimpleNamespace(each=lambda look: {"a": "looked\n", "b": b})
    crew: Any = SimpleNamespace(ways={}, fleet=fleet)
    return occupied.reason(crew, survey, wanted or Wanted("cpu"))


def test_nodes_that_are_free_may_be_loaded() -> None:
    assert reason() == ""
    assert reason("last login: today\nrun \nlooked\n") == "", "none of the containers is ours"


def test_a_node_that_could_not_be_asked_is_not_free() -> None:
    late = Unreachable("ssh.timeout", "b: no answer within 12 s")
    assert reason(late).startswith("whether b is in use could not be read")
    assert reason("").startswith("whether b is in use could not be read")
    assert reason("run \n").endswith("no whole answer")
    assert "Cannot connect" in reason("unread Cannot connect to the Docker daemon\nlooked\n")
    assert reason("run moon-1\n") == "a run is going on on b: moon-1", "which a cut answer may say too"


def test_a_node_that_takes_no_part_holds_nobody_back() -> None:
    fleet = SimpleNamespace(each=lambda look: {"a": "looked\n", "b": Unreachable("ssh.timeout", "b: off")})
    crew: Any = SimpleNamespace(ways={}, fleet=fleet)
    assert occupied.reason(crew, scenes.survey(TWO, scenes.facts("a")), Wanted("cpu")) == ""


@pytest.mark.parametrize(
    ("processes", "used", "words"),
    [
        ((), 9000, ""),
        ((GpuProcess(7, "C", "python", 9000),), 9000, "card 0 of b is in use: pid 7 python"),
        ((GpuProcess(7, "C+G", "gnome-shell", 90),), 90, ""),  # a desktop, for gpu.busy too
        (None, 9000, "whether card 0 of b is in use could not be read"),
        (None, None, "whether card 0 of b is in use could not be read"),
        (None, 3, ""),  # nothing runs on a card that holds nothing
    ],
)
def test_a_card_whose_programs_are_not_told_is_not_free(processes: Any, used: Any, words: str) -> None:
    card = replace(scenes.card(0), processes=processes, used=used)
    assert reason(wanted=Wanted("cuda"), gpus=(card,)) == words
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", gpus=(card,)))
    busy = [one for one in job.busy(survey) if one.id == "gpu.busy"]
    assert bool(busy) == words.startswith("card"), "both mean the same by it"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_says_when_it_has_looked(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    engine = tmp_path / "docker"

    def look(body: str) -> str:
        engine.write_text(f"#!/bin/sh\n{body}\n")
        engine.chmod(0o755)
        argv = (*shell, "-c", occupied._LOOK, "look", str(engine))
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout

    assert occupied.read(look("echo moon-1")) == "moon-1"
    assert occupied.unanswered(look("echo moon-1")) == ""
    assert occupied.unanswered(look("echo refused >&2; exit 1")) == "docker ps: refused"
    alone = (*shell, "-c", occupied._LOOK, "look")  # no engine there
    done = subprocess.run(alone, capture_output=True, text=True, timeout=30, check=True)
    assert occupied.unanswered(done.stdout) == ""
