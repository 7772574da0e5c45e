"""Proves when a checkpoint falls due, without a clock."""

from __future__ import annotations

from typing import Any

import pytest

from clusterft_trainer.checkpoint import policy
from clusterft_trainer.checkpoint.policy import Diary, Moment
from clusterft_trainer.config import Checkpoints


def walk(settings: dict[str, Any], steps: int, batches: int, minutes: float) -> list[tuple[int, list[str]]]:
    """The steps at which something is due; an epoch has so many batches, a step takes so many minutes."""
    chosen, diary, found = Checkpoints.model_validate(settings), Diary(), []
    for step in range(1, steps + 1):
        now = Moment(step, step // batches, step % batches == 0, step * minutes)
        roles = policy.due(chosen, now, diary)
        if roles:
            found.append((step, [str(r) for r in roles]))
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_steps": 4}, [(4, ["kept"]), (8, ["kept"]), (12, ["kept"])]),
        ({"every_epochs": 2}, [(10, ["kept"])]),
        ({"every_minutes": 3}, [(6, ["kept"]), (12, ["kept"])]),
        ({"rolling": "2min"}, [(4, ["rolling"]), (8, ["rolling"]), (12, ["rolling"])]),
        ({"rolling": "5 steps", "every_epochs": 1}, [(5, ["rolling", "kept"]), (10, ["rolling", "kept"])]),
        ({}, []),
    ],
)
def test_spans_of_steps_epochs_and_minutes(settings: dict[str, Any], expected: list[Any]) -> None:
    assert walk(settings, 12, 5, 0.5) == expected


def test_five_hundred_steps_is_the_rule_where_nothing_is_said() -> None:
    assert walk({}, 1000, 10_000, 0.0) == [(500, ["kept"]), (1000, ["kept"])]


def test_a_long_step_does_not_make_up_for_spans_that_it_missed() -> None:
    assert walk({"rolling": "1min"}, 3, 5, 10.0) == [(1, ["rolling"]), (2, ["rolling"]), (3, ["rolling"])]
