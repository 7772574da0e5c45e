"""Proves the share of the full rate in each step: warm-up, then the schedule, as a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clusterft_trainer.config import Learn
from clusterft_trainer.engine.rates import factor

SCHEDULES = ("constant", "linear", "cosine", "polynomial")


def learn(**settings: Any) -> Learn:
    return Learn.model_validate({"unet": {"rate": 1e-4}, **settings})


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"warmup_steps": 9}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ({"schedule": "linear", "warmup_steps": 1}, [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "warmup_steps": 2, "floor": 0.2}, [1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4]),
        ({"schedule": "polynomial", "warmup_steps": 1}, [0.5, 1, 0.64, 0.36, 0.16, 0.04]),
        ({"schedule": "polynomial", "power": 1, "warmup_steps": 1}, [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]),
        ({"schedule": "cosine", "warmup_steps": 2, "floor": 0.5}, [1 / 3, 2 / 3, 1, 0.9267767, 0.75, 0.5732233]),
    ],
)
def test_the_shares_of_six_steps_are_these(settings: dict[str, Any], shares: list[float]) -> None:
    assert [factor(step, learn(**settings), 6) for step in range(1, 7)] == pytest.approx(shares, abs=1e-6)


drawn = st.fixed_dictionaries(
    {"schedule": st.sampled_from(SCHEDULES), "warmup_steps": st.integers(0, 300), "floor": st.floats(0, 1)}
)


@given(drawn, st.integers(1, 400))
def test_a_rate_rises_then_falls_and_stays_above_its_floor(settings: dict[str, Any], total: int) -> None:
    if settings["schedule"] == "constant":
        settings = settings | {"floor": 0.0}
    shares = [factor(step, learn(**settings), total) for step in range(1, total + 1)]
    rise, fall = shares[: settings["warmup_steps"]], shares[settings["warmup_steps"] :]
    assert all(0 < share <= 1 for share in shares)
    assert rise == sorted(rise) and all(share < 1 for share in rise)
    assert fall == sorted(fall, reverse=True) and all(share >= settings["floor"] for share in fall)
    assert not fall or fall[0] == pytest.approx(1)


@given(drawn, st.integers(2, 400), st.data())
def test_a_longer_run_never_has_a_lower_rate(settings: dict[str, Any], total: int, data: Any) -> None:
    if settings["schedule"] == "constant":
        settings = settings | {"floor": 0.0}
    step = data.draw(st.integers(1, total))
    assert factor(step, learn(**settings), total + 50) >= factor(step, learn(**settings), total) - 1e-12


@pytest.mark.parametrize("step", [0, -1, 7])
def test_a_step_outside_of_the_run_is_a_fault(step: int) -> None:
    with pytest.raises(ValueError, match="not one of 1..6"):
        factor(step, learn(), 6)


def test_a_power_without_its_schedule_is_refused() -> None:
    with pytest.raises(ValidationError, match="power has no meaning under schedule: cosine"):
        learn(schedule="cosine", power=1.0)
