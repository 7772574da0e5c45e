"""Proves that the account of a run is whole: progress lines, metrics.jsonl, charts, steps trained anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusterft_trainer import metrics, progress
from clusterft_trainer.progress import HeldOut, Step


@pytest.mark.parametrize("text", ["x" * 9_000, "\U0001f4be" * 3_000, "ä" * 400], ids=["long", "wide", "odd"])
def test_a_long_reason_keeps_both_ends_in_a_short_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.failed("bug", f"begin {text} end", f"begin {text} end")
    metrics.notice(f"begin {text} end")
    for line in capsys.readouterr().out.splitlines():
        assert len(line) < 5_000
        record = progress.decode(line)
        assert isinstance(record, progress.Failed | progress.Notice)
        told = record.message if isinstance(record, progress.Failed) else record.text
        assert told.startswith("begin ") and told.endswith(" end") and " ... " in told
    metrics.notice(short := "short " * 300)
    assert progress.decode(capsys.readouterr().out).text == short  # type: ignore[union-attr]


def test_the_account_forgets_steps_behind_the_checkpoint(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "loss": None if s == 2 else float(s)}) for s in (1, 2, 3, 4)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"step": 5, "lo']) + "\n")
    journal = metrics.Journal(tmp_path, resumed_from=3)
    assert journal.losses[0] == 1.0 and journal.losses[1] != journal.losses[1]
    journal.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_metrics_of_a_step_are_written_as_json(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = metrics.Journal(tmp_path, resumed_from=None)
    journal.step(Step(1, 2, 0, float("inf"), 0.1, None, 3.0, 0.25, 9.0))
    journal.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] is None and json.loads(line)["data_wait"] == 0.25
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_the_held_out_loss_is_told_and_charted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    journal = metrics.Journal(tmp_path, resumed_from=None)
    journal.held_out(HeldOut(7, 0.25, 1.0, 2.0))
    journal.close()
    assert progress.decode(capsys.readouterr().out) == HeldOut(7, 0.25, 1.0, 2.0)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("held_out")] == [(7, 0.25)]
