"""What one wants to know first: how it ended, why, what to do, and a dozen figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from clusterft_trainer.report import loose, words
from clusterft_trainer.report.account import Attempt
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Child, Markup, el, link
from clusterft_trainer.report.masking import mask

_WORDS = {
    "ok": ("✓", "finished"),
    "stopped": ("■", "stopped"),
    "failed": ("✗", "failed"),
    "running": ("●", "was running when this page was made"),
    "unknown": ("?", "has told no end"),
}


def head(judged: Judged) -> Markup:
    """Name, outcome, cause and figures."""
    sign, word = _WORDS[judged.outcome.state]
    cluster = loose.words(judged.account.record, "plan", "cluster")
    where = f"cluster {cluster}" if cluster else ""
    times = words.period(judged.began, judged.ended)
    return el(
        "header",
        el("p", " · ".join(part for part in (where, times) if part), class_="over"),
        el("h1", judged.run),
        el(
            "p",
            el("span", sign, " ", word, class_=f"state {judged.outcome.state}"),
            _sentence(judged),
            class_="lead",
        ),
        _trouble(judged),
        el("dl", *(_tile(*one) for one in _figures(judged)), class_="figures"),
    )


def _sentence(judged: Judged) -> str:
    course, outcome = judged.course, judged.outcome
    if not len(course):
        return "" if judged.attempts else "Nothing is known of its start."
    of = f" of {words.count(course.steps)}" if course.steps and course.steps != course.last else ""
    at = "after" if outcome.state == "ok" else "at"
    took = f", {words.duration(_whole(judged))} after its start" if outcome.state != "running" else ""
    return f"{at} step {words.count(course.last)}{of}{took}"


def _whole(judged: Judged) -> float | None:
    if judged.began is None or judged.ended is None:
        return None
    return max(0.0, judged.ended - judged.began)


def _trouble(judged: Judged) -> Markup | None:
    """The first cause and its remedy; for a run that ended well, nothing."""
    outcome = judged.outcome
    if outcome.state != "failed":
        why = outcome.cause or outcome.why
        return el("p", mask(why), class_="aside") if why and outcome.state in ("stopped", "running") else None
    where = " ".join([*([outcome.node] if outcome.node else []), *_rank(outcome.rank)])
    last = judged.attempts[-1] if judged.attempts else None
    said = [line for line in judged.last_words if line.strip()]
    return el(
        "div",
        _entry("First cause", (el("b", where, ": ") if where else None, _cause(judged))),
        _entry("No other attempt", mask(outcome.why)) if outcome.why else None,
        _entry("What to do", _remedy(judged)),
        el("details", el("summary", _last_words(judged)), el("pre", mask("\n".join(said))), open="")
        if said
        else None,
        el("p", "Its whole log: ", _log(last, outcome.node, outcome.rank)) if last and outcome.node else None,
        class_="trouble",
    )


def _entry(name: str, value: Child) -> Markup:
    return el("div", el("span", name, class_="label"), el("p", value))


def _rank(rank: int | None) -> list[str]:
    return [] if rank is None else ["launcher" if rank < 0 else f"rank {rank}"]


def _cause(judged: Judged) -> Child:
    outcome = judged.outcome
    cause = mask(outcome.cause) or "No part of the run has said why."
    return (cause, " ", el("span", outcome.failure, class_="tag")) if outcome.failure else cause


def _remedy(judged: Judged) -> Child:
    """The remedy of the cause, then how to go on."""
    resume = ("When that is mended: ", el("code", f"clusterft resume {judged.run}"))
    told = mask(judged.outcome.remedy)
    return (told, el("br"), resume) if told else ("Read the last words below, and mend what they name. ", resume)


def _last_words(judged: Judged) -> str:
    outcome = judged.outcome
    who = " ".join([outcome.node, *_rank(outcome.rank)]).strip()
    return f"Last words of {who}" if who else "Last words"


def _log(attempt: Attempt, node: str, rank: int | None) -> Markup:
    name = "launcher" if rank is None or rank < 0 else f"rank{rank}"
    path = f"logs/attempt-{attempt.number}/{node}/{name}.log"
    return link(path, el("code", path))


def _tile(name: str, value: str, beside: str = "") -> Markup:
    return el("div", el("dt", name), el("dd", value, el("small", beside) if beside else None))


def _figures(judged: Judged) -> Iterable[tuple[str, str, str]]:
    yield "Duration", words.duration(_whole(judged)), _training(judged)
    if len(judged.course):
        yield from _learned(judged)
    restarts = max(0, len(judged.attempts) - 1)
    decided = [one.decided for one in judged.attempts if one.decided is not None]
    if judged.attempts:
        allowed = f"{decided[-1].used} of {decided[-1].restarts} counted" if decided else ""
        yield "Restarts", words.count(restarts), allowed if restarts else ""
    if nodes := judged.account.nodes:
        cards = sum(len(node.cards) for node in nodes.values())
        world = max((one.world for one in judged.attempts), default=0)
        beside = words.plural(cards, "card") if cards else words.plural(world, "rank") if world else ""
        yield "Nodes", words.count(len(nodes)), beside


def _training(judged: Judged) -> str:
    whole, trained = _whole(judged), judged.trained_seconds
    return f"{words.share(trained / whole)} of it training" if whole and trained else ""


def _learned(judged: Judged) -> Iterable[tuple[str, str, str]]:
    course = judged.course
    steps = f"of {words.count(course.steps)}" if course.steps != course.last else ""
    epoch = course.column("epoch")[-1]
    yield "Steps", words.count(course.last), steps or (f"epoch {words.count(epoch)}" if epoch else "")
    tenth = max(1, len(course) // 10)
    losses = course.column("loss")
    yield "Final loss", words.number(_mean(losses[-tenth:])), f"from {words.number(_mean(losses[:tenth]))}"
    if held := judged.held_out:
        best = min(held, key=lambda step: held[step])
        newest = next(reversed(held.values()))
        yield "Held-out loss", words.number(newest), f"best {words.number(held[best])} at step {words.count(best)}"
    if judged.global_batch:
        batch, same = judged.global_batch
        yield (
            "Pictures seen",
            ("" if same else "≈ ") + words.count(batch * course.last),
            f"{words.count(batch)} a step",
        )
    yield "Throughput", f"{words.number(usual_speed(judged), 3)} img/s", _per_card(judged)
    if course.has("mfu"):
        known = [value for value in course.column("mfu") if math.isfinite(value)]
        yield "MFU", words.share(median(known)), "of the cards' peak"
    if course.has("memory"):
        yield (
            "Memory of rank 0",
            words.size(max(v for v in course.column("memory") if math.isfinite(v))),
            "at most",
        )


def usual_speed(judged: Judged) -> float | None:
    """Pictures a second: the median, which first steps and hiccups do not move."""
    known = [value for value in judged.course.column("images_per_second") if math.isfinite(value)]
    return median(known) if known else None


def _per_card(judged: Judged) -> str:
    cards = sum(len(node.cards) for node in judged.account.nodes.values())
    speed = usual_speed(judged)
    return f"{words.number(speed / cards, 3)} a card" if cards > 1 and speed else ""


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
