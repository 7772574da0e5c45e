"""When a checkpoint is due, under which roles, and which older ones may go. Pure: no clock, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clusterft_trainer.checkpoint.manifest import Found, Role
from clusterft_trainer.config import Checkpoints
from clusterft_trainer.config.base import Span

# Written once, for a reason that the next such one takes over: the newest of them stays.
_PASSING: frozenset[str] = frozenset({"rolling", "end", "stop", "failure"})


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands when it asks."""

    step: int
    epochs_done: int  # whole epochs behind
    ends_epoch: bool
    minutes: float  # since training began in this process


@dataclass(slots=True)
class Diary:
    """When each span last fell due, in minutes; steps and epochs need no memory."""

    minutes: dict[str, float] = field(default_factory=dict)


def due(settings: Checkpoints, now: Moment, diary: Diary) -> list[Role]:
    """The roles under which this step is to be written; none if it is not."""
    found: list[Role] = []
    if settings.rolling is not None and _falls_due(settings.rolling, now, diary, "rolling"):
        found.append("rolling")
    if any([_falls_due(span, now, diary, "kept") for span in settings.cadences]):
        found.append("kept")
    return found


def _falls_due(span: Span, now: Moment, diary: Diary, purpose: str) -> bool:
    if span.unit == "steps":
        return now.step % span.count == 0
    if span.unit == "epochs":
        return now.ends_epoch and now.epochs_done % span.count == 0
    if now.minutes - diary.minutes.get(purpose, 0.0) < span.count:
        return False
    diary.minutes[purpose] = now.minutes
    return True


def superfluous(known: Sequence[Found], keep: int | None) -> list[Found]:
    """What may be deleted once the newest of `known` (newest first) is verified."""
    if not known:
        return []
    stay = {known[0].manifest.step}
    kept = [f for f in known if "kept" in f.manifest.roles]
    stay |= {f.manifest.step for f in (kept if keep is None else kept[:keep])}
    best = [f for f in known if f.manifest.held_out is not None and "best" in f.manifest.roles]
    if best:
        stay.add(min(best, key=lambda f: f.manifest.held_out or 0.0).manifest.step)
    passing = [f for f in known if _PASSING & set(f.manifest.roles)]
    stay |= {f.manifest.step for f in passing[:1]}
    return [f for f in known if f.manifest.step not in stay]
