"""The fault suite's account can fail: it finds a sample lost or computed twice, and a rank that is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.ledger import Note, assert_each_once

ROOT = Path(__file__).resolve().parents[2]


def note(step: int, rank: int, *seen: int, attempt: int = 0, epoch: int = 0, world: int = 2) -> Note:
    return Note("r", attempt, rank, world, 1, step, epoch, seen, 0.0)


WHOLE = [note(1, 0, 0), note(1, 1, 1), note(2, 0, 2), note(2, 1, 3)]


def test_each_once_passes() -> None:
    assert_each_once(WHOLE, images=4, epochs=1)


def test_a_step_that_was_computed_again_counts_once() -> None:
    lost = [*WHOLE[:2], note(2, 0, 3), note(2, 1, 2), note(3, 0, 0, epoch=1)]
    again = [note(2, 0, 2, attempt=1), note(2, 1, 3, attempt=1), note(3, 0, 0, 1, attempt=1, epoch=1)]
    more = [note(3, 1, 2, 3, attempt=1, epoch=1)]
    assert_each_once([*lost, *again, *more], images=4, epochs=2)


def test_fewer_ranks_may_finish_an_epoch() -> None:
    assert_each_once([*WHOLE[:2], note(2, 0, 2, 3, attempt=1, world=1)], images=4, epochs=1)


@pytest.mark.parametrize(
    ("notes", "epochs", "words"),
    [
        ([*WHOLE[:3], note(2, 1)], 1, "sample -> how often: {3: 0}"),
        ([*WHOLE[:3], note(2, 1, 2)], 1, "sample -> how often: {2: 2, 3: 0}"),
        ([*WHOLE[:3], note(2, 1, 3, 4)], 1, "sample -> how often: {4: 1}"),
        (WHOLE, 2, "epoch 1: sample -> how often: {0: 0, 1: 0, 2: 0, 3: 0}"),
        (WHOLE[:3], 1, "step 2 was computed by ranks"),
        ([*WHOLE[:2], note(3, 0, 2), note(3, 1, 3)], 1, "steps are missing"),
        ([note(1, 0, 0, attempt=1), note(1, 1, 1, attempt=1), *WHOLE[2:]], 1, "step 2 is of attempt 0"),
    ],
)
def test_what_is_wrong_is_said(notes: list[Note], epochs: int, words: str) -> None:
    with pytest.raises(AssertionError) as told:
        assert_each_once(notes, images=4, epochs=epochs)
    assert words in str(told.value)


@pytest.fixture
def table() -> Any:
    spec = importlib.util.spec_from_file_location("fault_table", ROOT / "tools" / "fault_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_newest_word_of_each_test(table: Any, tmp_path: Path) -> None:
    account, page = tmp_path / "faults.jsonl", tmp_path / "FAULTS.md"
    assert not table.write(account, page) and not page.exists()
    line = {"test": "a", "fault": "a rank dies", "passed": False, "said": "", "seconds": 3, "commit": "c1"}
    later = line | {"passed": True, "said": "well | done", "commit": "c2+"}
    account.write_text(
        "".join(json.dumps(one) + "\n" for one in (line, later, {**line, "test": "b", "fault": "x"}))
    )
    assert table.write(account, page)
    rows = page.read_text().splitlines()[-2:]
    assert rows == ["| a rank dies | well \\| done | 3 | c2+ |", "| x | **FAILED** | 3 | c1 |"]


def test_the_page_tells_every_round_of_blind_faults(table: Any, tmp_path: Path) -> None:
    account, page = tmp_path / "faults.jsonl", tmp_path / "FAULTS.md"
    line = {"test": "e2e/test_doctor_x.py", "fault": "x", "passed": True, "said": "", "seconds": 3, "commit": "c1"}
    account.write_text(json.dumps(line) + "\n")
    assert table.write(account, page)
    told = page.read_text()
    rounds = re.findall(r"\d+ of 10(?: hit)?; \d near, \d missed\.", table.BLIND.read_text())
    assert len(rounds) >= 3 and all(one in told for one in rounds)


def test_a_page_of_blind_faults_without_a_rate_is_refused(table: Any) -> None:
    assert (
        table.blind_rates("**One: 1 of 2.** x\n\n**Bold** 3 of 4\n**Two: 3 of 4.**\n")
        == "One: 1 of 2. Two: 3 of 4."
    )
    with pytest.raises(ValueError, match="tells no hit rate"):
        table.blind_rates("**ten faults** and no rate")
