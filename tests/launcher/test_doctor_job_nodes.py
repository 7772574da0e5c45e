"""Proves what doctor makes of a job's Python and of its data on the nodes' own disks, and how it asks for both."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import scenes

from clusterft.checks import holdings as disks
from clusterft.checks import imports as pythons
from clusterft.facts import holdings, imports
from clusterft.facts.holdings import Holding
from clusterft.facts.imports import Imports
from clusterft.findings import Finding
from clusterft.probing.imports import needed

NODES = ("a", "b", "c")
PYTHON = "/opt/venv/bin/python"
VERSIONS = (("clusterft_trainer", "0.1.0"), ("torch", "2.13.0"))
WELL = Imports(PYTHON, "3.11.7", versions=VERSIONS)
ALL = Holding("whole", 32, 4_000_000)
WHERE = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}


def imported(**odd: Imports) -> list[Finding]:
    return list(pythons.found(NODES, dict.fromkeys(NODES, WELL) | odd))


def held(**odd: Holding) -> list[Finding]:
    of_nodes = dict.fromkeys(NODES, ALL) | odd
    return list(disks.found(NODES, {node: {"/data/a set": one} for node, one in of_nodes.items()}, WHERE))


def test_pythons_that_are_alike_are_well() -> None:
    assert imported() == []
    assert list(pythons.found(NODES, {"a": WELL})) == [], "who was not asked is told of elsewhere"


def test_a_library_that_is_cut_short_is_named_with_the_version_to_install_again() -> None:
    words = "ImportError: /opt/venv/lib/libtorch_cpu.so: file too short"
    (found,) = imported(b=replace(WELL, error=words))
    assert (found.id, found.status, found.nodes) == ("run.import", "fail", ("b",))
    assert found.summary == f"the job's Python cannot import torch: {words}"
    assert found.fix[0] == f"on b: {PYTHON} -m pip install --force-reinstall --no-deps torch==2.13.0"


def test_a_disk_from_which_nothing_may_run_is_no_broken_install() -> None:
    words = "ImportError: libtorch_cpu.so: failed to map segment from shared object"
    (found,) = imported(b=replace(WELL, error=words, noexec="/data/venv/torch"))
    assert "mounted noexec" in found.summary and "remount,exec" in found.fix[0] and words in found.evidence
    assert imported(b=replace(WELL, noexec="/data/venv/torch")) == [], "what is loaded was allowed"


def test_of_a_long_error_the_last_line_counts_and_all_is_evidence() -> None:
    (found,) = imported(b=replace(WELL, error="ImportError: first\n  more\nlast words"))
    assert found.summary.endswith(": last words") and "first\n  more" in found.evidence


@pytest.mark.parametrize(
    ("absent", "installed"),
    [(("clusterft_trainer", "torch"), "'clusterft[trainer]'"), (("diffusers", "PIL"), "diffusers pillow")],
)
def test_packages_that_are_not_there_are_installed(absent: tuple[str, ...], installed: str) -> None:
    (found,) = imported(c=replace(WELL, absent=absent))
    assert found.nodes == ("c",) and found.summary == f"the job's Python has no {', '.join(absent)}"
    assert found.fix[0] == f"on c: {PYTHON} -m pip install {installed}"


def test_a_python_that_does_not_run_is_told_by_its_words() -> None:
    (found,) = imported(b=Imports(PYTHON, error="env: '/opt/venv/bin/python': No such file or directory"))
    assert found.status == "fail" and found.summary == f"the job's Python, {PYTHON}, does not run"
    assert found.evidence.endswith("No such file or directory") and "python:" in found.fix[0]


def test_what_takes_too_long_is_unknown_and_no_failure() -> None:
    (found,) = imported(b=Imports(PYTHON, late=True))
    assert (found.status, found.nodes) == ("unknown", ("b",))


def test_another_version_than_most_have_is_a_warning() -> None:
    (found,) = imported(a=replace(WELL, versions=(VERSIONS[0], ("torch", "2.4.1"))))
    assert (found.status, found.nodes) == ("warn", ("a",))
    assert "torch 2.4.1" in found.summary and "2.13.0" in found.summary
    assert found.fix == (f"on a: {PYTHON} -m pip install 'torch==2.13.0'",)


def test_a_real_python_answers(tmp_path: Path) -> None:
    """With a torch of our own in front: what is really imported is what the path leads to."""
    (tmp_path / "torch.py").write_text("print('hello')\n__version__ = '9.9'\n")
    names, env = ("torch", "json", "no_such_package"), {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(imports.argv(sys.executable, names, env), capture_output=True, text=True)
    found = imports.parse(PYTHON, done.returncode, done.stdout, done.stderr)
    assert found.python == ".".join(map(str, sys.version_info[:3])) and found.error == "" and not found.late
    assert found.absent == ("no_such_package",) and dict(found.versions)["torch"] == "9.9"
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: file too short')")
    done = subprocess.run(imports.argv(sys.executable, names, env), capture_output=True, text=True)
    found = imports.parse(PYTHON, done.returncode, done.stdout, done.stderr)
    assert found.error == "ImportError: libtorch.so: file too short"


def test_a_folder_of_the_working_directory_is_not_what_a_rank_would_import(tmp_path: Path) -> None:
    (tmp_path / "here_alone.py").write_text("")
    argv = imports.argv(sys.executable, ("here_alone",), {})
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert imports.parse(PYTHON, done.returncode, done.stdout, done.stderr).absent == ("here_alone",)


@pytest.mark.parametrize(
    ("code", "out", "err", "expected"),
    [
        (124, "", "", Imports(PYTHON, late=True)),
        (137, "", "x", Imports(PYTHON, error="x", late=True)),
        (127, "motd\n", "a\nenv: no\n", Imports(PYTHON, error="env: no")),
        (132, "", "Illegal instruction\n", Imports(PYTHON, error="exit 132: Illegal instruction")),
        (1, '{"python" cut', "", Imports(PYTHON, error="exit 1: it said nothing")),
    ],
)
def test_a_python_that_died_is_known_by_its_last_words(code: int, out: str, err: str, expected: Imports) -> None:
    assert imports.parse(PYTHON, code, out, err) == expected


def test_a_script_needs_less_than_the_trainer(tmp_path: Path) -> None:
    assert {"clusterft_trainer", "torch", "accelerate", "deepspeed"} < set(
        needed(scenes.job(scenes.JOB, tmp_path))
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("")
    text = "name: x\nshared: /mnt\nruntime: process\nlauncher: torchrun\nscript: {path: code/a.py}\n"
    assert needed(scenes.job(text, tmp_path)) == ("clusterft_trainer", "torch")


def test_disks_that_hold_the_same_are_well() -> None:
    assert held() == []


def test_what_broke_off_is_counted_against_most() -> None:
    (found,) = held(b=Holding("whole", 28, 3_500_000))
    assert (found.id, found.status, found.nodes) == ("data.differs", "fail", ("b",))
    assert found.summary == "b has 4 files less in /data/a set than other nodes"
    assert found.evidence == "a c: 32 files, 4,000,000 bytes (4 MB)\nb: 28 files, 3,500,000 bytes (4 MB)"
    assert found.fix[0] == "clusterft push '/data/a set'   where this machine has all of it"
    assert found.fix[1] == "on b: rsync -a 10.0.0.1:'/data/a set/' '/data/a set/'"


@pytest.mark.parametrize(
    ("node", "one", "status", "words"),
    [
        ("b", Holding("whole", 33, 4_100_000), "warn", "1 file more"),
        ("a", Holding("whole", 33, 4_100_000), "fail", "1 file more"),  # the others will miss it
        ("a", Holding("whole", 31, 3_900_000), "warn", "1 file less"),  # nobody will miss it
        ("b", Holding("whole", 32, 4_000_001), "warn", "as many files"),
        ("b", Holding("absent", 0, 0), "fail", "is not there"),
        ("b", Holding("full", holdings.MOST, 5), "unknown", "200,000 files"),
        ("b", Holding("cut", 12, 5), "unknown", "too long"),
        ("b", Holding("closed", 12, 5), "unknown", "not all of it could be read"),
    ],
)
def test_it_matters_whether_rank_0_lists_what_others_lack(
    node: str, one: Holding, status: str, words: str
) -> None:
    (found,) = held(**{node: one})
    assert (found.status, found.nodes) == (status, (node,)) and words in found.summary
    assert status == "unknown" or (found.fix and found.cause and found.evidence)
    assert ("--delete" in "".join(found.fix)) == ("more" in words)


def test_of_two_nodes_the_head_is_right_and_what_nobody_has_is_told_of_all() -> None:
    two = {"a": {"/x": ALL}, "b": {"/x": Holding("whole", 1, 1)}}
    assert [one.nodes for one in disks.found(("a", "b"), two, WHERE)] == [("b",)]
    none = {node: {"/x": Holding("absent", 0, 0)} for node in NODES}
    assert {(one.status, one.cause) for one in disks.found(NODES, none, WHERE)} == {("fail", "no node has it")}


def test_files_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    data = tmp_path / ".a set"
    for name in ("a.png", "deep/b c.png", ".git/config", "deep/.hidden"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"1234")
    (data / "link").symlink_to(data / "deep")
    paths = (str(data), str(data / "a.png"), str(tmp_path / "no\nsuch"))
    done = subprocess.run(holdings.argv(paths), capture_output=True, text=True)
    assert holdings.parse(done.stdout, paths) == {
        paths[0]: Holding("whole", 3, 12),  # one of them by the link, as the trainer finds it
        paths[1]: Holding("whole", 1, 4),
        paths[2]: Holding("absent", 0, 0),
    }
    assert holdings.parse(done.stdout.splitlines()[0], paths) is None


def test_a_walk_ends_at_its_number_and_a_folder_that_is_closed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "MOST", 3)
    (tmp_path / "many").mkdir()
    for k in range(5):
        (tmp_path / "many" / str(k)).write_bytes(b"1")
    shut = tmp_path / "loop"
    shut.mkdir()
    (shut / "again").symlink_to(shut)  # find -L refuses it, and says so by its exit code
    paths = (str(tmp_path / "many"), str(shut))
    found = holdings.parse(subprocess.run(holdings.argv(paths), capture_output=True, text=True).stdout, paths)
    assert found and [one.state for one in found.values()] == ["full", "closed"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
def test_a_folder_that_may_not_be_entered_is_not_an_empty_one() -> None:
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        (Path(base) / "shut").mkdir(mode=0o700)
        argv = ("setpriv", "--reuid=65534", "--clear-groups", *holdings.argv((f"{base}/shut",)))
        done = subprocess.run(argv, capture_output=True, text=True)
    assert holdings.parse(done.stdout, ("x",)) == {"x": Holding("closed", 0, 0)}


def test_only_what_lies_outside_the_shared_dir_is_asked_for(tmp_path: Path) -> None:
    text = scenes.JOB.replace("{builtin: shapes}", "{folder: /data/set}, {folder: /mnt/out/set}")
    shared = scenes.job(text, tmp_path).shared
    assert scenes.job(text, tmp_path).own_paths == ("/data/set",), shared
    assert scenes.job(scenes.JOB, tmp_path).own_paths == ()
