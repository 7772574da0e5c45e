"""Counts what a run has computed: every sample exactly once in every epoch, whatever befell it.

Pure. The notes come from the witness in each rank. A step that was lost with its attempt and computed again counts
once: its last attempt is the one that made the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One step of one rank."""

    run: str
    attempt: int
    rank: int
    world: int
    pid: int
    step: int
    epoch: int
    seen: tuple[int, ...]
    at: float


def kept(notes: Iterable[Note]) -> dict[int, list[Note]]:
    """Step -> the notes of the attempt that computed it last."""
    found: dict[int, list[Note]] = {}
    for note in notes:
        so_far = found.setdefault(note.step, [])
        if so_far and note.attempt > so_far[0].attempt:
            so_far.clear()
        if not so_far or note.attempt == so_far[0].attempt:
            so_far.append(note)
    return found


def assert_each_once(notes: Iterable[Note], images: int, epochs: int) -> None:
    """Every sample of every epoch exactly once, and no step missing, repeated or computed by some ranks only."""
    steps = kept(notes)
    assert sorted(steps) == list(range(1, len(steps) + 1)), f"steps are missing: {sorted(steps)}"
    seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(epochs)}
    attempt = 0
    for number, parts in sorted(steps.items()):
        ranks = sorted(part.rank for part in parts)
        assert ranks == list(range(parts[0].world)), f"step {number} was computed by ranks {ranks}: {parts}"
        assert parts[0].attempt >= attempt, f"step {number} is of attempt {parts[0].attempt}, later than {attempt}"
        attempt = parts[0].attempt
        for part in parts:
            seen[part.epoch].update(part.seen)
    for epoch, counts in seen.items():
        known = {*counts, *range(images)}
        wrong = {sample: counts[sample] for sample in sorted(known) if counts[sample] != (sample < images)}
        assert not wrong, f"epoch {epoch}: sample -> how often: {wrong}"
