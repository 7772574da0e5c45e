"""The trainer's sentences about settings that do not go together -> each by itself, with the settings it names.

Pure. The trainer joins such sentences by "; ". Each begins with the setting that has to change, and perhaps the
one that it quarrels with: `learn.optimizer.fused_backward and learn.clip: ...`.
"""

from __future__ import annotations

import re

from pydantic import BaseModel

from clusterft.spec import fields
from clusterft.spec.positions import Steps

_PATH = r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*"
# A semicolon within a sentence is not followed by a setting and one of these.
_NEXT = re.compile(rf"; (?=({_PATH})(?:: | and | needs ))")
_FIRST = re.compile(rf"({_PATH})(?: and ({_PATH}))?\b")


def apart(text: str, models: tuple[type[BaseModel], ...]) -> tuple[str, ...]:
    """The sentences of one complaint about these models."""
    cuts = [found for found in _NEXT.finditer(text) if fields.holds(models, steps(found[1]))]
    starts = [0, *(found.end() for found in cuts)]
    ends = [*(found.start() for found in cuts), len(text)]
    return tuple(text[start:end] for start, end in zip(starts, ends, strict=True))


def named(sentence: str, models: tuple[type[BaseModel], ...]) -> tuple[Steps, ...]:
    """The settings that a sentence begins with; none if it begins with a word of another kind."""
    found = _FIRST.match(sentence)
    paths = [steps(path) for path in found.groups() if path] if found else []
    return tuple(paths) if paths and fields.holds(models, paths[0]) else ()


def steps(path: str) -> Steps:
    """`learn.clip` as a path."""
    return tuple(path.split("."))
