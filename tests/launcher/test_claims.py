"""Several controllers and one run: who may start, repair, stop or clear away, and what nobody may touch.

The nodes are this machine, each with its own connection; a node out of reach is one that raises.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import plans
import pytest

from clusterft.apply import harvest, mending, record
from clusterft.apply.gang import Gang
from clusterft.apply.mending import Means, Mender
from clusterft.apply.record import Entry
from clusterft.board import Board, Verdict
from clusterft.cli import resume, stop, tending
from clusterft.cli.tending import Tended
from clusterft.errors import Blocked, ClusterftError, RunFailed
from clusterft.events import Gone, Said
from clusterft.fleet import Fleet
from clusterft.hosts import Node
from clusterft.plan import Part
from clusterft.remote import Remote, Unreachable, files
from clusterft.remote.local import LocalRemote
from clusterft.runtime import Harvest, contained, docker
from clusterft.runtime.contained import Contained
from clusterft.runtime.docker import EngineSaidNo, Found, Seen
from clusterft.runtime.process import CannotStart, Processes
from clusterft_trainer import stream

OFF = Unreachable("ssh.timeout", "no answer")
HUNG = EngineSaidNo("its engine does not answer")


class Off:
    """A node that cannot be reached."""

    def run(self, argv: tuple[str, ...], **_: Any) -> Any:
        """Nobody answers."""
        raise OFF


class Nodes:
    """Some nodes, all on this machine."""

    def __init__(self, **remotes: Any) -> None:
        self.remotes = dict(remotes)
        self.cluster = SimpleNamespace(
            name="rack",
            path=Path("/none/hosts"),
            nodes=tuple(Node(name, slots=1) for name in remotes),
            active=tuple(Node(name, slots=1) for name in remotes),
        )

    def each(self, work: Callable[[str, Any], Any]) -> dict[str, Any]:
        """One after the other; an Unreachable is an outcome."""

        def one(name: str) -> Any:
            try:
                return work(name, self.remotes[name])
            except Unreachable as error:
                return error

        return {name: one(name) for name in self.remotes}

    def leave(self, name: str) -> None:
        """Nothing more is asked of it."""
        self.remotes.pop(name)


def fleet(**remotes: Any) -> Fleet:
    """As the code under test takes it."""
    return cast(Fleet, Nodes(**remotes or {"n1": LocalRemote(), "n2": LocalRemote()}))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of runs go nowhere else; nothing waits."""
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(record, "save_note", lambda note: None)
    monkeypatch.setattr(mending, "_PAUSE", 0.0)
    monkeypatch.setattr(stop, "_PAUSE", 0.0)


def entry(run_dir: Path, first: int = 0) -> Entry:
    """A record with little in it."""
    body = {
        "run": "one",
        "cluster": "rack",
        "run_dir": str(run_dir),
        "nodes": [{"container": None}],
        "first_attempt": first,
        "survival": {"patience": 300.0, "restarts": 3},
    }
    parts = (Part("n1", 0, "process", "/runs/one", "p"), Part("n2", 1, "process", "/runs/one", "p"))
    return Entry({"name": "one"}, body, parts, "running", 1.0, controller="ann@here")


# -- claims ------------------------------------------------------------------------------------


def test_the_first_to_ask_has_it_and_the_others_learn_who_it_is(tmp_path: Path) -> None:
    run_dir = PurePosixPath(tmp_path)
    assert record.claim(fleet(), run_dir, "start-1")
    assert not record.claim(fleet(), run_dir, "start-1")
    assert record.whoever() in record.holder(fleet(), run_dir, "start-1")
    assert record.release(fleet(), run_dir, "start-1") is None
    assert record.claim(fleet(), run_dir, "start-1"), "whoever comes next"


def test_a_claim_whose_answer_was_lost_is_still_ones_own(tmp_path: Path) -> None:
    class Lost(LocalRemote):
        def run(self, argv: tuple[str, ...], **more: Any) -> Any:
            super().run(argv, **more)
            raise OFF

    assert record.claim(fleet(n1=Lost(), n2=LocalRemote()), PurePosixPath(tmp_path), "replan-1")


