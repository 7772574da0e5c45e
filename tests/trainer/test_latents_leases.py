"""Proves that tasks are shared out rightly among workers that crash, hang and come back, at any step they take.

The first half simulates the shared directory, its caches and every machine's clock; the second kills real
processes.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterft_trainer.latents import pulse
from clusterft_trainer.latents.leases import WORKERS, Directory, Lease, Leases

PATIENCE = 60.0
STALE = 30.0  # seconds for which a machine may go on to see a directory as it was
TASKS = tuple(f"task{n}" for n in range(5))


class _Killed(BaseException):
    """Ends a simulated process where it stands."""


@dataclass
class _World:
    """One shared directory and the true time."""

    chance: random.Random
    now: float = 0.0
    files: dict[str, bytes] = field(default_factory=dict)
    history: list[tuple[float, str]] = field(default_factory=list)  # when names appeared
    published: dict[str, str] = field(default_factory=dict)  # task to who made it
    encoded: list[Lease] = field(default_factory=list)
    beats: dict[str, float] = field(default_factory=dict)  # true time of each owner's last one
    ended: dict[str, str] = field(default_factory=dict)  # killed or left
    hung: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def appeared(self, name: str, until: float) -> bool:
        return any(at <= until and known == name for at, known in self.history)


class _Process(threading.Thread):
    """A simulated worker; runs only while the scheduler lets it, up to its next step."""

    def __init__(self, world: _World, name: str, patience: float) -> None:
        super().__init__(name=name, daemon=True)
        self.world = world
        self.skew = world.chance.uniform(-36_000, 36_000)
        self.wake = world.now
        self.doomed = False
        self.over = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._views: dict[str, float] = {}  # until when a directory was looked at
        self.leases = Leases(self, name, lambda: world.now + self.skew, patience)

    # -- the scheduler's side

    def step(self) -> None:
        """Let it run to its next step or end."""
        self._go.release()
        self._stopped.acquire()

    # -- its own side

    def run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        except _Killed:
            self.world.ended[self.name] = "killed"
        except Exception as error:  # noqa: BLE001 - told by the test
            self.world.wrong.append(f"{self.name}: {error!r}")
        self.over = True
        self._stopped.release()

    def turn(self, seconds: float = 0.0) -> None:
        self.wake = self.world.now + seconds
        self._stopped.release()
        self._go.acquire()
        if self.doomed:
            raise _Killed

    def _work(self) -> None:
        self.leases.beat()
        order = list(TASKS)
        self.world.chance.shuffle(order)
        while not all(self.finished(t) for t in TASKS):
            lease = self.leases.claim("plan", order, self.finished)
            if lease is None:
                self.turn(PATIENCE / 6)
                self.leases.beat()
                continue
            self._encode(lease)
        self.turn()
        self.world.ended[self.name] = "left"
        self.leases.leave()

    def _encode(self, lease: Lease) -> None:
        self.world.encoded.append(lease)
        for _ in range(self.world.chance.randrange(1, 4)):
            self.turn(PATIENCE / 6)
            self.leases.beat()
            if self.leases.lost(lease):
                self.leases.done(lease)
                return
        if not self.leases.lost(lease):
            self.turn()
            self.world.published.setdefault(lease.task, self.name)  # as link(2) does: the first stays
            self.world.history.append((self.world.now, lease.task))
            self.turn()
        self.leases.done(lease)

    def _view(self, folder: str) -> float:
        """Up to which moment this machine knows what is in a directory."""
        seen = self._views.get(folder, -STALE)
        if self.world.now - seen >= STALE or self.world.chance.random() < 0.3:
            seen = self._views[folder] = self.world.now
        return seen

    def finished(self, task: str) -> bool:
        self.turn()
        return self.world.appeared(task, self._view("shards"))

    def create(self, name: str, data: bytes) -> bool:
        self.turn()
        if name in self.world.files:
            return self.world.files[name] == data
        self._judge(name)
        self.world.files[name] = b""
        self.world.history.append((self.world.now, name))
        self.turn()
        self.world.files[name] = data
        self.turn()
        return True

    def write(self, name: str, data: bytes) -> None:
        self.turn()
        self.world.files[name] = data[: len(data) // 2]
        self.world.beats[self.name] = self.world.now
        self.turn()
        self.world.files[name] = data

    def read(self, name: str) -> bytes | None:
        self.turn()
        known = self.world.appeared(name, self._view(name.partition("/")[0])) or name.startswith(WORKERS)
        return self.world.files.get(name) if known else None

    def names(self, folder: str) -> list[str]:
        self.turn()
        until = self._view(folder)
        return [n.partition("/")[2] for at, n in self.world.history if at <= until and n.startswith(folder + "/")]

    def orphaned(self, name: str) -> bool:
        return False

    def _judge(self, name: str) -> None:
        """Whoever takes over must be right about the one before."""
        stem, _, generation = name.rpartition(".")
        before = f"{stem}.{int(generation) - 1}"
        if int(generation) == 1:
            return
        owner = self.world.files[before].decode()
        quiet = self.world.now - self.world.beats.get(owner, 0)
        if owner and owner not in self.world.ended and quiet < PATIENCE:
            self.world.wrong.append(f"{name} was taken from {owner}, which beat {quiet} s ago")


@dataclass(frozen=True)
class _Fault:
    step: int
    victim: int
    seconds: float  # of hanging; 0 kills


def _simulate(seed: int, count: int, faults: list[_Fault], patience: float = PATIENCE) -> _World:
    """Run workers step by step in an order drawn from the seed; if none survives, one more is started."""
    world = _World(random.Random(seed))
    crowd = [_Process(world, f"w{n}", patience) for n in range(count)]
    due = {fault.step: fault for fault in faults}
    for process in crowd:
        process.start()
    for number in range(30_000):
        if all(process.over for process in crowd):
            if len(world.published) == len(TASKS):
                return world
            crowd.append(_Process(world, f"w{len(crowd)}", patience))
            crowd[-1].start()
        alive = [p for p in crowd if not p.over]
        fault = due.get(number)
        if fault is not None:
            victim = alive[fault.victim % len(alive)]
            if fault.seconds:
                world.hung.add(victim.name)
                victim.wake = world.now + fault.seconds
            else:
                victim.doomed = True
        ready = [p for p in alive if p.wake <= world.now]
        if not ready:
            world.now = min(p.wake for p in alive)
            continue
        world.now += world.chance.choice((0.0, 0.01, 0.2))
        world.chance.choice(ready).step()
    raise AssertionError(f"not finished: {world.published}")


faults = st.builds(
    _Fault, st.integers(0, 400), st.integers(0, 3), st.sampled_from([0.0, 0.0, PATIENCE / 2, 3 * PATIENCE])
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 4), st.lists(faults, max_size=8))
def test_every_task_is_done_and_none_is_taken_from_a_worker_that_beats(
    seed: int, count: int, harm: list[_Fault]
) -> None:
    world = _simulate(seed, count, harm)
    assert world.wrong == []
    assert set(world.published) == set(TASKS)
    times = Counter(lease.task for lease in world.encoded)
    last = {lease.task: lease.generation for lease in sorted(world.encoded, key=lambda one: one.generation)}
    again = [lease for lease in world.encoded if times[lease.task] > 1 and lease.generation < last[lease.task]]
    owners = {world.files[lease.name].decode() for lease in again}
    assert all(owner in world.hung or world.ended.get(owner) == "killed" for owner in owners)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_without_faults_nothing_is_done_twice(seed: int, count: int) -> None:
    world = _simulate(seed, count, [])
    assert Counter(lease.task for lease in world.encoded) == Counter(TASKS)


def test_the_simulation_can_tell_a_protocol_that_is_too_hasty() -> None:
    """A check of the checks: with too little patience, living workers lose their tasks."""
    found = [line for seed in range(30) for line in _simulate(seed, 3, [], patience=1.0).wrong]
    assert any("was taken from" in line for line in found)


_WORKER = """
import sys, time
from pathlib import Path
from clusterft_trainer.latents import pulse
from clusterft_trainer.latents.leases import Directory, Leases
from clusterft_trainer.latents.pulse import Pulse
root, owner, patience, skew = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
tasks = [f"t{n}" for n in range(int(sys.argv[5]))]
files = Directory(root / "work")
files.begin("plan")
leases = Leases(files, owner, lambda: time.monotonic() + skew, patience, **files.join(owner))
finished = lambda task: (root / task).exists()
with Pulse(leases, patience / 6) as pulse:
    while not all(map(finished, tasks)):
        lease = leases.claim("plan", tasks, finished)
        if lease is None:
            time.sleep(patience / 6)
            continue
        with (root / "encoded").open("a") as log:
            log.write(f"{lease.name} {owner}\\n")
        pulse.hold(lease)
        time.sleep(0.03)
        draft = root / f".{lease.task}-{owner}"
        draft.write_text("content of " + lease.task)
        if not pulse.lost(lease):
            try:
                (root / lease.task).hardlink_to(draft)
            except FileExistsError:
                pass
        draft.unlink()
        pulse.drop(lease)
