"""Proves the program that `doctor --deep` runs on nodes: its tasks, deadlines, and that nothing stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ranks import TRAINER, free_port

from clusterft_trainer.errors import DataError
from clusterft_trainer.proving import cards, checkpointing, collective, rehearsal
from clusterft_trainer.rank import start_time

pytestmark = pytest.mark.trainer


class Bench:
    """The program, spoken to as the controller does."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": TRAINER, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clusterft_trainer.proving"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        assert "ready" in self.hear()

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout
        body: dict[str, Any] = json.loads(self.process.stdout.readline())
        return body

    def tell(self, body: dict[str, Any]) -> None:
        """One line for it."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(body).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, task: str, ranks: int, seconds: float = 60.0, **given: Any) -> None:
        """So many processes of a task, all of them here."""
        port = free_port()
        for rank in range(ranks):
            where = {"rank": rank, "world": ranks, "address": "127.0.0.1", "port": port, "patience": seconds - 1}
            body = {"cuda": False, "card": 0, "most": 1 << 22, **where, **given}
            asked = {"do": "start", "group": "g", "slot": rank, "task": task, "seconds": seconds, "given": body}
            self.tell({**asked, "env": {"GLOO_SOCKET_IFNAME": "lo"}})

    def ends(self, count: int) -> tuple[dict[int, list[dict[str, Any]]], dict[int, dict[str, Any]]]:
        """What each slot said, and how it ended."""
        said: dict[int, list[dict[str, Any]]] = {slot: [] for slot in range(count)}
        ended: dict[int, dict[str, Any]] = {}
        while len(ended) < count:
            body = self.hear()
            if "ended" in body:
                ended[body["slot"]] = body
            else:
                said[body["slot"]].append(body["said"])
        return said, ended


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def children(pid: int) -> list[int]:
    """Its forks."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether all of them ended, after a moment."""
    deadline = time.monotonic() + 5
    while any(start_time(pid) is not None for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_two_ranks_reduce_and_both_tell_the_same_size(bench: Bench) -> None:
    bench.start("collective", 2)
    said, ended = bench.ends(2)
    results = [ranks[-1] for ranks in said.values()]
    assert [one["stage"] for one in said[0]] == ["store", "group", "first", "measure", "done"]
    assert results[0]["bytes"] == results[1]["bytes"] <= 1 << 22 and all(one["seconds"] > 0 for one in results)
    assert [one["ended"] for one in ended.values()] == [0, 0] and not any(one["late"] for one in ended.values())


def test_a_rank_whose_peer_never_comes_is_ended_at_its_deadline(bench: Bench) -> None:
    bench.start("collective", 1, seconds=2.0, world=2, patience=60)
    began = time.monotonic()
    said, ended = bench.ends(1)
    assert time.monotonic() - began < 6 and ended[0]["late"] and ended[0]["ended"] == -9
    assert said[0][-1] == {"stage": "store"}


def test_torch_says_itself_why_it_gave_up(bench: Bench) -> None:
    bench.start("collective", 1, seconds=20.0, world=2, patience=1)
    said, ended = bench.ends(1)
    assert ended[0]["ended"] == 70 and not ended[0]["late"]
    assert "1/2 clients joined" in said[0][-1]["error"]


def test_a_slot_works_by_itself(bench: Bench) -> None:
    bench.start("card", 1)
    said, _ = bench.ends(1)
    assert said[0][-1]["name"] == "cpu" and said[0][-1]["flops"] > 1e8


def test_a_checkpoint_is_saved_and_read_back_and_nothing_of_it_stays(bench: Bench, tmp_path: Path) -> None:
    bench.start("checkpoint", 2, litter=str(tmp_path / ".clusterft" / "deep-1"))
    said, ended = bench.ends(2)
    assert [one[-1] for one in said.values()] == [{"stage": "done", "same": True}] * 2, ended
    seen = next(one for one in said[1] if one["stage"] == "seen")
    assert seen["missing"] == [] and "latest" in seen["there"]
    assert os.listdir(tmp_path) == []


def test_a_share_that_is_not_there_is_told_and_not_made(bench: Bench, tmp_path: Path) -> None:
    bench.start("checkpoint", 2, litter=str(tmp_path / "absent" / ".clusterft" / "deep-1"))
    said, ended = bench.ends(2)
    assert [one[-1]["errno"] for one in said.values()] == [2, 2] and os.listdir(tmp_path) == []
    assert [one["ended"] for one in ended.values()] == [0, 0]


def test_what_is_above_the_checkpoint_stays_if_it_is_not_empty(tmp_path: Path) -> None:
    place = tmp_path / ".clusterft" / "deep-1"
    place.mkdir(parents=True)
    (tmp_path / ".clusterft" / "code").mkdir()
    checkpointing.sweep({"path": str(place)}, lambda _: None)
    assert os.listdir(tmp_path / ".clusterft") == ["code"]


@pytest.mark.parametrize("how", ["stop", "end", "kill"])
def test_processes_end_when_they_are_told_or_when_nobody_is_left_to_tell_them(
    bench: Bench, tmp_path: Path, how: str
) -> None:
    place = tmp_path / ".clusterft" / "deep-1"
    place.mkdir(parents=True)
    bench.start("checkpoint", 1, world=2, patience=60, litter=str(place))
    assert bench.hear()["said"] == {"stage": "store"}
    forks = children(bench.process.pid)
    assert len(forks) == 1
    if how == "stop":
        bench.tell({"do": "stop", "group": "g"})
        assert bench.ends(1)[1][0]["ended"] == -9
    elif how == "end":
        assert bench.process.stdin
        bench.process.stdin.close()
        assert bench.process.wait(timeout=10) == 0 and os.listdir(tmp_path) == []
    else:
        bench.process.kill()
    assert gone(forks)


def test_the_size_follows_the_link() -> None:
    assert collective.size(2.5e6, 1 << 30) == 1 << 20  # 20 Mbit/s
    assert collective.size(1e9, 1 << 30) == 1 << 28
    assert collective.size(1e12, 1 << 30) == 1 << 30
    assert collective.repetitions(2.5e6, 1 << 20) == 7 and collective.repetitions(1e3, 1 << 20) == 3
    assert collective.repetitions(1e12, 1 << 20) == 8


class Clock:
    """A made-up card of 1.4 ms a product, the time, and a nvidia-smi that takes so long; nobody waits for real."""

    each = 0.0014

    def __init__(self, answers_after: float) -> None:
        self.now = 0.0
        self.busy_until = 0.0
        self.given = 0
        self.idle_answers = 0
        self.answers_after = answers_after
        self.asked = 0

    def give(self, count: int) -> Any:
        self.busy_until = max(self.busy_until, self.now) + count * self.each
        self.given += count
        return Moment(self, self.busy_until)

    def ask(self) -> Any:
        self.asked += 1
        return Slow(self, self.now + self.answers_after)


class Moment:
    """When the card comes to a mark."""

    def __init__(self, clock: Clock, at: float) -> None:
        self.clock, self.at = clock, at

    def synchronize(self) -> None:
        self.clock.now = max(self.clock.now, self.at)

    def elapsed_time(self, end_event: Any) -> float:
        return float(end_event.at - self.at) * 1000


class Slow:
    """A question to the driver."""

    sample: list[float] | None = None
    late = False

    def __init__(self, clock: Clock, until: float) -> None:
        self.clock, self.until, self.since = clock, until, clock.now

    def over(self) -> bool:
        if self.clock.now >= self.until:
            # answered at some time since it was last looked at
            self.clock.idle_answers += self.clock.busy_until <= self.clock.now
            self.sample = [650.0, 700.0, 100.0]
            return True
        self.late = self.clock.now - self.since >= cards._ASK
        return self.late


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.45, 0.8, 2.5])
def test_a_slow_driver_makes_no_card_slow_and_asks_no_idle_one(seconds: float) -> None:
    """A driver that took longer than the work was taken for a third of a H200's rate, and told no sample."""
    clock = Clock(seconds)
    found = cards.measured(clock, clock.ask, lambda: clock.now)
    assert found.each == pytest.approx(clock.each)
    assert len(found.samples) == clock.asked >= 3 and not found.unasked
    assert clock.idle_answers == 0 and clock.given * clock.each == pytest.approx(clock.now)
    assert clock.now < 15


