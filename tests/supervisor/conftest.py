"""Benches of real supervisors, cleared when a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gang_bench import GangBench


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[GangBench]:
    """Nodes of one run on this machine."""
    made = GangBench(tmp_path)
    yield made
    made.clear()