def test_a_share_that_cannot_be_written_is_no_claim_of_another(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file in the way")
    with pytest.raises(ClusterftError, match="cannot be made"):
        record.claim(fleet(), PurePosixPath(tmp_path), "replan-1")


def test_a_file_that_one_node_lacks_is_read_over_another(tmp_path: Path) -> None:
    class Unmounted(LocalRemote):
        def run(self, argv: tuple[str, ...], **more: Any) -> Any:
            return super().run(("sh", "-c", "exit 44"), **more)

    path = tmp_path / "run.json"
    path.write_text("{}")
    assert record.read_file(fleet(n1=Unmounted(), n2=LocalRemote()), PurePosixPath(path)) == "{}"
    assert record.read_file(fleet(n1=Unmounted()), PurePosixPath(path)) is None
    with pytest.raises(ClusterftError):
        record.read_file(fleet(n1=Unmounted(), n2=Off()), PurePosixPath(path))


def test_an_end_is_not_written_over_a_later_start(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(entry(tmp_path, 2).to_json())
    told = record.end(entry(tmp_path, 0), fleet(), Verdict("failed", "gone"))
    assert told and "later start" in told and "ann@here" in told
    assert record.parse((tmp_path / "run.json").read_text()).state == "running"


def test_a_draft_of_another_controller_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "run.json.new").mkdir()  # whatever lies there under the old fixed name
    files.write(LocalRemote(), PurePosixPath(tmp_path, "run.json"), "whole")
    assert (tmp_path / "run.json").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.json.new"]


# -- resume ------------------------------------------------------------------------------------


def located(run_dir: Path, nodes: Fleet, outcome: dict[str, Any] | None = None) -> Any:
    """A run as it was found."""
    known = entry(run_dir)
    return SimpleNamespace(
        run="one",
        entry=known,
        fleet=nodes,
        run_dir=PurePosixPath(run_dir),
        parts=known.parts,
        outcome=outcome,
        cluster=nodes.cluster,
    )


def test_the_second_to_resume_is_told_by_whom_and_clears_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest, "gather", lambda *_, **__: pytest.fail("it cleared something away"))
    found = located(tmp_path, fleet())
    assert record.claim(fleet(), found.run_dir, "start-0")
    with pytest.raises(Blocked) as refused:
        resume._go_on(cast(Any, None), found, cast(Any, None), {}, None)
    assert record.whoever() in refused.value.findings[0].summary
    assert any(f"rm -r {tmp_path}/claims/start-0" in line for line in refused.value.findings[0].fix)


def test_who_resumes_after_another_has_started_it_is_refused_and_lets_go(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(entry(tmp_path, 1).to_json())
    found = located(tmp_path, fleet())
    with pytest.raises(Blocked, match="in other hands"):
        resume._go_on(cast(Any, None), found, cast(Any, None), {}, None)
    assert not list((tmp_path / "claims").iterdir())


def test_a_run_on_a_node_that_cannot_be_asked_is_not_resumed(tmp_path: Path) -> None:
    found = located(tmp_path, fleet(n1=LocalRemote(), n2=Off()))
    with pytest.raises(Blocked) as refused:
        resume._refuse_alive(found)
    assert refused.value.findings[0].nodes == ("n2",)
    resume._refuse_alive(located(tmp_path, fleet(n1=LocalRemote(), n2=Off()), {"end": "failed"}))


# -- directories and containers of others ------------------------------------------------------


def process_plan(tmp_path: Path) -> Any:
    """A node's plan whose directory is here."""
    survey, job = plans.CASES["boxes"]
    node = plans.build(job, survey, tmp_path).head
    return replace(node, directory=PurePosixPath(tmp_path / "part"), files=())


def test_each_earlier_start_keeps_its_own_directory(tmp_path: Path) -> None:
    node = process_plan(tmp_path)
    for mark in ("a", "b", "c"):
        Processes()._set_aside(node, LocalRemote())
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / mark).touch()
    Processes()._set_aside(node, LocalRemote())
    asides = {path.name: os.listdir(path) for path in tmp_path.iterdir() if path.name.startswith("part")}
    assert asides == {"part.before-0": ["a"], "part.before-0.1": ["b"], "part.before-0.2": ["c"]}


def test_the_directory_of_a_supervisor_at_work_is_in_nobodys_way(tmp_path: Path) -> None:
    node, hand = process_plan(tmp_path), Processes()
    start = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "supervisor.json").write_text(f'{{"pid": {os.getpid()}, "start": {start}}}')
    (tmp_path / "part" / "secrets.json").touch()
    with pytest.raises(CannotStart, match="at work"):
        hand.put(node, LocalRemote(), {})
    part = Part(node.node.name, 0, "process", str(node.directory), "false")
    hand.discard(part, LocalRemote())
    assert (tmp_path / "part" / "secrets.json").exists(), "it belongs to the one that runs"


