"""Proves that the loss curve is a well-formed picture that shows the numbers it was given."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from clusterft_trainer import curve


@pytest.mark.parametrize("count", [0, 1, 2, 7, 300, 12345])
def test_any_length_is_well_formed(count: int) -> None:
    picture = curve.draw([1.0 / (i + 1) for i in range(count)], "a <b> & c")
    root = ET.fromstring(picture)
    texts = ["".join(t.itertext()) for t in root.iter() if t.tag.endswith("text")]
    assert "Training loss of a <b> & c" in texts
    assert "optimizer step" in texts and "mean squared error" in texts
    assert "nan" not in picture.lower()


def test_a_loss_that_is_no_number_leaves_a_gap_and_not_a_wreck() -> None:
    picture = curve.draw([0.5, math.nan, math.inf, 0.4], "x")
    ET.fromstring(picture)
    assert "inf" not in picture and "nan" not in picture


def test_lower_losses_are_drawn_lower() -> None:
    root = ET.fromstring(curve.draw([1.0, 0.5, 0.25], "x"))
    (raw,) = [p for p in root.iter() if p.get("class") == "raw" and p.get("d", "").count("L") == 2]
    heights = [float(point.split()[1]) for point in raw.get("d", "")[1:].split("L")]
    assert heights == sorted(heights)
