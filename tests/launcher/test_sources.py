"""Proves the look at what a job reads on its nodes: what is missing is told with its line, nothing else is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import scenes
from test_claims import fleet

from clusterft import checks
from clusterft.checks import sources as judging
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import job as layer
from clusterft.facts import sources
from clusterft.facts.sources import Asked, State, Table
from clusterft.findings import Finding
from clusterft.probing import sources as probing
from clusterft.remote.local import LocalRemote
from clusterft.spec import JobSpec

TWO = scenes.cluster("a slots=1\nb slots=1\n")
NOBODY = 65534


def state(kind: Any, path: Path | str, *ends: str, user: int | None = None) -> State:
    """What this machine's own shell says of one path."""
    asked = [Asked((), kind, str(path), ends)]
    done = subprocess.run(sources.argv(asked), capture_output=True, text=True, user=user, check=True)
    found = sources.parse(done.stdout, asked)
    assert found is not None and done.stderr == "", done
    return found[0]


def job(tmp_path: Path, source: str, more: str = "") -> JobSpec:
    text = scenes.JOB.replace("{builtin: shapes}", source).replace("/mnt/out", str(tmp_path / "out"))
    return scenes.job(text.replace("    sources:", f"{more}    sources:"), tmp_path)


def judged(wanted: JobSpec, **remotes: LocalRemote) -> tuple[Finding, ...]:
    """With all nodes being this machine."""
    nodes = fleet(**remotes or {"a": LocalRemote(), "b": LocalRemote()})
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b"))
    named = probing.named(nodes, wanted, "a")
    return checks.judge_sources(wanted, survey, probing.look(nodes, wanted), named)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture at some depth, in capitals, and a name that a shell would take apart."""
    folder = tmp_path / "the 'pictures' $(of) *"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "A.PNG").touch()
    (folder / "notes.txt").touch()
    return folder


def test_what_is_there_is_seen(pictures: Path) -> None:
    assert state("folder", pictures, ".jpg", ".png") == state("folder", pictures) == "there"
    assert state("any", pictures / "notes.txt") == state("files", pictures / "notes.txt", ".csv") == "there"
    assert state("files", f"{pictures}/*.t?t", ".csv") == state("files", pictures, ".txt") == "there"


def test_what_is_missing_is_told_apart(pictures: Path, tmp_path: Path) -> None:
    assert state("any", tmp_path / "no" / "such") == state("folder", tmp_path / "no", ".png") == "absent"
    assert state("folder", pictures, ".webp") == state("files", f"{pictures}/*.csv", ".csv") == "empty"
    assert state("folder", pictures / "notes.txt") == "no-folder"
    assert state("files", f"{tmp_path}/no/*.tar", ".tar") == "empty"


def test_a_pattern_over_all_depths_is_left_to_the_trainer(pictures: Path) -> None:
    assert state("files", f"{pictures}/**/*.tar", ".tar") == "late"


@pytest.mark.skipif(os.getuid() != 0, reason="root alone may look as somebody else")
def test_what_may_not_be_looked_into_is_not_called_missing(tmp_path: Path) -> None:
    for part in (tmp_path, *tmp_path.parents):
        if part != Path("/"):
            part.chmod(part.stat().st_mode | 0o055)
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o700)
    for kind, path in (("any", shut / "model"), ("folder", shut), ("files", f"{shut}/*.csv")):
        assert state(kind, path, ".csv", user=NOBODY) == "closed"
    (tmp_path / "link").symlink_to(shut / "model")
    assert state("any", tmp_path / "link", user=NOBODY) == "closed"
    files = [str(shut / "a.png"), str(tmp_path / "b.png")]
    done = subprocess.run(sources.missing_argv(files), capture_output=True, text=True, user=NOBODY, check=True)
    assert sources.missing(done.stdout, files) == (files[1],)


def test_an_answer_that_is_cut_off_is_none() -> None:
    asked = [Asked((), "any", "/a"), Asked((), "any", "/b")]
    assert sources.parse("Welcome!\nthere\nabsent\n", asked) == ("there", "absent")
    assert sources.parse("there\n", asked) is None
    assert sources.missing("missing 0\n", ["/a"]) is None


def test_a_folder_that_is_missing_blocks_with_its_line_in_the_job(tmp_path: Path) -> None:
    wanted = job(tmp_path, "{folder: out/gone}")
    (told,) = judged(wanted)
    assert (told.id, told.status, told.nodes) == ("data.missing", "fail", ("a", "b"))
    assert told.summary == f"{tmp_path}/out/gone, which the job reads, is not there"
    line = 1 + (tmp_path / "job.yaml").read_text().splitlines().index("    sources: [{folder: out/gone}]")
    assert told.evidence == f"{tmp_path}/job.yaml:{line}:24 train.data.sources[0].folder"
    assert told.fix == ("put it there, or name another path at that line",)


def test_doctor_says_the_same(tmp_path: Path) -> None:
    wanted, nodes = job(tmp_path, "{folder: gone}"), fleet(a=LocalRemote())
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b"))
    asked = Wanted(device="cpu", contained=False, job=wanted)
    (told,) = layer.missing(Examination(asked, survey, sources=probing.look(nodes, wanted)))
    assert (told.id, told.nodes) == ("data.missing", ("a",))
    assert list(layer.missing(Examination(Wanted(), survey))) == []


def test_what_lies_outside_the_shared_dir_can_be_pushed(tmp_path: Path) -> None:
    (told,) = judged(job(tmp_path, "{folder: gone}"))
    assert told.fix[0] == f"clusterft push {tmp_path}/gone   where this machine has all of it"


def test_a_folder_without_pictures_blocks(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    (told,) = judged(job(tmp_path, "{folder: texts}"))
    assert told.summary.startswith("there is no file in") and ".png" in told.evidence


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        ("{table: gone.csv}", "table"),
        ("{kohya: gone.json}", "kohya"),
        ("{tars: gone}", "tars"),
        ("{tagged: gone}", "tagged"),
    ],
)
def test_every_kind_of_source_is_looked_for(source: str, setting: str, tmp_path: Path) -> None:
    (told,) = judged(job(tmp_path, source))
    assert told.status == "fail" and told.evidence.endswith(f"train.data.sources[0].{setting}")


def test_a_model_that_is_missing_blocks(tmp_path: Path) -> None:
    text = scenes.JOB.replace("builtin:tiny", "/no/such.safetensors").replace("/mnt/out", str(tmp_path))
    (told,) = judged(scenes.job(text, tmp_path))
    assert told.evidence.endswith("train.model")


def test_what_is_drawn_or_lies_in_a_bucket_is_not_asked_for(tmp_path: Path) -> None:
    for source in ("{builtin: shapes}", "{folder: 's3://b/pictures'}", "{table: 's3://b/t.csv'}"):
        assert judging.asked(job(tmp_path, source)) == () and judging.tables(job(tmp_path, source)) == ()


def test_a_node_that_did_not_answer_is_not_judged(tmp_path: Path) -> None:
    (told,) = judged(job(tmp_path, "{folder: gone}"), b=LocalRemote())
    assert told.nodes == ("b",)


def test_files_that_a_table_names_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "p0.png").touch()
    rows = [f'"pics\\p{number}.png","a, b"' for number in range(5)]
    (tmp_path / "t.csv").write_text("\n".join(["filename,caption", *rows]))
    (told,) = judged(job(tmp_path, "{table: t.csv}"))
    assert told.summary == f"4 of the first 5 files that {tmp_path}/t.csv names are not there"
    assert "and 1 more" in told.evidence and f"{tmp_path}/pics/p1.png" in told.evidence
    assert told.fix[1].endswith("under data:   problems: {broken: skip}") and "job.yaml:" in told.fix[1]


def test_single_pictures_that_may_be_left_out_block_nothing(tmp_path: Path) -> None:
    (tmp_path / "p0.png").touch()
    table = tmp_path / "t.jsonl"
    table.write_text('{"filename": "p0.png"}\nnonsense\n{"filename": "p1.png"}\n')
    skips = "    problems: {broken: skip}\n"
    assert judged(job(tmp_path, "{table: t.jsonl}", skips)) == ()
    (tmp_path / "p0.png").unlink()
    (told,) = judged(job(tmp_path, "{table: t.jsonl}", skips))
    assert told.status == "warn" and told.summary.startswith("2 of the first 2 files")


def test_a_table_is_read_as_the_trainer_reads_it() -> None:
    near = Table((), "/data/meta/t.csv", "filename", None)
    assert sources.named(near, "filename\na.png\n/b.png\n\n./c.png\n") == (
        "/data/meta/a.png",
        "/b.png",
        "/data/meta/./c.png",
    )
    apart = Table((), "/data/meta/t.csv", "file", "/pics")
    assert sources.named(apart, '\ufefffile,caption\n"a\nb.png",x\n') == ("/pics/a\nb.png",)
    assert sources.named(near, "other\na.png\n") == () == sources.named(near, "")
    long = "filename\n" + "".join(f"{number:08d}.png\n" for number in range(6000))
    cut = long.encode()[: sources.HEAD].decode()
    assert len(sources.named(near, cut)) == sources.NAMED and len(long) > sources.HEAD