def test_a_driver_that_does_not_answer_is_asked_once_and_told() -> None:
    clock = Clock(60.0)
    found = cards.measured(clock, clock.ask, lambda: clock.now)
    assert (clock.asked, found.samples, found.each) == (1, [], pytest.approx(clock.each))
    assert "no answer within 3 s" in found.unasked and clock.now < 12


@pytest.mark.parametrize(("each", "count"), [(0.0014, 72), (0.1, 1), (3.0, 1), (0.0101, 10)])
def test_a_chunk_lasts_a_tenth_of_a_second_and_fits_the_drivers_queue(each: float, count: int) -> None:
    """CUDA holds some thousand launches before it makes the host wait."""
    assert cards.chunk(each) == count < 500


@pytest.mark.gpu
def test_a_card_tells_its_rate_and_what_it_draws() -> None:
    """On an idle card: within its peak, at work whenever it was asked, and no other rate than by hand."""
    import torch

    from clusterft_trainer.estimate import devices

    said: list[dict[str, Any]] = []
    cards.run({"cuda": True, "card": 0}, said.append)
    done = said[-1]
    half = torch.cuda.get_device_properties(0).major < 8
    work = cards.Products(torch.float16 if half else torch.bfloat16)
    work.give(20)
    torch.cuda.synchronize()
    began = time.perf_counter()
    work.give(200)
    torch.cuda.synchronize()
    by_hand = 2 * 8192**3 * 200 / (time.perf_counter() - began)
    assert done["flops"] == pytest.approx(by_hand, rel=0.1), done
    peak = devices.peak(done["name"], "bf16")
    assert peak is None or done["flops"] < peak, done
    assert done["unasked"] or len(done["samples"]) >= 3, done
    assert all(used > 80 for _, _, used in done["samples"]), done


