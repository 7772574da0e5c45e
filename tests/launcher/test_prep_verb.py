"""`clusterft prep` at its edge: bad input, what is shown of the standing, what `train` does before it trains."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import scenes
from plans import BOXED, build, three_ssh, two_local

from clusterft.apply import preparing
from clusterft.apply.preparing import Standing
from clusterft.board import Verdict
from clusterft.cli import prep
from clusterft.errors import ClusterftError
from clusterft.plan.container import ContainerPlan
from clusterft.remote.local import LocalRemote
from clusterft.runtime.docker import Placed
from clusterft.runtime.process import CannotStart

CACHED = scenes.JOB.replace("/mnt/out", "out").replace(
    "    sources: [{builtin: shapes}]\n", "    sources: [{builtin: shapes}]\n    cache: {}\n"
)
# A python of the nodes that answers for the trainer's count, and is the real one for all else.
PYTHON = """\
#!/bin/sh
for word; do
    if [ "$word" = --only ]; then
        printf '%s\\n' "$@" >"$0.read"; env >"$0.read-env"; tr '\\0' '\\n' </proc/$$/cmdline >"$0.cmdline"
        exit "$(cat "$0.read-code")"
    elif [ "$word" = --status ]; then
        printf '%s\\n' "$@" >"$0.asked"; cat -- "$5" >"$0.config"; env >"$0.env"
        cat "$0.said" >&"$(cat "$0.where")"; exit "$(cat "$0.code")"
    fi
done
exec REAL "$@"
"""


@dataclass
class Place:
    """A job of two local nodes whose trainer says what a test wants."""

    root: Path

    def __post_init__(self) -> None:
        self.python = self.root / "python"
        self.python.write_text(PYTHON.replace("REAL", sys.executable))
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        (self.root / "hostfile").write_text("left slots=1 transport=local\nright slots=1 transport=local\n")
        self.write(CACHED)
        self.says(json.dumps({"schema": 1, "missing": 3}))

    def write(self, job: str) -> None:
        """The job file."""
        (self.root / "job.yaml").write_text(f"{job}hosts: hostfile\npython: {self.python}\n")

    def says(self, text: str, *, code: int = 0, where: int = 1) -> None:
        """What the trainer answers."""
        words = {"said": text + "\n", "code": str(code), "where": str(where), "read-code": "0"}
        for name, value in words.items():
            self.python.with_suffix(f".{name}").write_text(value)

    def asked(self, what: str = "asked") -> str:
        """What it was asked with."""
        return self.python.with_suffix(f".{what}").read_text()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As a user would."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.root), "CLUSTERFT_HOME": str(self.root / "home")}
        if "PYTHONPATH" in os.environ:
            env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        argv = [sys.executable, "-m", "clusterft", "prep", "job.yaml", *words]
        return subprocess.run(argv, cwd=self.root, env=env, capture_output=True, text=True, timeout=30)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory with a space in its path."""
    root = tmp_path / "a place"
    root.mkdir()
    return Place(root)


