"""What killed ingests leave: cleared when it is old and nobody writes it, left alone otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import indexed, pairs, put

from clusterft_trainer.config.sources import FolderSource
from clusterft_trainer.corpus import drafts
from clusterft_trainer.corpus.index import Writer

pytestmark = pytest.mark.trainer
_WRITER = """
import sys, time
from pathlib import Path
from clusterft_trainer.corpus.index import Writer
writer = Writer(Path(sys.argv[1]))
print(writer.draft.name, flush=True)
time.sleep(60)
"""


def age(path: Path, seconds: float) -> None:
    """Make a draft and all in it older."""
    for one in [*path.rglob("*"), path]:
        then = one.stat().st_mtime - seconds
        os.utime(one, (then, then))


def test_drafts_of_a_killed_ingest_go_with_the_next_one_and_those_of_a_living_stay(tmp_path: Path) -> None:
    source, home = FolderSource(folder=str(pairs(tmp_path / "in", 3))), tmp_path / "out"
    folder = indexed(home, source).folder.parent
    argv = [sys.executable, "-c", _WRITER, str(folder)]
    writers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        dead, young, living = (folder / str(one.stdout and one.stdout.readline().strip()) for one in writers)
        for writer in writers[:2]:
            writer.kill()
            writer.wait()
        for draft in (dead, living):
            age(draft, drafts.OLD + 5)
        age(young, drafts.OLD - 60)
        other = put(home / "other-rules" / ".new-report.json-1", "{")
        age(other, drafts.OLD + 5)
        indexed(home, source)
        assert not dead.exists() and not other.exists()
        assert living.exists(), "its writer holds it"
        assert young.exists(), "where locks are not seen, age alone tells"
        writers[2].kill()
        writers[2].wait()
        age(living, 0)
        assert drafts.clear(home) == 1 and not living.exists() and young.exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
    assert not list(home.glob("*/.new-clock-*"))


def test_a_draft_is_held_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "home" / "one")
    seen: list[int] = []
    real = Writer._named

    def named(self: Writer) -> str:
        age(self.draft, drafts.OLD + 5)
        seen.append(drafts.clear(tmp_path / "home"))
        return real(self)

    monkeypatch.setattr(Writer, "_named", named)
    assert len(writer.publish([])) == 0
    assert seen == [0]


def test_where_no_file_can_be_made_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(put(tmp_path / "a" / ".new-x", ""), drafts.OLD + 5)

    def refused(self: Path, *_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "touch", refused)
    assert drafts.clear(tmp_path) == 0
