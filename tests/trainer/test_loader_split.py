"""Proves that which pictures are held out follows from their names and the seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from clusterft_trainer.config import HeldOut  # noqa: E402
from clusterft_trainer.corpus import index  # noqa: E402
from clusterft_trainer.corpus.index import Index, Row  # noqa: E402
from clusterft_trainer.errors import DataError  # noqa: E402
from clusterft_trainer.held_out import name_numbers, split  # noqa: E402

pytestmark = pytest.mark.trainer
SETTINGS = HeldOut.model_validate({"every_steps": 1, "share": 0.1, "most": 10_000})


def named(folder: Path, names: list[str]) -> Index:
    rows = [Row(0, n, f"/p/{n}", -1, 1, b"", 64, 64, "", None, "") for n in names]
    return index.write(folder, rows)


def chosen(found: Index, seed: int = 1) -> set[str]:
    made = split(found, SETTINGS, seed)
    assert made is not None
    assert sorted([*made.kept, *made.held]) == list(range(len(found)))
    assert made.kept.tolist() == sorted(made.kept) and made.held.tolist() == sorted(made.held)
    return {found.row(int(i)).name for i in made.held}


def test_the_choice_follows_names_and_seed_and_little_changes_with_more_pictures(tmp_path: Path) -> None:
    names = [f"{n // 7}/{n:05d}.png" for n in range(300)]
    first = chosen(named(tmp_path / "a", names))
    assert len(first) == 30
    assert first == chosen(named(tmp_path / "b", names[::-1]))
    assert first != chosen(named(tmp_path / "c", names), seed=2)
    # ten pictures more, among the others: those that were held out stay, but for one or two
    more = chosen(named(tmp_path / "d", [*names, *(f"{n}/new.png" for n in range(10))]))
    assert len(first - more) <= 2 and len(more) == 31


@pytest.mark.parametrize("seed", range(3))
def test_names_that_hardly_differ_are_held_out_evenly(tmp_path: Path, seed: int) -> None:
    held = chosen(named(tmp_path / "a", [f"{n:06d}.webp" for n in range(5000)]), seed)
    thousands = np.bincount([int(name[:6]) // 500 for name in held], minlength=10)
    # 50 of each 500, standard deviation 6.4
    assert thousands.min() > 24 and thousands.max() < 76


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1), st.integers(0, 9))
def test_a_names_number_does_not_ask_for_its_neighbours(names: list[str], seed: int) -> None:
    whole = name_numbers(pa.array(names, pa.string()), seed).tolist()
    alone = [name_numbers(pa.array([name], pa.string()), seed)[0] for name in names]
    assert whole == alone
    assert name_numbers(pa.array(["x", "y", *names], pa.string())[2:], seed).tolist() == whole
    assert len(set(whole)) == len(set(names))


def test_nothing_is_held_out_unless_asked_for_and_never_everything(tmp_path: Path) -> None:
    found = named(tmp_path / "a", ["a", "b"])
    assert split(found, None, 0) is None
    with pytest.raises(DataError, match="held_out would take 1 of 1 pictures"):
        split(named(tmp_path / "b", ["a"]), SETTINGS, 0)
