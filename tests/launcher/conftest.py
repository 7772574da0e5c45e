"""What every test of the launcher begins with: nobody has called us yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clusterft import commands


@pytest.fixture(autouse=True)
def uncalled() -> Iterator[None]:
    """A test that opens a cluster inside this process would tell the next one which cluster is meant."""
    with commands.called("clusterft", lambda run: False):
        yield