files.close()
"""


def _start(root: Path, owner: str, patience: float, tasks: int, skew: float = 0) -> subprocess.Popen[bytes]:
    given = [str(root), owner, str(patience), str(skew), str(tasks)]
    path = str(Path(__file__).parents[2] / "trainer")
    return subprocess.Popen([sys.executable, "-c", _WORKER, *given], env={**os.environ, "PYTHONPATH": path})


def _encoded(root: Path) -> list[tuple[str, str]]:
    rows = [line.split() for line in (root / "encoded").read_text().splitlines()]
    return [(name.partition("/")[2].rpartition(".")[0], owner) for name, owner in rows]


def test_real_processes_that_are_killed_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    chance, tasks = random.Random(4), 40
    killed, living = [], [_start(tmp_path, f"w{n}", 30, tasks, 3600 * n) for n in range(3)]
    end = time.monotonic() + 20
    for number in range(4):
        time.sleep(chance.uniform(0.15, 0.5))
        victim = living.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        killed.append(victim.args[4])  # type: ignore[index]
        living.append(_start(tmp_path, f"w{number + 3}", 30, tasks))
    for process in living:
        assert process.wait(max(1, end - time.monotonic())) == 0
    assert all((tmp_path / f"t{n}").read_text() == f"content of t{n}" for n in range(tasks))
    rows = _encoded(tmp_path)
    for task, times in Counter(task for task, _ in rows).items():
        others = [owner for known, owner in rows if known == task]
        assert times == 1 or all(owner in killed for owner in others[:-1]), (task, others)


def test_a_stopped_process_loses_its_task_and_does_no_harm_when_it_wakes(tmp_path: Path) -> None:
    slow = _start(tmp_path, "slow", 0.6, 80)
    while not (tmp_path / "encoded").exists():
        time.sleep(0.01)
    slow.send_signal(signal.SIGSTOP)
    other = _start(tmp_path, "other", 0.6, 80)
    assert other.wait(20) == 0
    slow.send_signal(signal.SIGCONT)
    assert slow.wait(20) == 0
    again = [task for task, times in Counter(task for task, _ in _encoded(tmp_path)).items() if times > 1]
    assert len(again) <= 1
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".t")]


def _leases(root: Path, owner: str, clock: Callable[[], float], **about: object) -> Leases:
    files = Directory(root)
    files.begin("plan")
    return Leases(files, owner, clock, PATIENCE, **about)


def test_a_worker_that_left_gives_back_only_what_it_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / WORKERS).mkdir()
    one, two = (_leases(tmp_path, name, lambda: 0.0) for name in ("one", "two"))
    one.beat()
    first, second = (one.claim("plan", [task], lambda _: False) for task in ("a", "b"))
    assert first is not None and second is not None
    one.done(first)
    assert two.claim("plan", ["a", "b"], lambda _: False) is None
    one.leave()
    # "a" is finished; that this machine does not see it yet must not have it done again
    assert two.claim("plan", ["a", "b"], lambda _: False) == Lease("plan", "b", 2)
    assert one.lost(second) and not one.lost(first)


def test_a_worker_that_leaves_much_undone_gives_back_as_much_as_a_beat_can_tell(tmp_path: Path) -> None:
    one, two = (_leases(tmp_path, name, lambda: 0.0) for name in ("one", "two"))
    names = [f"1024x1024-{number:032x}" for number in range(40)]
    (tmp_path / WORKERS).mkdir()
    one.beat()
    for _ in names:
        assert one.claim("plan", names, lambda task: False)
    one.leave()
    assert two.claim("plan", names, lambda task: False) is not None


def test_a_lease_without_an_owner_is_taken_over_after_the_same_time(tmp_path: Path) -> None:
    now = 0.0
    leases = _leases(tmp_path, "one", lambda: now)
    Directory(tmp_path).begin("plan")
    Directory(tmp_path).create("plan/a.1", b"")
    assert leases.claim("plan", ["a"], lambda _: False) is None
    now = PATIENCE - 1
    assert leases.claim("plan", ["a"], lambda _: False) is None
    now = PATIENCE
    assert leases.claim("plan", ["a"], lambda _: False) == Lease("plan", "a", 2)


@pytest.mark.parametrize("content", [b"../../etc", b"/etc/passwd", b"\xff\xfe", b".", b"a/b"])
def test_a_lease_cannot_lead_out_of_its_directory(tmp_path: Path, content: bytes) -> None:
    asked: list[str] = []

    class Watched(Directory):
        def read(self, name: str) -> bytes | None:
            asked.append(name)
            return super().read(name)

    files = Watched(tmp_path)
    files.begin("plan")
    files.create("plan/a.1", content)
    Leases(files, "one", lambda: 0.0, PATIENCE).claim("plan", ["a"], lambda _: False)
    assert set(asked) == {"plan/a.1"}


def test_a_finished_task_is_not_claimed(tmp_path: Path) -> None:
    leases = _leases(tmp_path, "one", lambda: 0.0)
    assert leases.claim("plan", ["a", "b"], lambda task: task == "a") == Lease("plan", "b", 1)


def test_a_beat_is_no_longer_than_its_place(tmp_path: Path) -> None:
    leases = _leases(tmp_path, "one", lambda: 0.0)
    with pytest.raises(ValueError, match="limit"):
        leases.beat({"text": "x" * 2000})


def test_a_group_that_was_removed_stays_closed(tmp_path: Path) -> None:
    leases = _leases(tmp_path, "one", lambda: 0.0)
    (tmp_path / "plan").rmdir()
    assert leases.claim("plan", ["a"], lambda _: False) is None
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_given_once_with_its_content(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    one, two = Directory(tmp_path), Directory(tmp_path)
    one.begin("g")
    assert one.create("g/a", b"one") and not two.create("g/a", b"two")
    assert one.create("g/a", b"one"), "a request that was sent twice is still ours"
    assert two.read("g/a") == b"one"
    assert not one.create("closed/a", b"one")
    assert os.listdir(tmp_path) == ["g"]


def test_many_want_one_name_and_one_gets_it(tmp_path: Path) -> None:
    crowd = [Directory(tmp_path) for _ in range(8)]
    crowd[0].begin("g")
    won: list[tuple[int, int]] = []

    def reach(number: int) -> None:
        for name in range(30):
            if crowd[number].create(f"g/{name}", b"%d" % number):
                won.append((name, number))

    threads = [threading.Thread(target=reach, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in won) == list(range(30))
    assert all(crowd[0].read(f"g/{name}") == b"%d" % number for name, number in won)


def test_only_a_lock_of_this_kernel_and_mount_tells_that_a_process_is_gone(tmp_path: Path) -> None:
    """A worker in another container may lock through another mount, and seem unlocked while it lives."""
    one, two = Directory(tmp_path), Directory(tmp_path)
    about = one.join("one")
    Leases(one, "one", lambda: 0.0, PATIENCE, **about).beat()
    assert not two.orphaned("workers/one"), "it holds its lock"
    one.close()
    assert two.orphaned("workers/one")
    for foreign in ({"boot": "another"}, {"device": -1}):
        Leases(one, "one", lambda: 0.0, PATIENCE, **about | foreign).beat()
        assert not two.orphaned("workers/one")


def test_a_pulse_rests_for_those_who_fork_and_comes_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "_REST", 0.2)
    files = Directory(tmp_path)
    leases = Leases(files, "one", time.monotonic, PATIENCE, **files.join("one"))
    before = threading.active_count()
    with pulse.Pulse(leases, 0.02) as one:
        assert threading.active_count() == before + 1
        with one.resting():
            assert threading.active_count() == before, "a fork would be in danger"
            content = files.read("workers/one")
            time.sleep(0.1)
            assert files.read("workers/one") == content
            end = time.monotonic() + 5
            while files.read("workers/one") == content and time.monotonic() < end:
                time.sleep(0.02)
            assert files.read("workers/one") != content, "what is begun may take hours"
        assert threading.active_count() == before + 1


def test_a_worker_that_does_not_move_any_more_falls_silent(tmp_path: Path) -> None:
    """A GPU that hangs must not keep its task."""
    files = Directory(tmp_path)
    files.begin("plan")
    leases = Leases(files, "one", time.monotonic, PATIENCE, **files.join("one"))
    with pulse.Pulse(leases, 0.02, stalled=0.2) as one:
        lease = leases.claim("plan", ["a"], lambda _: False)
        assert lease is not None
        one.hold(lease)
        time.sleep(0.4)
        content = files.read("workers/one")
        time.sleep(0.2)
        assert files.read("workers/one") == content
        one.moved()
        time.sleep(0.1)
        assert files.read("workers/one") != content


def test_a_worker_that_was_swept_away_and_comes_back_is_locked_again(tmp_path: Path) -> None:
    one, two = Directory(tmp_path), Directory(tmp_path)
    leases = Leases(one, "one", lambda: 0.0, PATIENCE, **one.join("one"))
    leases.beat()
    (tmp_path / "workers" / "one").unlink()
    leases.beat()
    assert two.read("workers/one") and not two.orphaned("workers/one")
