"""A run that prepares data: its plan, what a container sees of the sources, and what a person is told of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes
from plans import BOXED, GPU_JOB, build, cards_and_fabric, mixed, three_ssh, two_local
from spoken import RUN, begun, ended, log, told

from clusterft.apply import record
from clusterft.apply.record import Entry
from clusterft.board import Board, judge
from clusterft.errors import InvalidFile
from clusterft.events import Event
from clusterft.plan import LaunchPlan, Prep
from clusterft.spec import Mount, mounts
from clusterft.ui import live, nodes, outcome, prepared, status
from clusterft.ui import text as views
from clusterft.ui.happenings import Teller
from clusterft_trainer import progress

CACHED = BOXED.replace("sources: [{builtin: shapes}]", "sources: [{folder: /data/pictures}]\n    cache: {}")


def as_json(planned: LaunchPlan) -> dict[str, Any]:
    """The plan as run.json holds it."""
    body: dict[str, Any] = json.loads(json.dumps(planned.to_dict()))
    return body


def test_ranks_are_started_without_a_launcher_and_claim_their_work(tmp_path: Path) -> None:
    planned = build(CACHED + "launcher: deepspeed\n", three_ssh(), tmp_path, prep=Prep("latents"))
    for number, node in enumerate(planned.nodes):
        assert node.command == (
            *("python3", "-m", "clusterft_trainer.supervisor.starter", "8", str(8 * number), "24"),
            *("clusterft_trainer", "prep", "/run/clusterft/config.json", "--shared", "/mnt/out"),
            *("--only", "latents"),
        )
        assert node.assignment.kind == "prep" and node.attempt_files == ()
        assert node.assignment.survival.min_nodes == 1
        assert {file.path.name for file in node.files} == {"assignment.json", "config.json"}
        assert node.container and node.container.name == f"clusterft-gpu{number}-all", "the name is the lock"


def test_all_else_of_a_plan_is_that_of_training(tmp_path: Path) -> None:
    job = CACHED + "secrets: [HF_TOKEN]\n"
    trains, prepares = (as_json(build(job, three_ssh(), tmp_path, prep=prep)) for prep in (None, Prep()))
    assert "prep" not in trains and prepares["prep"] == {"only": None}
    told = {key for key in trains if trains[key] != prepares[key]}
    assert told == {"job", "launcher", "rendezvous", "survival", "nodes"}
    for one, other in zip(trains["nodes"], prepares["nodes"], strict=True):
        assert {key for key in one if one[key] != other[key]} == {"argv", "files"}


def test_uneven_slots_and_a_number_of_nodes_do_not_matter(tmp_path: Path) -> None:
    planned = build(GPU_JOB + "min_nodes: 7\n", cards_and_fabric(), tmp_path, prep=Prep())
    assert [node.command[3:6] for node in planned.nodes] == [("4", "0", "6"), ("2", "4", "6")]
    assert build(GPU_JOB + "launcher: deepspeed\n", mixed(), tmp_path, prep=Prep()).world_size == 4


def test_the_record_of_a_run_says_that_it_prepares(tmp_path: Path) -> None:
    planned = build(scenes.JOB, two_local(), tmp_path, prep=Prep("ingest"))
    entry = Entry({}, planned.to_dict(), planned.parts, "running", 1.0)
    assert record.parse(entry.to_json()).prep == Prep("ingest")
    trains = replace(entry, plan=build(scenes.JOB, two_local(), tmp_path).to_dict())
    assert record.parse(trains.to_json()).prep is None


def test_what_a_dry_run_prints_says_what_is_prepared(tmp_path: Path) -> None:
    text = "\n".join(views.plan(build(scenes.JOB, two_local(), tmp_path, prep=Prep("text"))))
    assert "prepares the data of 1 source at 1024² for builtin:tiny, text alone" in text
    assert "ranks meet nobody, and claim their work in /mnt/out" in text and "rendezvous" not in text
    assert "1 node is enough" in text


# --- what a container sees

SOURCES = """[
      {folder: /data/pics, captions: /texts},
      {tagged: board},
      {kohya: /kohya/meta_lat.json, folder: /kohya-pics, npz: /npz},
      {table: /tables/2024/*.parquet, folder: /scans},
      {table: /alone.csv, folder: /scans},
      {tars: /tars/part-*.tar}, {tars: /shards}, {tars: /one/set.tar},
      {folder: '/odd [set]/*'},
      {folder: s3://bucket/pics, captions: s3://bucket/texts}, {tars: s3://bucket/x.tar}, {builtin: shapes}]
    cache: {local: /scratch/latents}"""


def seen(sources: str, directory: Path, more: str = "") -> dict[str, bool]:
    """Path -> whether it may only be read, of a job of these sources."""
    job = scenes.job(BOXED.replace("[{builtin: shapes}]", sources) + more, directory)
    return {mount.path: mount.read_only for mount in job.binds}


def test_local_sources_of_all_kinds_are_seen_for_reading_and_remote_ones_are_not(tmp_path: Path) -> None:
    assert seen(SOURCES, tmp_path) == {
        "/mnt/out": False,
        "/scratch/latents": False,
        **dict.fromkeys(("/data/pics", "/texts", f"{tmp_path}/board", "/models/sdxl"), True),
        **dict.fromkeys(("/kohya", "/kohya-pics", "/npz", "/tables/2024", "/scans", "/alone.csv"), True),
        **dict.fromkeys(("/tars", "/shards", "/one", "/odd [set]/*"), True),
    }


def test_what_is_seen_already_is_not_mounted_twice(tmp_path: Path) -> None:
    more = "mounts: ['/data:ro']\n"
    sources = "[{table: /data/t/*.csv}, {folder: /mnt/out/pics}]\n    cache: {local: /mnt/out/kept}"
    assert seen(sources, tmp_path, more) == {"/mnt/out": False, "/data": True, "/models/sdxl": True}


def test_a_source_that_would_hand_over_the_node_is_refused_at_its_setting(tmp_path: Path) -> None:
    for sources, words in (
        ("[{tars: '/*.tar'}]", "data: / in a container would hand the node itself to it"),
        ("[{builtin: shapes}]\n    cache: {local: /etc}", "data.cache.local: /etc would hide"),
    ):
        with pytest.raises(InvalidFile, match=re.escape(words)):
            seen(sources, tmp_path)


@pytest.mark.parametrize(
    ("named", "mounted"),
    [
        ("/data/meta.JSON", "/data"),
        ("/meta.json", "/meta.json"),
        ("/data/a?/b.csv", "/data"),
        ("/data/tars", "/data/tars"),
        ("/data/x.tar", "/data"),
    ],
)
def test_a_file_or_a_pattern_is_seen_with_what_lies_beside_it(named: str, mounted: str) -> None:
    assert mounts.seat(named) == mounted and mounts.covered(named, [Mount(mounted)])


# --- what a person is told


def heard(*events: Event) -> Board:
    """The Board of a run that prepares, on two nodes."""
    made = Board(RUN, ("left", "right"), run_dir=f"/mnt/out/{RUN}", prep=True)
    for event in events:
        made.see(event)
    return made


BEGUN = (*begun(0), log("left", 0, "latents 120 of 4000"))


def test_while_it_goes_on_the_newest_line_is_shown_and_no_checkpoint_is_spoken_of() -> None:
    made = heard(*BEGUN)
    text = "\n".join(line.plain for line in live.lines(made, 100))
    assert "left rank 0: latents 120 of 4000" in text and "preparing" in text and "checkpoint" not in text
    assert status.state(made) == "preparing" and nodes.state(made, "left").words == "preparing"


def test_a_good_end_says_where_it_lies() -> None:
    made = heard(*BEGUN, *ended("ok", 0, 9.0))
    text = "\n".join(outcome.lines(made, judge(made)))
    assert text.startswith(f"✓ run {RUN} finished") and "  prepared in  /mnt/out/.clusterft" in text


def test_a_stop_is_told_as_one_although_a_rank_had_failed_before() -> None:
    failed = told(progress.Failed("oom", "Memory ran out", "Lower it", 3.0), "right", 1)
    made = heard(*BEGUN, failed, *ended("stopped", 0, 9.0))
    verdict = judge(made)
    assert (verdict.end, verdict.summary) == ("stopped", "stopped as asked; what is prepared stays")
    assert f"clusterft resume {RUN}" in "\n".join(outcome.lines(made, verdict))


def test_what_ranks_count_is_no_warning_and_stays_on_the_screen_once() -> None:
    made, teller = heard(*BEGUN), Teller()
    said = []
    for event in (
        told(progress.Notice("latents: 120 of 4000 entries, 3.5 a second.", 1.0)),
        told(progress.Notice("latents: 240 of 4000 entries, 3.6 a second.", 2.0)),
        told(progress.Notice("rank 1 was ended by SIGKILL, and starts again (1 of 3)", 3.0), "right", -1),
    ):
        made.see(event)
        said.append(teller.tell(event, made))
    assert said[0] == "  latents: 120 of 4000 entries, 3.5 a second." and said[1] is None
    assert said[2] == "! rank 1 was ended by SIGKILL, and starts again (1 of 3)"
    made.see(told(progress.Notice("latents: 360 of 4000 entries, 3.7 a second.", 4.0)))
    assert "left rank 0: latents: 360 of 4000" in "\n".join(line.plain for line in live.lines(made, 100))


PAST = {"plan": "a/1", "kind": "latents", "entries": 9, "done": 9, "over": True, "workers": 0, "rate": 0.0}
NOW = {"plan": "b/1", "kind": "latents", "entries": 4000, "done": 2500, "over": False, "workers": 8, "rate": 12.34}
STANDING = {
    "schema": 1,
    "missing": 1500,
    "index": {"pictures": 20000, "digest": "ab"},
    "latents": {"entries": 20000, "missing": 1500, "broken": 2},
    "text": {"entries": 20000, "missing": 0, "broken": 0},
    "work": [{**PAST, "seconds_left": None}, {**NOW, "seconds_left": 121.6}],
    "workers": [{"name": "gpu1-3", "alive": False, "plan": "", "entries": 0, "rate": 0.0}],
}


def test_the_standing_is_a_small_table() -> None:
    text = "\n".join(prepared.lines(STANDING, "/mnt/out"))
    scenes.same_as_golden(text + "\n", scenes.GOLDEN / "ui" / "prepared.txt")


@pytest.mark.parametrize(
    ("missing", "words"),
    [(None, "the sources have not been read yet"), (0, "nothing is missing"), (1, "1 entry is missing")],
)
def test_the_standing_in_words(missing: int | None, words: str) -> None:
    body = {"schema": 1, "missing": missing, "index": None, "work": [], "workers": []}
    assert list(prepared.lines(body, "/mnt/out")) == [f"/mnt/out/.clusterft · {words}"]
