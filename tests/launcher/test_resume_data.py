"""`clusterft resume --new-data`: a run leaves the pictures that it began with, and they stay beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_claims import fleet, located

from clusterft.cli import resume
from clusterft.errors import Blocked
from clusterft.remote.local import LocalRemote


def test_what_a_run_began_with_is_moved_aside(tmp_path: Path) -> None:
    found = located(tmp_path, fleet(n1=LocalRemote()))
    resume._leave_data(found, "n1", 3)  # an older run keeps nothing
    assert not list(tmp_path.iterdir())
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("{}")
    resume._leave_data(found, "n1", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["index.left-3"]
    assert (tmp_path / "index.left-3" / "index.json").is_file()


def test_where_that_does_not_work_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index.left-3").mkdir()
    (tmp_path / "index.left-3" / "index.json").write_text("{}")
    with pytest.raises(Blocked, match="cannot be given other pictures"):
        resume._leave_data(located(tmp_path, fleet(n1=LocalRemote())), "n1", 3)
    assert (tmp_path / "index").is_dir()