def test_a_card_that_says_nothing_is_not_asked_for_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert answer().sample is None
    for text, expected in (("312.4, 450.00, 98", [312.4, 450.0, 98.0]), ("[N/A], 450.00, 98", None), ("", None)):
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
        assert answer().sample == expected


def test_a_driver_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cards, "_ASK", 0.2)
    before = set(children(os.getpid()))
    asked = answer()
    assert asked.late and asked.sample is None
    assert gone(sorted(set(children(os.getpid())) - before))


def answer() -> cards.Question:
    """A question, once it is over."""
    asked = cards.Question("GPU-1")
    while not asked.over():
        time.sleep(0.01)
    return asked


def rehearsed(bench: Bench, folder: Path, **settings: Any) -> dict[int, list[dict[str, Any]]]:
    """Two ranks of a small job."""
    config = {"model": "builtin:tiny", "output": {"name": "x"}, "learn": {"unet": {"rate": 1e-3}}, "steps": 1}
    config |= {"data": {"sources": [{"folder": str(folder)}]}} | settings
    bench.start("rehearse", 2, config=config, modules=[])
    return bench.ends(2)[0]


def test_a_rehearsal_goes_as_far_as_the_first_all_reduce(bench: Bench, tmp_path: Path) -> None:
    """A picture that is broken is the job's own affair as long as another one is well."""
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    for said in rehearsed(bench, tmp_path).values():
        stages = [one["stage"] for one in said if "stage" in one]
        assert stages == ["libraries", "model", "pictures", "processes", "store", "group", "first", "done"]


@pytest.mark.parametrize(
    ("settings", "stage", "words", "remedy"),
    [
        ({"model": "/nowhere/sdxl.safetensors"}, "model", "/nowhere/sdxl.safetensors", ""),
        ({}, "pictures", "a.png is a Git LFS pointer, and no picture", "git lfs pull"),
        ({"vae": "{here}/a.png"}, "model", "Git LFS pointer", "git lfs pull"),
        ({"data": {"sources": [{"folder": "/nowhere/at all"}]}}, "pictures", "/nowhere/at all", "job.yaml"),
    ],
)
def test_a_rehearsal_ends_where_a_run_would_and_in_its_words(
    bench: Bench, tmp_path: Path, settings: dict[str, Any], stage: str, words: str, remedy: str
) -> None:
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    settings = {key: one.format(here=tmp_path) if isinstance(one, str) else one for key, one in settings.items()}
    for said in rehearsed(bench, tmp_path, **settings).values():
        assert [one["stage"] for one in said if "stage" in one][-1] == stage
        told = next(one for one in said if "error" in one)
        assert words in told["error"] and remedy in told["remedy"]


@pytest.mark.parametrize("there", [True, False], ids=["outside", "gone"])
def test_pictures_that_are_links_out_of_the_folder_are_refused_as_by_a_run(tmp_path: Path, there: bool) -> None:
    """In the fourth blind round the links led to a disk of one node alone; there too no run reads them."""
    raw, pictures = tmp_path / "raw", tmp_path / "pics"
    raw.mkdir()
    pictures.mkdir()
    if there:
        Image.new("RGB", (8, 8)).save(raw / "000.png")
    (pictures / "000.png").symlink_to(raw / "000.png")
    with pytest.raises(DataError) as refused:
        rehearsal._folder(str(pictures))
    why = f"lies outside of {pictures}: no run reads it" if there else "is not there for a rank"
    assert refused.value.message == f"{pictures}/000.png is a link to {raw}/000.png, which {why}."
    assert "rsync -aL" in refused.value.remedy and "LFS" not in refused.value.remedy


def test_pictures_that_are_links_within_their_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "real" / "a.bin", format="PNG")
    (tmp_path / "b.png").symlink_to("real/a.bin")
    rehearsal._folder(str(tmp_path))


def test_what_is_no_picture_is_told_without_a_word_of_weights(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the pictures that were tried") as refused:
        rehearsal._folder(str(tmp_path))
    assert "LFS" not in refused.value.remedy
