"""Proves what a run's checkpoints take in the shared dir: what blocks, what warns, and which setting it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenes
from test_claims import fleet

from clusterft import checks
from clusterft.apply import planning
from clusterft.checks import run_room
from clusterft.checks.run_room import RunRoom, Sizes
from clusterft.findings import Finding
from clusterft.remote.local import LocalRemote

GB = 10**9
TWO = scenes.cluster("a slots=1\nb slots=1\n")
FULL = """\
name: lighthouse
shared: /mnt/out
runtime: process
resources: {device: cpu}
train:
  model: /models/base.safetensors
  output: {name: lighthouse}
  data:
    sources: [{builtin: shapes}]
  learn: {unet: {rate: 4e-7, parts: unet-71}}
  epochs: 10
"""
ONE = 12 * 1_827_058_244  # weights and two moments in fp32
EXPORT = 2 * 3_468_837_867
SDXL = {"unet": 2_567_463_684, "text_encoder_1": 123_060_557, "text_encoder_2": 694_659_841, "vae": 83_653_863}


def room(tmp_path: Path, more: str = "", text: str = FULL, *, there: int = 0) -> RunRoom:
    return run_room.of(scenes.train(text + more, tmp_path), 2, there=there, weights=SDXL)


def judged(wanted: RunRoom, free: int) -> list[Finding]:
    disks = (scenes.disk("/mnt/out", free_bytes=free, mounted_on="/mnt"),)
    survey = scenes.survey(TWO, scenes.facts("a", disks=disks), scenes.facts("b", disks=disks))
    return list(checks.judge_run_room(survey, "/mnt/out", wanted))


def test_where_all_that_is_kept_has_room_nothing_is_said(tmp_path: Path) -> None:
    wanted = room(tmp_path)
    assert wanted.enough == 4 * ONE + EXPORT + 2**27  # 2 kept, the last, and the one that is being written
    assert judged(wanted, wanted.enough) == []


def test_without_room_for_the_old_and_the_new_one_a_run_is_blocked(tmp_path: Path) -> None:
    wanted = room(tmp_path)
    (told,) = judged(wanted, 2 * ONE + 2**27 - 1)
    assert (told.id, told.status, told.nodes) == ("os.disk-full", "fail", ("a", "b"))
    assert told.summary == "/mnt/out has no room for one checkpoint beside the one before it"
    assert "needs about 95 GB (checkpoints: 2 kept + 1 last + 1 being written, of 22 GB each; " in told.evidence
    assert "exports in fp16 of 6.9 GB each" in told.evidence and "44 GB are free on /mnt" in told.evidence
    assert "full-size" not in told.evidence and "up to" not in told.evidence
    assert told.fix[0] == "train.checkpoints.keep: 1 needs 22 GB less" and "/mnt" in told.fix[-1]


def test_without_room_for_all_that_is_kept_it_warns(tmp_path: Path) -> None:
    wanted = room(tmp_path)
    (told,) = judged(wanted, 2 * ONE + 2**27)
    assert told.status == "warn" and told.summary == "/mnt/out has no room for all that this run keeps"
    assert judged(wanted, wanted.enough - 1)[0].status == "warn"


# Each of two hundred steps, of which the job takes a thousand.
LONG = FULL.replace("epochs: 10", "steps: 1000\n  checkpoints: {every_steps: 200, keep: KEEP}")


@pytest.mark.parametrize(("keep", "stand"), [("3", 4), ("null", 5), ("5", 5), ("9", 5)])
def test_a_disk_that_is_full_before_the_run_is_through_blocks(keep: str, stand: int, tmp_path: Path) -> None:
    wanted = room(tmp_path, text=LONG.replace("KEEP", keep))
    enough = max(stand * ONE, min(5, stand - (keep == "3")) * ONE + EXPORT)
    assert wanted.certain == enough
    (told,) = judged(wanted, enough - 1)
    assert (told.status, told.summary) == ("fail", "/mnt/out has no room for all that this run keeps")
    assert judged(wanted, enough)[0].status == "warn", "the last one, if it is none of them, needs more"


def test_the_setting_that_would_fit_is_named(tmp_path: Path) -> None:
    wanted = room(tmp_path, text=LONG.replace("KEEP", "5"))
    (told,) = judged(wanted, 5 * ONE + EXPORT + 2**27)
    assert told.fix[0] == f"train.checkpoints.keep: 3 fits into {5 * ONE / GB + EXPORT / GB:.0f} GB"
    fits = room(tmp_path, text=LONG.replace("KEEP", "3"))
    assert judged(fits, 5 * ONE + EXPORT + 2**27) == []
    assert "fits" not in judged(wanted, 3 * ONE)[0].fix[0], "not even one"


def test_one_disk_that_all_nodes_see_is_told_once(tmp_path: Path) -> None:
    wanted = room(tmp_path)
    views = [(scenes.disk("/mnt/out", free_bytes=3 * ONE + more, mounted_on="/mnt"),) for more in (0, 2 * GB)]
    survey = scenes.survey(TWO, scenes.facts("a", disks=views[0]), scenes.facts("b", disks=views[1]))
    (told,) = checks.judge_run_room(survey, "/mnt/out", wanted)
    assert told.nodes == ("a", "b") and len(told.evidence.splitlines()) == 1
    assert "66 GB are free on /mnt" in told.evidence


def test_a_model_that_could_not_be_read_blocks_nothing_by_a_guess(tmp_path: Path) -> None:
    wanted = run_room.of(scenes.train(FULL, tmp_path), 2)
    (told,) = judged(wanted, 100)
    assert told.status == "warn" and "needs up to about 95 GB" in told.evidence
    assert "/models/base.safetensors is taken for a full-size SDXL" in told.evidence


def test_a_small_model_is_no_full_size_one(tmp_path: Path) -> None:
    small = {"unet": 3_000_000, "text_encoder_1": 40_000, "text_encoder_2": 140_000, "vae": 130_000}
    text = FULL.replace(", parts: unet-71", "")
    wanted = run_room.of(scenes.train(text, tmp_path), 2, weights=small)
    assert wanted.one == 12 * 3_000_000 and wanted.sure
    part = run_room.of(scenes.train(FULL, tmp_path), 2, weights=small)
    assert part.one == wanted.one and not part.sure, "blocks of a model that nobody has published"


@pytest.mark.parametrize(
    ("more", "less", "advice"),
    [
        ("  checkpoints: {keep: 1}\n", ONE, ""),
        ("  checkpoints: {keep: 5}\n", -3 * ONE, "train.checkpoints.keep: 1 needs 88 GB less"),
        ("  held_out: {}\n  checkpoints: {best: held_out}\n", -ONE, "without train.checkpoints.best: 22 GB less"),
        ("  checkpoints: {keep: null}\n", ONE, "train.checkpoints.keep: 2 keeps the newest two, not all"),
        ("  checkpoints: {rolling: 15min}\n", 2 * ONE, ""),
    ],
)
def test_each_setting_counts_and_is_named(tmp_path: Path, more: str, less: int, advice: str) -> None:
    wanted = room(tmp_path, more)
    assert room(tmp_path).enough - wanted.enough == less
    assert not advice or advice in wanted.advice


def test_a_running_mean_makes_each_checkpoint_larger(tmp_path: Path) -> None:
    wanted = room(tmp_path, text=FULL.replace("unet-71}", "unet-71}, ema: {}"))
    assert wanted.enough - room(tmp_path).enough == 4 * 4 * 1_827_058_244
    assert "without train.learn.ema each checkpoint is 7.3 GB smaller" in wanted.advice


def test_the_tiny_model_is_taken_for_what_it_is(tmp_path: Path) -> None:
    wanted = room(tmp_path, text=scenes.JOB)  # three steps: the one at the end is the only one
    assert wanted.single and wanted.enough < 2**28
    (told,) = judged(wanted, 100)
    assert told.status == "fail" and told.summary == "/mnt/out has no room for a checkpoint"
    assert "full-size" not in told.evidence


def test_blocks_that_are_named_one_by_one_warn_at_most(tmp_path: Path) -> None:
    wanted = room(tmp_path, text=FULL.replace("unet-71", "[input_blocks.4]"))
    (told,) = judged(wanted, 100)
    assert told.status == "warn" and "needs up to about" in told.evidence


def test_what_a_run_has_there_already_is_not_counted_again(tmp_path: Path) -> None:
    fresh, again = room(tmp_path), room(tmp_path, there=3 * ONE)
    assert fresh.enough - again.enough == 3 * ONE
    assert again.least == ONE + 2**27  # the next one must fit beside those that are there
    assert judged(again, again.enough) == [] and judged(again, ONE + 2**27 - 1)[0].status == "fail"
    assert "less 66 GB that the run has there already" in again.words
    assert room(tmp_path, there=9 * ONE).enough == ONE + 2**27


def test_what_a_run_has_there_is_read_on_its_head(tmp_path: Path) -> None:
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b"))
    nodes, run = fleet(a=LocalRemote()), tmp_path / "lighthouse 7f3a"
    assert planning._left(nodes, survey, run) == 0
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run / "checkpoints" / "step-00000002" / "rank-0").write_bytes(b"1" * 2**20)
    assert 2**20 <= planning._left(nodes, survey, run) < 2**20 + 2**16
    (run / "export").mkdir()
    (run / "export" / "model").write_bytes(b"1" * 2**20)
    (run / "logs").write_bytes(b"1" * 2**20)  # those of the attempt to come are others
    assert 2**21 <= planning._left(nodes, survey, run) < 2**21 + 2**17


def test_the_trainers_own_estimate_is_exact(tmp_path: Path) -> None:
    small = run_room.of(scenes.train(FULL, tmp_path), 2, Sizes(checkpoint=GB, export=GB))
    assert small.enough == 5 * GB + 2**27 and "full-size" not in small.words


def test_files_are_those_of_all_ranks(tmp_path: Path) -> None:
    few, many = (run_room.of(scenes.train(FULL, tmp_path), slots).files for slots in (1, 65))
    assert many - few == 64 * (4 + 4)  # a file in each of four checkpoints, and four logs
