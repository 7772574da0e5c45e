"""Proves what doctor says of a job before it runs: DeepSpeed's arithmetic, and pictures that are too few."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import scenes

from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import job as layer
from clusterft.cli import doctor

PAIR = scenes.cluster("a slots=2\nb slots=2\n")


def seen(wanted: Wanted) -> Examination:
    """Two healthy nodes of two slots."""
    return Examination(wanted, scenes.survey(PAIR, scenes.facts("a"), scenes.facts("b")))


@pytest.mark.parametrize(
    ("figures", "bad"),
    [
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}, False),
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}, True),
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2}, False),
        ({"train_batch_size": 12, "train_micro_batch_size_per_gpu": 2}, True),
        ({"train_batch_size": 5}, False),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}, False),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}, False),
        ({"train_batch_size": True, "train_micro_batch_size_per_gpu": 2}, False),
    ],
)
def test_deepspeeds_figures_are_held_against_the_ranks(figures: dict[str, object], bad: bool) -> None:
    found = list(layer.batch(seen(Wanted("cpu", deepspeed=json.dumps(figures)))))
    assert [one.id for one in found] == (["job.batch"] if bad else [])
    assert not found or "x 4 ranks = " in found[0].evidence


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"train_batch_size": {}}', "[" * 100_000])
def test_what_is_no_configuration_says_nothing(text: str | None) -> None:
    assert list(layer.batch(seen(Wanted("cpu", deepspeed=text)))) == []


def test_a_figure_that_it_names_is_one_that_fits() -> None:
    body = {"train_batch_size": 5, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}
    (found,) = layer.batch(seen(Wanted("cpu", deepspeed=json.dumps(body))))
    assert "train_batch_size 8" in found.fix[0]


def test_the_configuration_is_found_where_the_scripts_arguments_name_it(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("")
    (code / "zero.json").write_text('{"train_batch_size": 5}')
    head = "name: own\nshared: /mnt/out\nruntime: process\nresources: {device: cpu}\n"
    for args in ("[--deepspeed_config, zero.json]", "[--deepspeed=zero.json]"):
        text = f"{head}script: {{path: code/train.py, args: {args}}}\n"
        assert doctor.wanted(scenes.job(text, tmp_path), None).deepspeed == '{"train_batch_size": 5}'
    text = f"{head}script: {{path: code/train.py, args: [--deepspeed_config, gone.json]}}\n"
    assert doctor.wanted(scenes.job(text, tmp_path), None).deepspeed is None


def test_fewer_drawn_pictures_than_a_step_takes(tmp_path: Path) -> None:
    few = scenes.JOB.replace("{builtin: shapes}", "{builtin: shapes, images: 3}")
    (found,) = layer.too_small(seen(Wanted("cpu", job=scenes.job(few, tmp_path))))
    assert (found.id, found.status) == ("data.too-small", "fail") and "3 pictures" in found.summary
    assert list(layer.too_small(seen(Wanted("cpu", job=scenes.job(scenes.JOB, tmp_path))))) == []
    doubled = few.replace("images: 3}", "images: 3, repeats: 2}")
    assert list(layer.too_small(seen(Wanted("cpu", job=scenes.job(doubled, tmp_path))))) == []


def test_pictures_that_nobody_has_counted_are_not_called_few(tmp_path: Path) -> None:
    other = scenes.JOB.replace("{builtin: shapes}", "{folder: /data/pictures}")
    assert list(layer.too_small(seen(Wanted("cpu", job=scenes.job(other, tmp_path))))) == []
    assert list(layer.too_small(seen(replace(Wanted("cpu"), job=None)))) == []
