"""An index that a run or a worker has begun with stays, whatever is published after it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import ranks
from corpora import indexed, pairs, picture, put

from clusterft_trainer import build, progress
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.config.sources import FolderSource
from clusterft_trainer.corpus import keeping
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.dist import Place

pytestmark = pytest.mark.trainer


def captions(index: Index) -> list[str]:
    """All of them."""
    return [index.caption(i) for i in range(len(index))]


def publish(tmp_path: Path, times: int) -> Index:
    """So many generations, each with a picture more."""
    for _ in range(times):
        number = len(list((tmp_path / "in").rglob("*.png")))
        pairs(tmp_path / "in", 1, start=number)
        index = indexed(tmp_path / "out", FolderSource(folder=str(tmp_path / "in")))
    return index


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("links", [True, False])
def test_a_run_keeps_its_generation_beyond_those_that_are_kept_for_all(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = publish(tmp_path, 3)
    run = tmp_path / "run"
    run.mkdir()
    if not links:
        refuse_links(monkeypatch)
    kept = keeping.keep(index, run, "key")
    wanted = captions(index)
    later = publish(tmp_path, 3)
    assert not index.folder.exists() and len(later) == 6
    found = keeping.kept(run)
    assert found is not None and (found.key, found.index.digest) == ("key", index.digest)
    assert captions(found.index) == wanted and found.index.sizes().tolist() == kept.index.sizes().tolist()
    assert keeping.keep(later, run, "another").key == "key", "what is kept stays"
    assert sorted(path.name for path in run.iterdir()) == ["index"]


def test_a_generation_that_goes_while_it_is_kept_is_followed_by_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = publish(tmp_path, 1)
    real, calls = os.link, []

    def link(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            publish(tmp_path, 3)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "run").mkdir()
    assert len(keeping.keep(index, tmp_path / "run", "key").index) == 4


def test_a_worker_holds_what_it_works_with_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = publish(tmp_path, 1)
    with keeping.held(index, tmp_path / "held" / "one") as held:
        publish(tmp_path, 3)
        assert not index.folder.exists() and captions(held) == ["tag0, cat"]
    assert list((tmp_path / "held").iterdir()) == []
    index = publish(tmp_path, 1)
    refuse_links(monkeypatch)
    with keeping.held(index, tmp_path / "held" / "one") as held:
        assert held is index, "a copy of some gigabytes for each worker would be too much"


def test_before_its_first_attempt_a_run_keeps_nothing(tmp_path: Path) -> None:
    assert keeping.kept(tmp_path) is None and keeping.left(tmp_path) == ()


def test_other_settings_with_the_same_pictures_are_known_at_the_next_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path / "in", 3)
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    place = Place(0, 1, 0, 1, "cpu")
    monkeypatch.setenv("CLUSTERFT_FIRST_ATTEMPT", "0")

    def settled(attempt: int, **problems: str) -> tuple[Path, str]:
        monkeypatch.setenv("CLUSTERFT_ATTEMPT", str(attempt))
        data = {"sources": [{"folder": str(tmp_path / "in")}], "resolution": 64, "problems": problems}
        return build._settled(TrainConfig.model_validate(ranks.settings(data=data)), place, run, ())

    (run / "checkpoints" / "step-00000002").rename(run / "nothing yet")
    began = settled(0)
    (run / "nothing yet").rename(run / "checkpoints" / "step-00000002")
    old = keeping.kept(run)
    assert settled(0, duplicate="skip") == began, "started by hand with other settings"
    new = keeping.kept(run)
    assert old and new and new.key != old.key and new.index.digest == old.index.digest
    shutil.rmtree(tmp_path / "in")
    assert settled(1, duplicate="skip") == began, "a restart reads no sources"
    assert sorted(path.name for path in (run / "index").iterdir()) == sorted(
        ["index.json", "kept.json", new.index.head.generation]
    )


def losses(tmp_path: Path, name: str, steps: int, **environment: str) -> tuple[dict[int, float], str]:
    """Of one attempt, and what it told."""
    body = ranks.settings(
        data={"sources": [{"folder": str(tmp_path / "in")}], "resolution": 64},
        engine={"kind": "ddp"}, learn={"unet": {"rate": 1e-3}}, steps=steps,
    )  # fmt: skip
    with ranks.gang(tmp_path / name) as gang:
        ranks.start_alone(gang, tmp_path, body, **environment)
        assert gang.wait() == [0], gang.text()[-3000:]
        told = " ".join(r.text for r in gang.records() if isinstance(r, progress.Notice))
        return gang.losses(), told


@pytest.mark.long
def test_an_attempt_goes_on_with_the_pictures_that_the_run_began_with(tmp_path: Path) -> None:
    pairs(tmp_path / "in", 10)
    whole, _ = losses(tmp_path, "whole", 8)
    shutil.rmtree(tmp_path / "run")
    first, told = losses(tmp_path, "first", 4)
    assert "changed" not in told
    put(tmp_path / "in" / "new.png", picture(64, 64, seed=99))
    put(tmp_path / "in" / "new.txt", "a picture more")
    put(tmp_path / "in" / "0000.txt", "another caption")
    restarted, told = losses(tmp_path, "second", 6, CLUSTERFT_ATTEMPT="1", CLUSTERFT_FIRST_ATTEMPT="0")
    assert "since this run began" not in told, "a restart does not look at the sources"
    by_hand, told = losses(tmp_path, "third", 8, CLUSTERFT_ATTEMPT="2", CLUSTERFT_FIRST_ATTEMPT="2")
    assert "changed since this run began: 10 pictures then, 11 now" in told and "--new-data" in told
    assert first | restarted | by_hand == whole
    (tmp_path / "run" / "index").rename(tmp_path / "run" / "index.left-3")
    with_new, told = losses(tmp_path, "fourth", 10)
    assert "Other pictures from now on, from the beginning of epoch" in told and sorted(with_new) == [9, 10]
    assert len(Index.open(tmp_path / "run" / "index")) == 11
    again, told = losses(tmp_path, "fifth", 12)
    assert sorted(again) == [11, 12] and "Other pictures" not in told and "since this run began" not in told


@pytest.mark.long
def test_a_run_that_never_trained_takes_what_is_there_when_it_is_started_again(tmp_path: Path) -> None:
    pairs(tmp_path / "in", 5)
    body = ranks.settings(
        data={"sources": [{"folder": str(tmp_path / "in")}], "resolution": 64, "cache": {}}, engine={"kind": "ddp"}
    )
    for count, name in ((5, "one"), (6, "two")):
        pairs(tmp_path / "in", count)
        with ranks.gang(tmp_path / name) as gang:
            ranks.start_alone(gang, tmp_path, body)
            assert gang.wait() != [0]
            assert f"{count} of {count} pictures have no latents" in gang.text()
        assert len(Index.open(tmp_path / "run" / "index")) == count