class Engine:
    """Nothing is asked of it: the functions of `docker` are replaced."""

    command = ("docker",)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Kept(LocalRemote):
    """Its containers have kept these lines."""

    def __init__(self, line: str) -> None:
        self._line = line

    def run(self, argv: tuple[str, ...], **more: Any) -> Any:
        """Whatever is asked."""
        return super().run(("printf", "%s", self._line), **more)


BOX = Part("n1", 0, "docker", "/run/clusterft", "python3")


def containers(monkeypatch: pytest.MonkeyPatch, *found: Found, ended: int = 0) -> list[str]:
    """The engine has these; what is done to them."""
    done: list[str] = []
    states = {one.id: one.state for one in found}

    def kill(_: object, identity: str) -> None:
        done.append(f"kill {identity}")
        states[identity] = "exited"

    monkeypatch.setattr(Contained, "_engine", lambda *_: Engine())
    monkeypatch.setattr(Contained, "_all", lambda *_: found)
    monkeypatch.setattr(docker, "look", lambda _, identity: Seen(states[identity], ended, ("python3",)))
    monkeypatch.setattr(docker, "kill", kill)
    monkeypatch.setattr(docker, "remove", lambda _, identity: done.append(f"remove {identity}"))
    monkeypatch.setattr(contained.Contained, "_save", lambda *_: "/kept")
    return done


def box(state: str, identity: str = "aa", attempt: int = 0) -> Found:
    """A container of the run."""
    return Found(identity, "clusterft", "rack", "one", "n1", state, attempt=attempt)


def test_a_container_that_runs_is_not_taken_away_because_nobody_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done = containers(monkeypatch, box("running"))
    with pytest.raises(EngineSaidNo, match="has not said that it is over"):
        Contained("rack", "one").harvest(BOX, Kept(""), "/keep", kill=False)
    assert done == []


def test_what_has_said_its_last_word_or_was_replaced_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done = containers(monkeypatch, box("running"))
    last = stream.encode(stream.Ended("ok", 0, 2.0))
    assert Contained("rack", "one").harvest(BOX, Kept(last), "/keep", kill=False).removed
    assert done == ["kill aa", "remove aa"]
    done = containers(monkeypatch, box("running"))
    assert Contained("rack", "one").harvest(BOX, Kept(""), "/keep", kill=True).removed


def test_a_start_that_failed_removes_only_what_it_may_have_made_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Contained("rack", "one")
    done = containers(monkeypatch, box("created", "aa", 1), box("created", "bb", 2), box("running", "cc", 2))
    hand.discard(BOX, LocalRemote())
    assert done == [], "it never came so far as to make one"
    hand._attempts["n1"] = 2
    hand.discard(BOX, LocalRemote())
    assert done == ["remove bb"]
    done.clear()
    hand._made["n1"] = "cc"
    hand.discard(BOX, LocalRemote())
    assert done == ["remove cc"]


@pytest.mark.parametrize(
    ("state", "word", "told", "may_go"),
    [
        ("failed", "running", True, True),
        ("failed", "running", False, False),
        ("failed", "exited", False, True),
        ("running", "exited", True, False),
    ],
)
def test_only_the_gangs_own_word_lets_a_container_that_runs_go(
    state: str, word: str, told: bool, may_go: bool
) -> None:
    assert harvest.ripe(state, {"n1": word}, ["n1"], time.time() - 60, told=told) is may_go


# -- stopping ----------------------------------------------------------------------------------


