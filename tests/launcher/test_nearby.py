"""Proves the look at the folder in which a job keeps copies of the cache on each node, and what is made of it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft import checks
from clusterft.facts import nearby
from clusterft.facts.nearby import Nearby
from clusterft.facts.storage import Mount
from clusterft.findings import Finding

GIB = 2**30
TWO = scenes.cluster("a slots=1\nb slots=1\n")
JOB = scenes.JOB.replace(
    "sources: [{builtin: shapes}]", "sources: [{builtin: shapes}]\n    cache: {local: /scratch}"
)
CONTAINED = JOB.replace("runtime: process", "runtime: docker")
WELL = Nearby(True, "/scratch", True, True, "drwxr-xr-x", (1000, 1000), "/", 500 * GIB, 0)
NEW = replace(WELL, there=False, above="/", owner=(0, 0), writable=False)
OWNER = (1000, 1000)


def judged(
    tmp_path: Path, text: str, one: Nearby | None, mount: Mount | None = None, **changes: Any
) -> tuple[Finding, ...]:
    job = scenes.job(text, tmp_path)
    found = {"mounts": (mount,) if mount else (), **changes}
    survey = scenes.survey(TWO, scenes.facts("a", **found), scenes.facts("b", **found))
    return checks.judge_nearby(job, survey, {"a": WELL, "b": one}, OWNER if job.runtime == "docker" else None)


def only(found: tuple[Finding, ...], status: str) -> Finding:
    (one,) = found
    assert (one.id, one.status, one.nodes) == ("data.local-cache", status, ("b",))
    assert status == "unknown" or (one.fix and one.cause and one.evidence and one.blast_radius)
    return one


def test_a_folder_that_is_well_is_none_of_our_business(tmp_path: Path) -> None:
    assert judged(tmp_path, JOB, WELL) == judged(tmp_path, CONTAINED, WELL) == ()
    assert judged(tmp_path, scenes.JOB, None) == (), "a job that keeps no copies"


def test_what_is_not_there_is_made_by_a_process_that_may_and_by_no_engine(tmp_path: Path) -> None:
    assert judged(tmp_path, JOB, replace(NEW, writable=True)) == ()
    told = only(judged(tmp_path, CONTAINED, replace(NEW, writable=True)), "fail")
    assert "it is not there" in told.summary
    assert told.fix == ("sudo mkdir -p /scratch && sudo chown 1000:1000 /scratch",) and told.needs_root
    assert "1000:1000" not in only(judged(tmp_path, JOB, NEW), "fail").fix[0], "its user is not known to us"


def test_in_a_container_a_folder_below_a_mount_is_made_by_the_run(tmp_path: Path) -> None:
    text = CONTAINED.replace("/scratch", "/scratch/copies").replace("train:", "mounts: [/scratch]\ntrain:")
    assert judged(tmp_path, text, replace(NEW, above="/scratch", owner=OWNER)) == ()
    assert "may not write" in only(judged(tmp_path, text, replace(NEW, above="/scratch")), "fail").summary
    sealed = text.replace("[/scratch]", "['/scratch:ro']")
    (told,) = judged(tmp_path, sealed, replace(NEW, above="/scratch", owner=OWNER))
    assert told.status == "fail" and told.nodes == ("a", "b") and "read-only" in told.summary
    inner = text.replace("[/scratch]", "['/scratch:ro', /scratch/copies]")
    assert judged(tmp_path, inner, replace(WELL, above="/scratch/copies", owner=OWNER)) == ()


@pytest.mark.parametrize(
    ("mode", "owner", "may"),
    [
        ("drwxr-xr-x", (1000, 1), True),
        ("dr-xrwxrwx", (1000, 1000), False),
        ("drwxr-xr-x", (0, 1000), False),
        ("drwxrws---", (0, 1000), True),
        ("drwxrwxrwt", (0, 0), True),
        ("drwx------", (0, 0), False),
        ("drw-rw-rw-", (1000, 1000), False),
    ],
)
def test_who_may_write_in_a_container_is_said_by_the_mode(
    tmp_path: Path, mode: str, owner: tuple[int, int], may: bool
) -> None:
    one = replace(WELL, mode=mode, owner=owner)
    assert (judged(tmp_path, CONTAINED, one) == ()) == may
    assert one.open_to(0, 0)


def test_a_file_of_that_name_is_in_the_way(tmp_path: Path) -> None:
    assert "no directory" in only(judged(tmp_path, JOB, replace(WELL, directory=False)), "fail").summary


def test_room_counts_with_what_is_in_it_already(tmp_path: Path) -> None:
    full = replace(WELL, free_bytes=60 * GIB, used_bytes=150 * GIB)
    assert judged(tmp_path, JOB, full) == ()
    told = only(judged(tmp_path, JOB, replace(full, used_bytes=40 * GIB)), "warn")
    assert "215 GB" in told.summary and told.fix[0] == "train.data.cache.local_gigabytes: 90"
    assert "64 GB free on b:/, 43 GB in it already" in told.evidence


def test_a_folder_on_a_share_is_told(tmp_path: Path) -> None:
    there = Mount("store:/export", "/scratch", "nfs4", "rw")
    told = only(judged(tmp_path, JOB, replace(WELL, mounted_on="/scratch"), there), "warn")
    assert "no disk of the node's own" in told.summary and "store:/export on /scratch type nfs4" in told.evidence
    assert judged(tmp_path, JOB, replace(WELL, mounted_on="/scratch"), replace(there, fstype="xfs")) == ()
    inside = JOB.replace("/scratch", "/mnt/out/near")
    job = scenes.job(inside, tmp_path)
    found = checks.judge_nearby(job, scenes.survey(TWO, scenes.facts("b")), {"b": WELL}, None)
    assert only(found, "warn").fix[0].startswith("data.cache.local: a folder on a disk of the node")


def test_no_answer_is_not_taken_for_a_good_one(tmp_path: Path) -> None:
    only(judged(tmp_path, JOB, None), "unknown")
    assert nearby.parse("") is None and nearby.parse("there yes\nabove /\n") is None


def asked(path: Path) -> Nearby:
    said = subprocess.run(nearby.argv(str(path)), capture_output=True, text=True, check=True, env=os.environ)
    found = nearby.parse(said.stdout)
    assert found is not None, said
    return found


def test_a_real_folder_says_all_of_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    missing = asked(tmp_path / "a b" / "c")
    assert (missing.there, missing.above, missing.directory) == (False, str(tmp_path), True)
    assert (missing.mode, missing.owner) == ("drwxr-x---", (os.getuid(), os.getgid()))
    assert missing.free_bytes > 0 and missing.used_bytes == 0 and missing.mounted_on.startswith("/")
    (tmp_path / "a b" / "c").mkdir(parents=True)
    (tmp_path / "a b" / "c" / "shard").write_bytes(b"1" * 2**20)
    there = asked(tmp_path / "a b" / "c")
    assert there.there and there.writable and there.above.endswith("/a b/c")
    assert 2**20 <= there.used_bytes < 2**20 + 2**16
    assert not asked(tmp_path / "a b" / "c" / "shard").directory
