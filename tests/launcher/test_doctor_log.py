"""Proves that `doctor --log` names the first cause: of recorded bundles, of hostile bytes, of single lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft.apply import collecting
from clusterft.diagnosis import cause
from clusterft.diagnosis.diagnosis import Diagnosis

BUNDLES = scenes.ROOT / "tests" / "bundles"
NAMES = sorted(path.parent.name for path in BUNDLES.glob("*/note.json"))


def note(name: str) -> dict[str, Any]:
    """How a bundle was made, and what must be said of it."""
    found: dict[str, Any] = json.loads((BUNDLES / name / "note.json").read_text())
    return found


def diagnosis(*paths: Path) -> Diagnosis:
    """As `clusterft doctor --log` makes it."""
    return cause.diagnose(collecting.files(paths).heard)


def test_there_are_enough_bundles_and_most_are_of_runs_that_really_failed() -> None:
    real = [name for name in NAMES if note(name)["made"] == "by a run that failed"]
    assert len(NAMES) >= 25 and len(real) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cause_is_right(name: str) -> None:
    expected = note(name)["expect"]
    found = diagnosis(BUNDLES / name)
    said = {"verdict": found.verdict, "id": found.id, "node": found.node, "rank": found.rank}
    assert said == expected, (found.summary, found.evidence)
    assert found.evidence and found.cause and found.fix
    for quote in found.evidence:
        file, _, number = quote.where.rpartition(":")
        line = (BUNDLES / name / file).read_bytes().splitlines()[int(number) - 1].decode(errors="replace")
        assert quote.text[:40].strip() in line or file.endswith((".json", ".jsonl")), (quote, line)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_small_and_has_nothing_of_the_machine_that_made_it(name: str) -> None:
    text = b"".join(path.read_bytes() for path in (BUNDLES / name).rglob("*") if path.is_file())
    assert len(text) < 30_000
    assert not any(word in text for word in (b"/work/", b"/root/", b"/tmp/clusterft-bundle"))