@pytest.mark.parametrize(
    ("job", "words", "said"),
    [
        (CACHED, ("--only", "images"), "--only is one of: ingest, latents, text"),
        (CACHED, ("--only", "text"), "set text: true under train.data.cache"),
        (CACHED.replace("    cache: {}\n", ""), ("--only", "latents"), "add cache: {} under train.data"),
        (CACHED, ("--status", "--dry-run"), "exclude each other"),
        (CACHED[: CACHED.index("train:")] + "script: {path: code/go.py}\n", (), "a script prepares its own data"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_words(
    job: str, words: tuple[str, ...], said: str, place: Place
) -> None:
    (place.root / "code").mkdir()
    (place.root / "code" / "go.py").touch()
    place.write(job)
    done = place.run(*words)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and "Traceback" not in done.stderr


def test_the_standing_is_asked_on_one_node_with_the_jobs_own_settings(place: Place) -> None:
    done = place.run("--status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"schema": 1, "missing": 3}
    words = place.asked().splitlines()
    assert words[:4] == ["-P", "-m", "clusterft_trainer", "prep"]
    assert words[5:] == ["--shared", str(place.root / "out"), "--status", "--json"]
    assert not Path(words[4]).exists(), "the settings were there for the moment alone"
    assert json.loads(place.asked("config"))["data"]["cache"]["dtype"] == "float32"
    assert "HF_HUB_OFFLINE=1" in place.asked("env").splitlines() and "CLUSTERFT_RUN=" not in place.asked("env")
    assert not (place.root / "out").exists() and not (place.root / "home").exists()


@pytest.mark.parametrize(
    ("text", "code", "words", "remedy"),
    [
        ("The folder /x does not exist.\nMount it.", 2, "✗ The folder /x does not exist.", "  Mount it."),
        ("Traceback\nKeyError: 'a'", 1, "what is prepared could not be counted: Traceback", "KeyError: 'a'"),
        ("usage\npython -m clusterft_trainer: error: invalid choice: 'prep'", 2, "could not be counted", "prep"),
    ],
)
def test_a_trainer_that_cannot_say_it_is_quoted(
    text: str, code: int, words: str, remedy: str, place: Place
) -> None:
    place.says(text, code=code, where=2)
    done = place.run("--status")
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert words in done.stderr and remedy in done.stderr


@pytest.mark.parametrize("text", ["", "{}", '{"missing": "none"}', "[1]"])
def test_an_answer_that_is_none_is_told_as_such(text: str, place: Place) -> None:
    place.says(text)
    done = place.run("--status")
    assert done.returncode == 3 and "does not say what is prepared" in done.stderr


def counted(place: Place, **secrets: str) -> Standing:
    """As before training, on a plan of this machine."""
    planned = build(CACHED.replace("shared: out", f"shared: '{place.root}/out'"), two_local(), place.root)
    node = dataclasses.replace(planned.head, python=str(place.python))
    fleet: Any = type("Fleet", (), {"remotes": {"left": LocalRemote()}})
    return preparing.look(node, str(place.root / "out"), fleet, secrets)


def test_before_training_the_sources_are_read_again(place: Place) -> None:
    (place.root / "out" / ".clusterft" / "index").mkdir(parents=True)
    assert counted(place).missing == 3
    words = place.asked("read").splitlines()
    assert words[5:] == ["--shared", str(place.root / "out"), "--only", "ingest"] and not Path(words[4]).exists()


KEY = 'it\'s a\n"key" $(of) ours'


def test_the_sources_are_read_with_the_secrets_of_the_job(place: Place) -> None:
    (place.root / "out" / ".clusterft" / "index").mkdir(parents=True)
    assert counted(place, AWS_SECRET_ACCESS_KEY=KEY, EMPTY="").missing == 3
    for name in ("read-env", "env"):
        assert f"AWS_SECRET_ACCESS_KEY={KEY}\n" in place.asked(name) and "\nEMPTY=\n" in place.asked(name)
    words = place.asked("cmdline")
    assert "--only" in words and "key" not in words
    assert "HF_HUB_OFFLINE=1" in place.asked("read-env").splitlines()
    left = [path for path in Path(tempfile.gettempdir()).glob("tmp.*/secrets.json") if KEY in path.read_text()]
    assert left == []


def test_what_the_trainer_says_of_a_secret_is_not_shown(place: Place) -> None:
    (place.root / "out" / ".clusterft" / "index").mkdir(parents=True)
    place.says("s3://b with open sesame failed.\nCheck open sesame.", code=2, where=2)
    with pytest.raises(CannotStart) as refused:
        counted(place, TOKEN="open sesame", SHORT="a")
    assert refused.value.what == "s3://b with *** failed." and refused.value.remedy == "Check ***."


def test_where_nothing_was_ever_read_nothing_is_counted(place: Place) -> None:
    assert counted(place).missing is None
    assert not place.python.with_suffix(".asked").exists() and not place.python.with_suffix(".read").exists()


def test_sources_that_cannot_be_read_are_not_counted(place: Place) -> None:
    (place.root / "out" / ".clusterft" / "index").mkdir(parents=True)
    place.python.with_suffix(".read-code").write_text("2")
    with pytest.raises(CannotStart, match="could not be counted"):
        counted(place)
    assert not place.python.with_suffix(".asked").exists()


def test_a_count_that_takes_too_long_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "out" / ".clusterft" / "index").mkdir(parents=True)
    monkeypatch.setattr(preparing, "_SECONDS", 1)
    place.python.write_text("#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(CannotStart, match="within 1 s"):
        counted(place)


class Box:
    """An engine that makes one container, which answers as a test wants."""

    def __init__(self, patch: pytest.MonkeyPatch, *, code: int = 0, said: str = '{"missing": 7}') -> None:
        self.code, self.said, self.hangs = code, said, False
        self.plan: ContainerPlan | None = None
        self.put: list[Placed] = []
        self.removed = 0
        self.api = self
        patch.setattr(preparing, "Engine", lambda *_: contextlib.nullcontext(self))
        patch.setattr(preparing.docker, "command", lambda remote: ("docker",))
        patch.setattr(preparing.docker, "create", self._create)
        patch.setattr(preparing.docker, "start", lambda engine, identity: None)
        patch.setattr(preparing.docker, "remove", self._remove)

    def _create(self, _engine: object, plan: ContainerPlan, files: list[Placed]) -> str:
        self.plan, self.put = plan, files
        return "id"

    def _remove(self, *_: object) -> None:
        self.removed += 1

    def wait(self, _identity: str, timeout: float) -> dict[str, int]:
        if self.hangs:
            raise requests.exceptions.ReadTimeout(f"after {timeout} s")
        return {"StatusCode": self.code}

    def logs(self, *_: object, **__: object) -> bytes:
        return self.said.encode()


def boxed(directory: Path, secrets: dict[str, str] | None = None) -> Standing:
    """Of a node with containers."""
    job = BOXED.replace("sources: [{builtin: shapes}]", "sources: [{folder: /data/pics}]\n    cache: {}")
    node = build(job, three_ssh(), directory).head
    fleet: Any = type("Fleet", (), {"remotes": {"gpu0": None}})
    return preparing.look(node, "/mnt/out", fleet, secrets)


def test_with_containers_one_of_its_own_is_asked_and_taken_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box = Box(monkeypatch)
    assert boxed(tmp_path).missing == 7 and box.removed == 1
    assert box.plan and box.plan.name == "clusterft-gpu0-all-prepared", "the run's own name is a lock"
    assert (box.plan.gpus, box.plan.restart, box.plan.command[-2:]) == ((), "no", ("--status", "--json"))
    assert {mount.path for mount in box.plan.binds} >= {"/mnt/out", "/data/pics"}
    assert [(str(file.path), file.mode) for file in box.put] == [("/run/clusterft/config.json", 0o600)]


def test_a_container_finds_the_secrets_in_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box = Box(monkeypatch)
    assert boxed(tmp_path, {"TOKEN": KEY}).missing == 7
    assert box.plan and KEY not in repr(box.plan)
    placed = {str(file.path): file for file in box.put}
    kept = placed["/run/clusterft/secrets.json"]
    assert (json.loads(kept.data), kept.mode) == ({"TOKEN": KEY}, 0o600)
    # the file's own name stands before what is to be started
    words = box.plan.command
    assert words[words.index("/run/clusterft/secrets.json") + 1] == "sh" and "--only" not in words[:5]


@pytest.mark.parametrize(("code", "hangs", "words"), [(1, False, "could not be counted: {"), (0, True, "within")])
def test_a_container_that_does_not_answer_is_taken_away_too(
    code: int, hangs: bool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box = Box(monkeypatch, code=code)
    box.hangs = hangs
    with pytest.raises(CannotStart, match=words):
        boxed(tmp_path)
    assert box.removed == 1


# --- before training


@dataclass
class _Board:
    over: bool


@dataclass
class _Tended:
    board: _Board
    gang: None = None


class Before:
    """`before_training` with everything around it made up."""

    def __init__(self, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.ran = 0
        self.code, self.over = 0, True
        self.missing: int | None = 3
        self.job = scenes.job(CACHED.replace("shared: out", "shared: /mnt/out"), tmp_path)
        patch.setattr(prep, "_missing", lambda *_: self.missing)
        patch.setattr(
            prep, "_prepared", lambda *_, **__: type("Ready", (), {"plan": type("Plan", (), {"nodes": ()})})
        )
        patch.setattr(prep, "_tended", self._tend)
        patch.setattr(prep, "_await_end", lambda gang: None)
        self.verdict = Verdict("failed", "no step for 600 s", failure="hang")
        patch.setattr(prep.boards, "judge", lambda board: self.verdict)

    def _tend(self, *_: object, **options: Any) -> tuple[int, _Tended]:
        assert options["sequel"]
        self.ran += 1
        return self.code, _Tended(_Board(self.over))

    def run(self) -> int | None:
        source = prep.Source(self.job, "", Path("job.yaml"), {}, preflight=True)
        fleet: Any = type("Fleet", (), {"cluster": None})
        return prep.before_training(source, None, fleet, self.said.append, as_json=False)  # type: ignore[arg-type]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Before:
    """Data of which three pieces are missing."""
    return Before(monkeypatch, tmp_path)


def test_training_follows_at_once_where_nothing_is_missing(before: Before) -> None:
    before.missing = 0
    assert before.run() is None and before.ran == 0
    assert before.said[0].startswith("✓ all data is prepared")


def test_training_follows_when_all_is_prepared(before: Before) -> None:
    assert before.run() is None and before.ran == 1
    assert before.said == [
        "3 entries of the cache are missing: prepared first, by all nodes (--no-prep leaves that out)"
    ]


def test_what_nobody_can_count_is_left_to_the_run_that_prepares(before: Before) -> None:
    before.missing = None
    assert before.run() is None and before.ran == 1


@pytest.mark.parametrize(("code", "over"), [(5, True), (130, True), (0, False)])
def test_training_does_not_follow_a_run_that_failed_or_was_left(code: int, over: bool, before: Before) -> None:
    before.code, before.over = code, over
    assert before.run() == code
    assert "once the data is prepared: clusterft train job.yaml" in before.said[-1]


def test_what_is_wrong_with_the_data_is_told_with_its_line_and_what_mends_it(before: Before) -> None:
    before.code = 5
    before.verdict = Verdict("failed", "1 x no whole picture: a.png (data.sources[0]).", failure="data")
    assert before.run() == 5
    line = 1 + CACHED.splitlines().index("    sources: [{builtin: shapes}]")
    assert before.said[-2].endswith(f"job.yaml:{line}:15")
    assert "once that is mended: clusterft train job.yaml" in before.said[-1]


def test_a_job_without_a_cache_has_nothing_to_wait_for(tmp_path: Path) -> None:
    cached = CACHED.replace("shared: out", "shared: /mnt/out")
    assert prep.is_wanted(scenes.job(cached, tmp_path))
    assert not prep.is_wanted(scenes.job(cached.replace("    cache: {}\n", ""), tmp_path))


def test_errors_of_the_count_do_not_keep_a_run_from_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ClusterftError("the engine is away")

    said: list[str] = []
    monkeypatch.setattr(prep.preparing, "look", broken)
    plan = type("Plan", (), {"head": None, "places": type("Places", (), {"shared": "/mnt"})})
    ready: Any = type("Ready", (), {"plan": plan})
    nowhere: Any = None
    assert prep._missing(nowhere, ready, nowhere, {}, said.append) is None
    assert said == ["! the engine is away"]


def test_data_that_the_trainer_refuses_is_not_prepared_only_to_be_refused_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise preparing.Refused("1 x no caption: a.png (data.sources[0])", remedy="Mend it.")

    monkeypatch.setattr(prep.preparing, "look", refused)
    plan = type("Plan", (), {"head": None, "places": type("Places", (), {"shared": "/mnt"})})
    ready: Any = type("Ready", (), {"plan": plan})
    nowhere: Any = None
    job = scenes.job(CACHED.replace("shared: out", "shared: /mnt/out"), tmp_path)
    with pytest.raises(preparing.Refused) as error:
        prep._missing(job, ready, nowhere, {}, pytest.fail)
    assert error.value.where.startswith(f"{tmp_path}/job.yaml:") and error.value.exit_code == 3