class Hand:
    """A carrier whose nodes give these answers, one for each request."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked = 0

    def stop(self, part: Part, remote: Remote, *, now: bool) -> bool:
        """The next answer."""
        self.asked += 1
        return self._next(part)

    def alive(self, part: Part, remote: Remote) -> bool:
        """The next answer."""
        return self._next(part)

    def _next(self, part: Part) -> bool:
        answers = self.answers[part.node]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)


def gang(hand: Hand) -> Gang:
    """Two nodes that answer so."""
    made = Gang("one", "rack", entry(Path("/shared/one")).parts, fleet())
    made._carrier = cast(Any, hand)
    return made


def test_one_engine_that_says_no_does_not_keep_the_others_from_stopping() -> None:
    assert gang(Hand(n1=[HUNG], n2=[True])).stop(now=False) == {"n1": HUNG, "n2": True}


def test_a_request_to_stop_is_repeated_until_a_part_has_taken_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tending, "_REPEAT", 0.0)
    hand = Hand(n1=[HUNG], n2=[OFF, OFF, True])
    made, request = gang(hand), tending._Request()
    request.pass_on(made)
    assert hand.asked == 0, "nobody wants it"
    request.ask("stop")
    for _ in range(9):
        request.pass_on(made)
    assert hand.asked == 6
    said = capsys.readouterr().err
    assert said.count("n1 was not told to stop: its engine does not answer") == 1 and said.count("n2 was not") == 1


def test_stop_asks_again_where_no_part_has_taken_it() -> None:
    hand = Hand(n1=[HUNG], n2=[OFF, True])
    assert stop._ask(gang(hand), now=False) == {"n1": HUNG, "n2": True}
    hand = Hand(n1=[False], n2=[False])
    assert stop._ask(gang(hand), now=False) == {"n1": False, "n2": False} and hand.asked == 2


# -- what cannot be heard ----------------------------------------------------------------------


def tended(hand: Hand, *ended: str) -> Tended:
    """A run whose nodes are all given up, but for those that said their end."""
    board = Board("one", ("n1", "n2"))
    for node in ("n1", "n2"):
        board.see(Said(node, stream.Ended("failed", 1, 2.0)) if node in ended else Gone(node, "not heard"))
    return cast(Tended, SimpleNamespace(gang=gang(hand), board=board, entry=entry(Path("/shared/one"))))


@pytest.mark.parametrize(("n1", "n2"), [(True, True), (HUNG, HUNG), (OFF, OFF), (False, HUNG), (OFF, False)])
def test_a_run_that_may_be_well_is_left_alone(n1: Any, n2: Any) -> None:
    with pytest.raises(RunFailed) as left:
        tending._leave_what_is_not_heard(tended(Hand(n1=[n1], n2=[n2])))
    assert left.value.failure == "unheard" and "clusterft attach one" in left.value.remedy


def test_a_run_that_is_known_to_be_over_is_cleared_away() -> None:
    tending._leave_what_is_not_heard(tended(Hand(n1=[False], n2=[False])))
    tending._leave_what_is_not_heard(tended(Hand(n1=[True], n2=[True]), "n1"))
    tending._leave_what_is_not_heard(tended(Hand(n1=[OFF], n2=[True]), "n2"))


def test_a_supervisor_that_nobody_has_reaped_is_not_at_work(tmp_path: Path) -> None:
    # `resume` within a second of a stop was refused: what had ended still stood in /proc.
    ended = subprocess.Popen(["true"])
    stat = Path(f"/proc/{ended.pid}/stat")
    while stat.read_text().rpartition(") ")[2][0] != "Z":
        time.sleep(0.01)
    began = stat.read_text().rpartition(") ")[2].split()[19]
    (tmp_path / "supervisor.json").write_text(f'{{"pid": {ended.pid}, "start": {began}}}')
    part = Part("n1", 0, "process", str(tmp_path), "p")
    assert not Processes().alive(part, LocalRemote())
    ended.wait()


@pytest.mark.parametrize("kill", [False, True])
def test_what_runs_of_a_run_that_is_over_lets_go_of_its_node(tmp_path: Path, kill: bool) -> None:
    """Found by a user: two nodes were occupied for minutes by parts that could not be told of the end."""
    at_work = subprocess.Popen(["sleep", "600"])
    began = Path(f"/proc/{at_work.pid}/stat").read_text().rpartition(") ")[2].split()[19]
    (tmp_path / "supervisor.json").write_text(f'{{"pid": {at_work.pid}, "start": {began}}}')
    part = Part("n1", 0, "process", str(tmp_path), sys.executable)
    try:
        assert Processes().harvest(part, LocalRemote(), "", kill=kill) == Harvest(removed=kill)
        assert Processes().alive(part, LocalRemote()) is not kill
    finally:
        at_work.kill()
        at_work.wait()


@pytest.mark.parametrize("back", [True, False])
def test_a_node_that_was_rebooted_is_cleared_over_a_new_connection(
    back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by the fault suite: the run was over, and the old connection was all that was tried.
    nodes = fleet(n1=LocalRemote(), n2=Off())
    asked: list[str] = []

    def reconnect(name: str) -> None:
        asked.append(name)
        if back:
            nodes.remotes[name] = LocalRemote()

    class Taker:
        """A carrier that only takes away."""

        def harvest(self, part: Part, remote: Any, _keep: str, *, kill: bool) -> Harvest:
            """Asks the node first, as the real one does."""
            remote.run(("true",))
            return Harvest(removed=True)

    monkeypatch.setattr(nodes, "reconnect", reconnect, raising=False)
    monkeypatch.setattr(harvest, "carrier", lambda *_: Taker())
    found = harvest.gather(nodes, "one", entry(Path("/shared/one")).parts, kill=True)
    assert asked == ["n2"] and found["n1"] == Harvest(removed=True)
    assert found["n2"] == (Harvest(removed=True) if back else OFF)


# -- mending -----------------------------------------------------------------------------------


def mender(tmp_path: Path) -> tuple[Mender, Board]:
    """A run that was lost with its head, where the nodes that are left are enough."""
    nodes, known = fleet(), entry(tmp_path)
    (tmp_path / "run.json").write_text(known.to_json())
    job = cast(Any, SimpleNamespace(min_nodes=1, restarts=3))
    made = Gang("one", "rack", known.parts, nodes)
    board = Board("one", ("n1", "n2"), restarts=3)
    board.see(Said("n2", stream.Attempt(0, 2, 1, 1, 2, "10.0.0.1", 29500, 1.0)))
    board.see(Gone("n1", "not heard"))
    board.see(Said("n2", stream.Ended("failed", 1, 2.0)))
    return Mender(known, made, nodes, Means(job, dict)), board


def test_a_new_start_that_fails_is_the_runs_end_and_the_next_may_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ClusterftError("the port is taken")

    monkeypatch.setattr(Mender, "_start_anew", broken)
    monkeypatch.setattr(Mender, "_worth", lambda *_: True)
    made, board = mender(tmp_path)
    with pytest.raises(ClusterftError, match="the port is taken"):
        list(made.go_on(board))
    now = record.parse((tmp_path / "run.json").read_text())
    assert now.state == "failed" and now.verdict and now.verdict["failure"] == "start"
    assert made.failed and not list((tmp_path / "claims").iterdir())


def test_a_repair_that_another_controller_makes_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mender, "_start_anew", lambda *_: pytest.fail("it started"))
    monkeypatch.setattr(Mender, "_worth", lambda *_: True)
    made, board = mender(tmp_path)
    assert record.claim(fleet(), PurePosixPath(tmp_path), "replan-1")
    assert list(made.go_on(board)) == [] and made.elsewhere
    assert record.parse((tmp_path / "run.json").read_text()).state == "running"


def test_a_spare_that_has_joined_is_told_of_though_the_share_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = mender(tmp_path)
    made._unwritten = made.entry.parts[:1]
    real = record.regrouped

    def full(*_: Any) -> Any:
        raise ClusterftError("no space left")

    monkeypatch.setattr(record, "regrouped", full)
    made._write_down()
    made._write_down()
    assert made.problems == ["run.json did not take at once that the gang has other nodes: no space left"]
    monkeypatch.setattr(record, "regrouped", real)
    made._write_down()
    assert [part.node for part in record.parse((tmp_path / "run.json").read_text()).parts] == ["n1"]
    assert not made._unwritten


def test_a_share_that_fails_for_a_moment_does_not_keep_a_run_from_its_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = record.claim, [ClusterftError("stale file handle")] * 2

    def claim(*words: Any) -> bool:
        if answers:
            raise answers.pop()
        return real(*words)

    monkeypatch.setattr(record, "claim", claim)
    monkeypatch.setattr(Mender, "_start_anew", lambda *_: iter(()))
    monkeypatch.setattr(Mender, "_worth", lambda *_: True)
    made, board = mender(tmp_path)
    assert list(made.go_on(board)) == [] and not made.elsewhere and not made.failed
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["replan-1"], "nobody plans this one again"
    assert len(made.problems) == 1 and "stale file handle" in made.problems[0]


def test_a_spare_is_tried_again_when_the_share_did_not_take_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = mender(tmp_path)
    (tmp_path / "claims").write_text("a file in the way")
    monkeypatch.setattr(Mender, "_alive", lambda _, names: frozenset(names) - {"n2"})
    monkeypatch.setattr(Mender, "_spares", lambda _: (Node("n3", slots=1),))
    made._first("replace n2")
    assert made._replace("n2", 0) is None
    assert made._first("replace n2"), "it is due again"
    assert "n2 is not replaced yet" in made.problems[0]
