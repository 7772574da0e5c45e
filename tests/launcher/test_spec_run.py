"""Proves how the keys of a job are read that say where and how long it runs: times, mounts, scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft.errors import InvalidFile
from clusterft.spec import Mount, amounts, mounts


def test_times_and_sizes_are_written_as_people_do(tmp_path: Path) -> None:
    head = scenes.JOB.replace("runtime: process\n", "").replace("{device: cpu}", "{device: cpu, shm: 1.5 GiB}")
    more = "hang_after: 90 s\nfirst_step_after: 1.5h\npatience: 45\nstagger_seconds: 2.5\nrestarts: 0\n"
    job = scenes.job(head + more, tmp_path)
    assert (job.hang_after, job.first_step_after, job.patience) == (90.0, 5400.0, 45.0)
    assert (job.stagger_seconds, job.restarts, job.resources.shm) == (2.5, 0, 3 * 2**29)
    assert job.runtime == "docker" and scenes.job(scenes.JOB, tmp_path).hang_after == 600.0


@given(st.integers(1, 10**7))
def test_a_time_is_told_as_it_could_be_written(value: int) -> None:
    assert amounts.seconds(amounts.told(float(value))) == value


def test_a_container_sees_shared_mounts_and_what_is_read_where_it_lies(tmp_path: Path) -> None:
    text = scenes.JOB.replace("runtime: process\n", "mounts: [/scratch, /big/models:ro]\n")
    text = text.replace("builtin:tiny", "/big/models/base.safetensors")
    folders = ("/data/b", "/data/b/c", "/mnt/out/pictures", "/data/bc", "//data/b")
    text = text.replace("{builtin: shapes}", ", ".join(f"{{folder: {folder}}}" for folder in folders))
    job = scenes.job(text + "  vae: /vae.safetensors\n", tmp_path)
    assert [str(mount) for mount in job.binds] == [
        "/mnt/out",
        "/scratch",
        "/big/models:ro",
        "/data/b:ro",
        "/data/bc:ro",
        "/vae.safetensors:ro",
    ]


paths = st.lists(st.sampled_from(["", ".", "a", "b", "run", "var", "docker.sock", "etc", "clusterft"]), max_size=4)


@given(paths, st.sampled_from(["", ":ro"]))
def test_no_way_of_writing_it_mounts_what_is_refused(parts: list[str], end: str) -> None:
    text = "/" + "/".join(parts) + end
    plain = "/" + "/".join(part for part in parts if part not in ("", "."))
    try:
        mount = mounts.parse(text)
    except ValueError:
        assert mounts.refusal(plain)
        return
    assert mount == Mount(plain, read_only=bool(end)) and not mounts.refusal(plain)
    assert mounts.parse(str(mount)) == mount


def test_a_script_is_found_beside_the_job_or_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "inner" / "go.py").touch()
    head = scenes.JOB[: scenes.JOB.index("train:")]
    inner = tmp_path / "code" / "inner"
    for words, folder in (
        ("path: code/inner/go.py", inner),
        ("path: code/inner/go.py, code: ./code, workdir: inner/.", inner.parent),
        ("path: inner/go.py, code: code/", inner.parent),
    ):
        script = scenes.job(f"{head}script: {{{words}}}\n", tmp_path).script
        assert script is not None and script.folder == folder and folder / script.inside == inner / "go.py"
        assert script.workdir == ("inner" if "workdir" in words else ".")


def test_a_home_is_not_shipped_with_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "go.py").touch()
    head = scenes.JOB[: scenes.JOB.index("train:")]
    for words in ("path: go.py", "path: ~/go.py, code: '~'"):
        with pytest.raises(InvalidFile, match="would be shipped"):
            scenes.job(f"{head}script: {{{words}}}\n", tmp_path)
