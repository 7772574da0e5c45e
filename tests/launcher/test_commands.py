"""Proves that each command of ours that we print works when it is pasted."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import scenes

from clusterft import commands
from clusterft.cli.app import command
from clusterft.commands import Call
from clusterft.findings import Finding

LAUNCHER = scenes.ROOT / "launcher" / "clusterft"
RACK = Call(hosts=Path("rack"))

# How we were called, what somebody wrote as a remedy, what is printed.
SHOWN = [
    (Call(), "if so: clusterft up --forget-host-key n3", "if so: clusterft up --forget-host-key n3"),
    (RACK, "if so: clusterft up --forget-host-key n3", "if so: clusterft up --hosts rack --forget-host-key n3"),
    (Call(hosts=Path("my racks/one")), "clusterft up   again", "clusterft up --hosts 'my racks/one'   again"),
    (Call(cluster="m"), "clusterft down, clusterft up", "clusterft down --cluster m, clusterft up --cluster m"),
    (Call(hosts=Path("rack"), cluster="moon"), "clusterft doctor", "clusterft doctor --hosts rack --cluster moon"),
    (Call(hosts=Path("rack"), job=Path("job.yaml")), "clusterft up", "clusterft up --hosts rack --job job.yaml"),
    (Call(job=Path("job.yaml")), "(clusterft up --job other.yaml)", "(clusterft up --job other.yaml)"),
    (Call(job=Path("job.yaml")), "clusterft push /models/a", "clusterft push /models/a"),
    (Call(no_image=True), "clusterft up", "clusterft up --no-image"),
    (RACK, "clusterft stop moon-1 --now", "clusterft stop --hosts rack moon-1 --now"),
    (RACK, "clusterft ssh n1 --container moon-1", "clusterft ssh --hosts rack n1 --container moon-1"),
    (RACK, "clusterft doctor --only network", "clusterft doctor --hosts rack --only network"),
    (Call(program=".venv/bin/clusterft"), "run: clusterft up", "run: .venv/bin/clusterft up"),
    (Call(program="./clusterft"), "clusterft doctor --explain net.mtu", "./clusterft doctor --explain net.mtu"),
    # What needs no cluster, names it itself, or is only spoken of.
    (RACK, "clusterft doctor --explain net.mtu", "clusterft doctor --explain net.mtu"),
    (RACK, "run: clusterft up --hosts FILE", "run: clusterft up --hosts FILE"),
    (RACK, "detached: `clusterft train` does", "detached: `clusterft train` does"),
    (RACK, "look into ~/.clusterft up there", "look into ~/.clusterft up there"),
    (RACK, "clusterft uptime, clusterft up-to-date", "clusterft uptime, clusterft up-to-date"),
    (RACK, "clusterft init", "clusterft init"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "written", "printed"), SHOWN)
def test_a_command_is_completed_as_we_were_called(call: Call, written: str, printed: str) -> None:
    assert call.shown(written) == printed


def test_the_id_of_a_run_that_is_noted_here_is_enough() -> None:
    call = Call(hosts=Path("rack"), noted=lambda run: run == "moon-1")
    both = "clusterft attach moon-1   watches it;  clusterft stop moon-2   ends it"
    assert (
        call.shown(both) == "clusterft attach moon-1   watches it;  clusterft stop --hosts rack moon-2   ends it"
    )
    assert call.shown("clusterft doctor --run moon-1.") == "clusterft doctor --run moon-1."
    assert call.shown("clusterft ssh n1 --container moon-1").startswith("clusterft ssh --hosts rack n1")


def test_one_command_line_leaves_the_next_one_alone(tmp_path: Path) -> None:
    fix = Finding("x.y", "fail", (), "", fix=("clusterft up",))
    with commands.called("clusterft", lambda run: False):
        commands.meant(Path("rack"), None)
        commands.asked({"job": Path("job.yaml"), "no_image": True, "verbose": 3})
        assert fix.to_dict()["fix"] == ("clusterft up --hosts rack --job job.yaml --no-image",)
    assert fix.to_dict()["fix"] == ("clusterft up",) == fix.fix


def test_a_program_that_is_not_on_the_path_is_called_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for typed, name in {".venv/bin/clusterft": ".venv/bin/clusterft", "/a/__main__.py": "clusterft"}.items():
        with commands.called(typed, lambda run: False):
            assert commands.shown("clusterft up") == f"{name} up"


# -- what the code itself prints ---------------------------------------------------------------

_WRITTEN = re.compile(r"(?<![\w`/.-])clusterft (?P<verb>[a-z]+)(?P<rest>[^;,()\n]*)")
_END = re.compile(r"  |: |:$|\.$| or | and | then |$")


def written() -> Iterator[tuple[str, str]]:
    """(place, command) of each command in a text of the launcher; {} is what is filled in later."""
    for path in sorted(LAUNCHER.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if id(node) in inside | spoken:
                continue
            for found in _WRITTEN.finditer(_text(node)):
                if found["verb"] in _verbs():
                    rest = _END.split(found["rest"])[0]
                    yield f"{path.relative_to(LAUNCHER)}:{node.lineno}", f"{found['verb']}{rest}"


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def _verbs() -> dict[str, object]:
    verbs: dict[str, object] = command().commands
    return verbs


def _complaint(line: str) -> str:
    """Why the command line would not take it, or would take a word of prose for an argument."""
    verb, *words = shlex.split(line)
    free = [word for before, word in pairwise(["", *words]) if not before.startswith("-")]  # no option's value
    prose = [word for word in free if word.isalpha() and word.islower()]
    if prose:
        return f"prose: {prose[0]}"
    try:
        _verbs()[verb].make_context(verb, words)  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001 - click's own complaint is the answer
        return f"{type(error).__name__}: {error}"
    return ""


def test_each_command_that_is_printed_is_one_that_the_command_line_takes() -> None:
    found = list(written())
    assert len(found) > 60
    assert {place: (line, why) for place, line in found if (why := _complaint(line))} == {}


def test_a_command_that_would_not_work_is_noticed() -> None:
    for line in ("up --forget-host-keys n1", "train does", "stop --now", "attach one two", "resume --changed"):
        assert _complaint(line)
