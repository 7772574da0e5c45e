"""What the account of a run comes to: outcome, cause, remedy, and the figures that need more than one file.
Pure.

Owns the order in which sources are believed: the supervisor's own outcome.json, the controller's verdict in
run.json, then what the lines of the nodes themselves say.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property

from clusterft_trainer import progress
from clusterft_trainer.report import loose
from clusterft_trainer.report.account import Account, Attempt
from clusterft_trainer.report.course import Course, joined

_ENDS = ("ok", "stopped", "failed")
_ECHO = "peer-lost"  # another rank's end, seen from here: never a first cause
_RESUMED = 1.0  # seconds by which an attempt must begin after an end that is told, to prove it out of date


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended, in words."""

    state: str  # ok, stopped, failed, running, unknown
    failure: str = ""
    cause: str = ""
    node: str = ""
    rank: int | None = None
    why: str = ""  # why there is no other attempt
    remedy: str = ""
    evidence: tuple[str, ...] = ()
    ended: float | None = None


class Judged:
    """An account with everything that follows from it."""

    def __init__(self, account: Account) -> None:
        self.account = account

    @cached_property
    def run(self) -> str:
        """The run's id; the folder's name is the same."""
        known = loose.words(self.account.record, "plan", "run") or loose.words(self.account.outcome, "run")
        return known or self.account.folder.name

    @cached_property
    def course(self) -> Course:
        """The account that rank 0 keeps, or the lines of the nodes where that has less."""
        streamed = joined([node.course for node in self.account.nodes.values()])
        metrics = self.account.metrics
        if metrics.last >= streamed.last:
            metrics.repeated = max(metrics.repeated, streamed.repeated)
            return metrics
        return streamed

    @cached_property
    def attempts(self) -> list[Attempt]:
        """In their order; only those of which a beginning is known."""
        found = [one for one in self.account.attempts.values() if one.began is not None]
        return sorted(found, key=lambda one: one.number)

    @cached_property
    def settings(self) -> object:
        """The trainer's settings: those of the plan, else those of the newest checkpoint."""
        for node in loose.many(self.account.record, "plan", "nodes"):
            for name, text in loose.pairs(node, "files").items():
                if name.rsplit("/", 1)[-1] == "config.json" and isinstance(text, str):
                    try:
                        return json.loads(text)
                    except (ValueError, RecursionError):
                        continue
        return next((kept.config for kept in reversed(self.account.checkpoints) if kept.config), None)

    @cached_property
    def began(self) -> float | None:
        """The start of it all."""
        course = self.course
        first = course.column("at")[0] if len(course) else math.inf
        told = loose.number(self.account.outcome, "began") or loose.number(self.account.record, "began")
        known = min(self.account.first_at, first, told if told is not None else math.inf)
        return known if math.isfinite(known) else None

    @cached_property
    def ended(self) -> float | None:
        """The end of it, or the last sign of life."""
        if self.outcome.ended is not None and self.outcome.state in _ENDS:
            return self.outcome.ended
        last = self.course.column("at")[-1] if len(self.course) else -math.inf
        known = max(self.account.last_at, last)
        return known if math.isfinite(known) else None

    @cached_property
    def global_batch(self) -> tuple[int, bool] | None:
        """Pictures of one step, and whether that was the same all the time."""
        kept = [one.global_batch for one in self.account.checkpoints if one.global_batch]
        if kept:
            return kept[-1], len(set(kept)) == 1
        slot = loose.whole(self.settings, "batch", "per_slot")
        world = max((one.world for one in self.attempts), default=0) or loose.whole(
            self.account.record, "plan", "world_size"
        )
        if not slot or not world:
            return None
        times = loose.whole(self.settings, "batch", "accumulate") or 1
        return slot * times * world, len({one.world for one in self.attempts}) <= 1

    @cached_property
    def held_out(self) -> dict[int, float]:
        """Step and loss, of the lines and of the checkpoints' manifests."""
        kept = {one.step: one.held_out for one in self.account.checkpoints if one.held_out is not None}
        return dict(sorted((kept | self.account.held_out).items()))

    @cached_property
    def outcome(self) -> Outcome:
        """How it ended."""
        return self._supervisors() or self._controllers() or self._streamed()

    def _out_of_date(self, ended: float | None) -> bool:
        """Whether the run was begun again after that end."""
        began = max((one.began or 0.0 for one in self.attempts), default=0.0)
        return ended is not None and began > ended + _RESUMED

    def _supervisors(self) -> Outcome | None:
        told = self.account.outcome
        state, ended = loose.words(told, "end"), loose.number(told, "ended")
        if state not in _ENDS or self._out_of_date(ended):
            return None
        node, rank = loose.words(told, "node"), loose.whole(told, "rank")
        verdict = loose.at(self.account.record, "verdict")
        same = loose.words(verdict, "end") == state
        return Outcome(
            state,
            loose.words(told, "failure"),
            loose.words(told, "cause") or (loose.words(verdict, "summary") if same else ""),
            node,
            rank,
            loose.words(told, "why"),
            self._remedy(node, rank) or (loose.words(verdict, "remedy") if same else ""),
            tuple(loose.texts(verdict, "evidence")) if same else (),
            ended,
        )

    def _controllers(self) -> Outcome | None:
        told = loose.at(self.account.record, "verdict")
        state, ended = loose.words(told, "end"), loose.number(self.account.record, "ended")
        if state not in _ENDS or self._out_of_date(ended):
            return None
        return Outcome(
            state,
            loose.words(told, "failure"),
            loose.words(told, "summary"),
            loose.words(told, "node"),
            loose.whole(told, "rank"),
            "",
            loose.words(told, "remedy"),
            tuple(loose.texts(told, "evidence")),
            ended,
        )

    def _streamed(self) -> Outcome:
        """No document tells an end: the nodes' own last words."""
        ended = [node.ended for node in self.account.nodes.values() if node.ended is not None]
        last = self.attempts[-1] if self.attempts else None
        over = max((one.at for one in ended), default=None)
        whole = len(ended) == len(self.account.nodes) and not self._out_of_date(over)
        if ended and whole:
            state = next(
                (end for end in ("failed", "stopped", "ok") if any(one.end == end for one in ended)), "unknown"
            )
        elif self.account.done is not None and self.account.done.at >= (last.began or 0.0 if last else 0.0):
            state, over = "ok", self.account.done.at
        else:
            return Outcome("running" if last and last.ended is None else "unknown")
        if state != "failed" or last is None:
            return Outcome(state, ended=over)
        first = self._first_failure(last)
        decided = last.decided
        if decided is not None:
            remedy = self._remedy(decided.node, decided.rank)
            cause = (decided.failure, decided.cause, decided.node, decided.rank, decided.why)
            return Outcome(state, *cause, remedy=remedy, ended=over)
        if first is None:
            return Outcome(state, ended=over)
        node, rank, failed = first
        return Outcome(state, failed.failure, failed.message, node, rank, remedy=failed.remedy, ended=over)

    @staticmethod
    def _first_failure(attempt: Attempt) -> tuple[str, int, progress.Failed] | None:
        own = [one for one in attempt.failures if one[2].failure != _ECHO] or attempt.failures
        return min(own, key=lambda one: one[2].at, default=None)

    def _remedy(self, node: str, rank: int | None) -> str:
        """What the rank that failed said itself, in the last attempt."""
        for attempt in reversed(self.attempts):
            for where, which, failed in attempt.failures:
                if where == node and which == rank:
                    return failed.remedy
            if attempt.failures:
                break
        return ""

    @cached_property
    def last_words(self) -> list[str]:
        """What the rank of the first cause wrote last; the launcher's words where it wrote none."""
        outcome = self.outcome
        if outcome.evidence:
            return list(outcome.evidence)
        ranks = (outcome.rank, -1) if outcome.rank is not None else (-1,)
        for rank in ranks:
            if said := self.account.tails.get((outcome.node, rank)):
                return said
        return []

    @cached_property
    def trained_seconds(self) -> float | None:
        """Time in which steps were made, of all attempts; None where no attempt is known."""
        spans = [span for attempt in self.attempts for name, *span in stages(attempt) if name == "train"]
        return math.fsum(end - begin for begin, end in spans) if self.attempts else None


def stages(attempt: Attempt) -> list[tuple[str, float, float]]:
    """What an attempt did from when to when: start, imports, model, data, train, export."""
    began, until = attempt.began, attempt.until
    if began is None or until is None:
        return []
    marks = [("start", began), *((name, min(max(at, began), until)) for name, at in sorted_phases(attempt))]
    ends = [at for _, at in marks[1:]] + [max(until, began)]
    return [(name, at, end) for (name, at), end in zip(marks, ends, strict=True) if end > at]


def sorted_phases(attempt: Attempt) -> list[tuple[str, float]]:
    """By time: lines of several nodes came in one after the other."""
    return sorted(attempt.phases, key=lambda one: one[1])
