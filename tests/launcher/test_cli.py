"""Proves the command line at its edge: bad input in words, one JSON document, exit codes, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft import cli
from clusterft_trainer.config import TrainConfig


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with a job of two local nodes that would pass every check."""
    place = tmp_path / "a place"
    place.mkdir()
    (place / "hostfile").write_text("left slots=1 transport=local\nright slots=1 transport=local\n")
    job = scenes.JOB.replace("/mnt/out", "out") + "hosts: hostfile\n"
    (place / "job.yaml").write_text(job)
    return place


def clusterft(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "PYTHONPATH") if name in os.environ}
    around = {**kept, "HOME": str(place), "CLUSTERFT_HOME": str(place / "home"), "COLUMNS": "200", **environment}
    command = [sys.executable, "-m", "clusterft", *words]
    return subprocess.run(command, cwd=place, env=around, capture_output=True, text=True, timeout=30)


def refused(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    """The command ended with this code and these words on stderr, and nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert words in done.stderr and "Traceback" not in done.stderr


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert "Traceback" not in done.stderr
    body = json.loads(done.stdout)  # fails on a second document, or on words beside it
    assert isinstance(body, dict) and body["schema"] == 1
    return body


def edit(place: Path, name: str, old: str, new: str) -> None:
    """Change a file; the old text must be there."""
    text = (place / name).read_text()
    assert old in text
    (place / name).write_text(text.replace(old, new))


MISTAKES = {
    "no hostfile": ("job.yaml", "hosts: hostfile", "hosts: nowhere", "nowhere  the hostfile does not exist"),
    "no hosts": ("job.yaml", "hosts: hostfile", "", "job.yaml  no hostfile is named"),
    "unknown key": ("job.yaml", "name:", "nmae:", 'job.yaml:1:1  unknown key "nmae"'),
    "slots=two": ("hostfile", "right slots=1", "right slots=two", "hostfile:2:13  slots must be a whole number"),
    "unequal slots": ("hostfile", "right slots=1", "right slots=2", "unequal slots (left 1, right 2)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_told_in_words_with_exit_code_2(name: str, workplace: Path) -> None:
    file, old, new, words = MISTAKES[name]
    edit(workplace, file, old, new)
    refused(clusterft(workplace, "train", "job.yaml", "--dry-run"), 2, words)


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_one_document_for_a_program(name: str, workplace: Path) -> None:
    file, old, new, words = MISTAKES[name]
    edit(workplace, file, old, new)
    done = clusterft(workplace, "train", "job.yaml", "--dry-run", "--json")
    error = document(done)["error"]
    assert (done.returncode, error["kind"], error["failure"]) == (2, "usage", None)
    assert words.rpartition("  ")[2] in error["problems"][0]["what"]


def test_a_job_that_is_no_file_is_told(workplace: Path) -> None:
    refused(clusterft(workplace, "train", "."), 2, "the job file cannot be read")
    refused(clusterft(workplace, "train", "absent.yaml"), 2, "absent.yaml  the job file does not exist")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), "No such command 'trian'"),
        (("train",), "Missing argument"),
        (("train", "job.yaml", "--dryrun"), "No such option"),
        (("train", "job.yaml", "--cluster", "../x"), '"../x" is not a cluster name'),
        (("train", "job.yaml", "--hosts", "hostfile", "--cluster"), "requires an argument"),
        (("stop", "nothing-20261120-1432-7f3a"), "no cluster is named"),
    ],
)
def test_a_command_that_does_not_exist_is_told(words: tuple[str, ...], said: str, workplace: Path) -> None:
    refused(clusterft(workplace, *words), 2, said)
    assert document(clusterft(workplace, *words, "--json"))["error"]["kind"] == "usage"


def test_a_typo_is_told_with_its_correction_to_programs_too(workplace: Path) -> None:
    edit(workplace, "job.yaml", "runtime:", "runtim: process\nruntime:")
    (problem,) = document(clusterft(workplace, "train", "job.yaml", "--json"))["error"]["problems"]
    assert problem["what"] == 'unknown key "runtim"' and problem["remedy"] == 'did you mean "runtime"?'


def test_a_secret_without_a_value_stops_a_run_before_anything_is_touched(workplace: Path) -> None:
    edit(workplace, "job.yaml", "hosts:", "secrets: [HF_TOKEN]\nhosts:")
    refused(clusterft(workplace, "train", "job.yaml"), 2, "secrets without a value: HF_TOKEN")
    assert not (workplace / "out").exists() and not (workplace / "home").exists()


def test_a_dry_run_prints_the_plan_and_touches_nothing(workplace: Path) -> None:
    edit(workplace, "job.yaml", "hosts:", "secrets: [HF_TOKEN]\nhosts:")
    before = sorted(workplace.rglob("*"))
    done = clusterft(workplace, "train", "job.yaml", "--dry-run", HF_TOKEN="hf_veryprivate")
    assert (done.returncode, done.stderr) == (0, "")
    assert "node right · machine_rank 1 · 1 slot · 127.0.0.1 over lo" in done.stdout
    planned = clusterft(workplace, "train", "job.yaml", "--dry-run", "--json", HF_TOKEN="hf_veryprivate")
    assert clusterft(workplace, "train", "job.yaml", "--dry-run").returncode == 0  # a plan needs no secret
    body = document(planned)["plan"]
    assert planned.returncode == 0 and body["world_size"] == 2 and body["secrets"] == {"HF_TOKEN": "***"}
    assert "hf_veryprivate" not in done.stdout + planned.stdout
    assert sorted(workplace.rglob("*")) == before


def test_notes_stay_out_of_the_document(workplace: Path) -> None:
    (workplace / "hostfile").write_text("localhost slots=1\n")
    done = clusterft(workplace, "train", "job.yaml", "--dry-run", "--json")
    assert document(done)["plan"]["world_size"] == 1
    assert done.stderr == "localhost is this machine: it is used without SSH\n"


def test_a_check_that_blocks_ends_with_3_and_its_finding(workplace: Path) -> None:
    edit(workplace, "job.yaml", "device: cpu", "device: cuda")
    done = clusterft(workplace, "train", "job.yaml", "--dry-run")
    refused(done, 3, "ctl.same-host-twice")
    assert done.stderr.endswith("nothing was started\n")
    body = document(clusterft(workplace, "train", "job.yaml", "--json"))
    assert body["error"]["kind"] == "blocked"
    checks = [check for check in body["checks"] if check["id"] == "ctl.same-host-twice"]
    assert checks[0]["nodes"] == ["left", "right"] and checks[0]["fix"]


def test_debug_shows_where_an_error_came_from(workplace: Path) -> None:
    done = clusterft(workplace, "--debug", "train", "absent.yaml")
    assert done.returncode == 2 and "Traceback" in done.stderr and "does not exist" in done.stderr


def test_a_bug_is_one_message_and_a_saved_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(path: Path) -> int:
        raise KeyError("the cause")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("clusterft.cli.init.run", broken)
    assert cli.run(["init"]) == 1 and cli.run(["init", "x.yaml"]) == 1
    told = capsys.readouterr()
    assert "clusterft broke: KeyError: 'the cause'" in told.err and "Traceback" not in told.err
    saved = sorted(tmp_path.glob("clusterft-bug-*.txt"))
    assert len(saved) == 2 and "raise KeyError" in saved[0].read_text()
    assert cli.run(["--debug", "init"]) == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", [KeyboardInterrupt, BrokenPipeError])
def test_an_interrupt_is_no_bug(
    mistake: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(path: Path) -> int:
        raise mistake

    monkeypatch.setattr("clusterft.cli.init.run", stopped)
    if mistake is BrokenPipeError:
        monkeypatch.setattr(os, "dup2", lambda *_: None)  # pytest still needs its stdout
    assert cli.run(["init"]) == (130 if mistake is KeyboardInterrupt else 0)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("schema",), ("--help",), ("train", "job.yaml", "--dry-run"), ("init", "new.yaml")]
)
def test_a_reader_that_goes_away_breaks_nothing(words: tuple[str, ...], workplace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` after its line
    around = {**os.environ, "CLUSTERFT_HOME": str(workplace / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "clusterft", *words],
        cwd=workplace,
        env=around,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_init_writes_a_job_that_loads_and_overwrites_nothing(workplace: Path) -> None:
    done = clusterft(workplace, "init", "new.yaml")
    assert done.returncode == 0 and "new.yaml is written" in done.stdout
    text = (workplace / "new.yaml").read_text()
    (workplace / "hostfile").unlink()
    refused(clusterft(workplace, "train", "new.yaml"), 2, "the hostfile does not exist")
    (workplace / "new.yaml").write_text("mine")
    refused(clusterft(workplace, "init", "new.yaml"), 2, "new.yaml  the file exists already")
    assert (workplace / "new.yaml").read_text() == "mine" and text.startswith("# A clusterft job")
    refused(clusterft(workplace, "init", "absent/new.yaml"), 2, "the file cannot be written")


KOHYA = scenes.GOLDEN / "migrate" / "one_card" / "train.sh"


def test_a_migrated_command_is_written_told_and_never_written_over(workplace: Path) -> None:
    done = clusterft(workplace, "migrate", str(KOHYA), "-o", "new.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("train.sh · ") and "new.yaml is written" in done.stdout
    text = (workplace / "new.yaml").read_text()
    assert text == KOHYA.with_name("job.yaml").read_text()
    refused(clusterft(workplace, "migrate", str(KOHYA), "-o", "new.yaml"), 2, "new.yaml  the file exists already")
    plain = clusterft(workplace, "migrate", str(KOHYA))
    assert (plain.returncode, plain.stdout) == (0, text) and "settings carried over" in plain.stderr
    body = document(clusterft(workplace, "migrate", str(KOHYA), "--json"))
    assert body["yaml"] == text and body["written"] is None and body["script"] == "sdxl_train.py"
    assert all({"flag", "place", "why", "reason"} <= set(one) for one in body["left"]) and body["carried"]


def test_what_cannot_be_migrated_is_told(workplace: Path) -> None:
    (workplace / "words.sh").write_text("echo hello\n")
    (workplace / "latin.sh").write_bytes(b"--name b\xfcro\n")
    refused(clusterft(workplace, "migrate", "words.sh"), 2, "words.sh holds no training command")
    refused(clusterft(workplace, "migrate", "latin.sh"), 2, "latin.sh  the file is no text")
    refused(clusterft(workplace, "migrate", "absent.sh"), 2, "absent.sh  the file cannot be read")
    refused(clusterft(workplace, "migrate", str(KOHYA), "-o", "no/new.yaml"), 2, "the file cannot be written")


def test_the_settings_of_a_job_are_what_the_trainer_reads(workplace: Path) -> None:
    edit(workplace, "job.yaml", "builtin:tiny", "base.safetensors")
    (workplace / "hostfile").unlink()
    done = clusterft(workplace, "settings", "job.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    settings = TrainConfig.model_validate(json.loads(done.stdout))
    assert settings.model == str(workplace / "base.safetensors") and settings.steps == 3
    edit(workplace, "job.yaml", "steps: 3", "steps: three")
    refused(clusterft(workplace, "settings", "job.yaml"), 2, "train.steps must be a whole number")


def test_the_schema_is_printed_as_json(workplace: Path) -> None:
    body = json.loads(clusterft(workplace, "schema").stdout)
    assert (
        body["title"] == "clusterft job" and body["properties"]["train"] and body["additionalProperties"] is False
    )


def test_version_and_help_are_told(workplace: Path) -> None:
    from clusterft import __version__

    assert clusterft(workplace, "--version").stdout == f"clusterft {__version__}\n"
    assert "train" in clusterft(workplace, "-h").stdout
