"""Every verb that is told no hostfile means the same cluster: that of the last `up`, else of the last run."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import clusterft, workplace  # noqa: F401 - a fixture

from clusterft.apply import record
from clusterft.apply.record import Note

SAID = {
    ("doctor", "--quick"): "cluster hostfile · 2 nodes",
    ("ssh", "left", "--", "echo", "within"): "within",
    ("open",): "cluster hostfile: no image yet",
    ("push", "job.yaml"): "cluster hostfile was not brought up from here",
    ("status",): "cluster hostfile · nothing runs",
    ("train", "job.yaml", "--dry-run"): "2 ranks on 2 nodes of cluster hostfile",
    ("down",): "nothing of cluster hostfile was left",
}


@pytest.fixture
def after_a_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A controller that has started a run with --hosts, and never an `up`."""
    monkeypatch.setenv("CLUSTERFT_HOME", str(workplace / "home"))
    (workplace / "job.yaml").write_text((workplace / "job.yaml").read_text().replace("hosts: hostfile\n", ""))
    record.save_note(Note("moon-1", "hostfile", str(workplace / "hostfile"), str(workplace / "out" / "moon-1")))
    return workplace


@pytest.mark.parametrize("words", SAID, ids=lambda words: words[0])
def test_without_a_hostfile_the_cluster_of_the_last_run_is_meant(
    words: tuple[str, ...], after_a_run: Path
) -> None:
    done = clusterft(after_a_run, *words)
    assert SAID[words] in done.stdout + done.stderr, done


@pytest.mark.parametrize("words", SAID, ids=lambda words: words[0])
def test_where_there_is_none_it_is_said_how_to_name_one(words: tuple[str, ...], workplace: Path) -> None:  # noqa: F811
    (workplace / "job.yaml").write_text((workplace / "job.yaml").read_text().replace("hosts: hostfile\n", ""))
    done = clusterft(workplace, *words)
    assert done.returncode == 2 and "--hosts FILE" in done.stderr, done
