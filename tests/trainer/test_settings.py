"""Proves that settings are refused with their name, and that progress lines survive the journey."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clusterft_trainer import progress
from clusterft_trainer.config import TrainConfig

GOOD: dict[str, Any] = {
    "model": "builtin:tiny",
    "output": {"name": "x"},
    "data": {"sources": [{"builtin": "shapes"}], "resolution": 64},
    "learn": {"unet": {"rate": 1e-3}},
    "steps": 5,
}


def test_the_smallest_settings_are_enough() -> None:
    settings = TrainConfig.model_validate(GOOD)
    assert settings.engine.kind == "zero" and settings.batch.per_slot == 1


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("stepz", 5, "stepz"),
        ("epochs", 2, "exactly one of steps and epochs"),
        ("data.resolution", 100, "data.resolution"),
        ("learn.unet", None, "nothing is trained"),
        ("learn.unet.rate", 0, "learn.unet.rate"),
        ("engine", {"kind": "zero", "stage": 4}, "stage"),
        ("output.name", "../x", "output.name"),
        ("batch", {"per_slot": 0}, "batch.per_slot"),
        ("samples", {"prompts": []}, "samples.prompts"),
        ("data.sources", [{"builtin": "cats"}], "data.sources"),
        ("data.buckets", {"upscale": False, "largest": 512}, "no meaning with upscale: false"),
    ],
)
def test_a_wrong_setting_is_named(path: str, value: object, where: str) -> None:
    body = copy.deepcopy(GOOD)
    *parents, leaf = path.split(".")
    target = body
    for name in parents:
        target = target[name]
    target[leaf] = value
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(body)
    told = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in caught.value.errors()]
    assert any(where in line for line in told), told


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.one_of(
        st.builds(progress.Phase, st.text(), finite),
        st.builds(progress.Notice, st.text(), finite),
        st.builds(progress.Failed, st.text(), st.text(), st.text(), finite),
        st.builds(progress.Saved, st.text(), st.text(), st.integers(), finite, finite),
        st.builds(progress.Done, st.integers(), finite, finite, finite, st.none() | st.integers()),
    )
)
def test_a_progress_line_comes_back_as_it_was(record: progress.Record) -> None:
    line = progress.encode(record)
    assert "\n" not in line
    assert progress.decode(line) == record


def test_a_loss_that_is_not_a_number_stays_one() -> None:
    step = progress.Step(1, 2, 0, math.nan, 0.1, None, 3.0, 0.0, 1.0)
    back = progress.decode(progress.encode(step))
    assert isinstance(back, progress.Step) and math.isnan(back.loss)


def test_lines_that_are_no_progress_are_left_alone() -> None:
    whole = progress.encode(progress.Notice("x", 1.0))
    for line in ("", "hello", whole[:-4], whole.replace('"schema": 1', '"schema": 9')):
        assert progress.decode(line) is None
