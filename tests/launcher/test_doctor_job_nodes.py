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
from clusterft.facts.imports import Imports, Interpreter
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
    assert found.evidence.endswith("No such file or directory") and found.fix[0].startswith("in job.yaml: python:")


WORDS = "env: '/srv/venv/bin/python': No such file or directory"


def broken(python: Path, words: str = WORDS) -> Finding:
    """Of a node whose Python does not run; the shell looks for it here."""
    done = subprocess.run(imports.where(str(python)), capture_output=True, text=True)
    place = imports.place(done.stdout)
    assert place is not None, done
    (found,) = imported(b=Imports(str(python), error=words, place=place))
    assert found.status == "fail" and found.evidence.startswith(words) and not found.fix[0].startswith("or")
    assert "cannot load" not in found.cause and found.fix[-1].startswith("or, in job.yaml: python:")
    return found


def test_a_link_that_leads_to_nothing_is_told_with_its_environment(tmp_path: Path) -> None:
    """Found blind as a Python that cannot load what ranks need, with a remedy that began with "or"."""
    venv = tmp_path / "my venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.10.12\n")
    (venv / "bin" / "python3").symlink_to("/usr/bin/python3.1099")
    (venv / "bin" / "python").symlink_to("python3")
    found = broken(venv / "bin" / "python")
    assert "/usr/bin/python3.1099 is gone" in found.cause
    assert f"leads to /usr/bin/python3.1099, which is not there\n{venv} is an environment" in found.evidence
    assert found.fix[0] == f"on b: python3.11 -m venv --clear '{venv}'   (python3.11, as the other nodes have it)"
    assert found.fix[1] == f"on b: '{venv}/bin/python' -m pip install 'clusterft[trainer]'"
    assert found.fix[2].startswith("or on b: put back /usr/bin/python3.1099")


def test_an_interpreter_that_is_not_there_is_made_where_the_job_looks(tmp_path: Path) -> None:
    found = broken(tmp_path / "venv" / "bin" / "python")
    assert (
        f"it is not there; {tmp_path} is" in found.evidence.replace("which", "it") and "not there" in found.cause
    )
    assert found.fix[0].startswith(f"on b: python3.11 -m venv {tmp_path}/venv")


def test_a_file_that_may_not_be_run_and_a_script_of_a_python_that_is_gone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/no/such/python -s\n")
    closed = broken(python)
    assert "may not be run" in closed.cause and closed.needs_root
    assert closed.fix[0] == f"on b: sudo chmod a+rx {python}"
    python.chmod(0o755)
    script = broken(python)
    assert "is a script for /no/such/python" in script.cause and not script.needs_root
    python.write_bytes(b"\x7fELF nothing")
    assert "no program for this machine" in broken(python, "env: 'x': Exec format error").cause
    assert "what loads it" in broken(python).cause
    words = "python: error while loading shared libraries: libpython3.10.so.1.0: cannot open shared object file"
    assert "a library of Python's own is not there" in broken(python, words).cause
    assert "ends with those words" in broken(python, "python: 1: exec: /gone: not found").cause


def test_a_name_that_no_path_has_is_no_file_to_be_made() -> None:
    done = subprocess.run(imports.where("no-such-python"), capture_output=True, text=True)
    place = imports.place(done.stdout)
    assert place == Interpreter("unknown") and imports.place("") is None
    (found,) = imported(b=Imports("no-such-python", error="env: no", place=place))
    assert "no no-such-python on its PATH" in found.cause and len(found.fix) == 1


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


def test_files_of_one_size_with_other_content_are_told_of_the_odd_node() -> None:
    """Of the fourth blind round: the last 40 % of a VAE were zeros, its size and time were right."""
    right, zeros = replace(ALL, files=1, sum="a" * 64), replace(ALL, files=1, sum="b" * 64)
    (found,) = held(a=right, b=zeros, c=right)
    assert (found.id, found.status, found.nodes) == ("data.differs", "fail", ("b",))
    assert found.summary == "/data/a set has other content on b than on other nodes, in files of the same sizes"
    assert found.fix == ("on b: rsync -a --checksum 10.0.0.1:'/data/a set' /data/",)
    assert "bbbbbbbbbbbb" in found.evidence
    assert held(a=right, b=replace(right, sum=""), c=right) == [], "who could not sample says nothing of it"
    two = {"a": {"/x": right}, "b": {"/x": zeros}}
    (found,) = disks.found(("a", "b"), two, WHERE)
    assert "which of the two is right is not known" in found.cause and found.fix[0].startswith(
        "on both: sha256sum"
    )


def test_samples_see_zeros_in_a_large_file_and_a_change_in_a_small_one(tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    big, small = folder / "vae.safetensors", folder / "config.json"
    content = os.urandom(10_000_000)

    def sums() -> list[str]:
        paths = (str(folder), str(big))
        done = subprocess.run(holdings.sums_argv(paths), capture_output=True, text=True)
        return [one.sum for one in holdings.with_sums(dict.fromkeys(paths, ALL), done.stdout, paths).values()]

    big.write_bytes(content)
    small.write_text("{1}")
    first = sums()
    assert all(len(one) == 64 for one in first) and first == sums()
    small.write_text("{2}")
    assert sums()[0] != first[0] and sums()[1] == first[1]
    big.write_bytes(content[:6_000_000] + bytes(4_000_000))
    assert sums()[1] != first[1]
    big.write_bytes(content[:-1] + b"x")
    assert sums()[1] != first[1] or content[-1:] == b"x", "its last byte counts"
    assert holdings.with_sums({"/x": ALL}, "sum 0 \n", ("/x",)) == {"/x": ALL}
