"""Reads the heads of a model's files on one node: how many weights each of its parts has. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from clusterft.facts import model
from clusterft.remote import Remote, Unreachable


def weights(remote: Remote, path: str) -> Mapping[str, int] | None:
    """Part -> weights; None where that could not be read: the model is judged elsewhere."""
    if path.startswith("builtin:"):
        return None
    try:
        return model.parse(remote.run(model.argv(path), seconds=model.SECONDS).out)
    except Unreachable:
        return None
