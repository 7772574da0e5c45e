"""What `doctor --deep` measured, as a short table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from clusterft.checks.work import acceptance
from clusterft.facts.deep import Card, Deep, Group

_SHOWN = 6  # figures in a row
_WIDTH = 12


def lines(deep: Deep) -> Iterator[str]:
    """Nothing where nothing was measured."""
    groups = list(acceptance.top(deep.groups).values())
    if groups:
        yield f"all-reduce over {deep.backend}, GB/s of bus bandwidth:"
    yield from _row("inside", [one for one in groups if one.kind == "node"])
    yield from _row("pairs", [one for one in groups if one.kind == "pair"])
    for whole in [one for one in groups if one.kind == "all"]:
        yield f"  {f'all {len(whole.nodes)}':<{_WIDTH}}{_figure(whole)}"
        if deep.backend == "nccl" and whole.busbw:
            seconds = acceptance.sharing(whole.busbw, whole.ranks)
            yield f"  {'':<{_WIDTH}}the gradients of SDXL's UNet, 5.1 GB in bf16, take {seconds:.1f} s a step"
    yield from _cards(deep.cards)
    saved = [one.node for one in deep.savings.values() if one.ok]
    if saved and len(saved) == len(deep.savings):
        yield f"a checkpoint was saved by DeepSpeed and read back on {len(saved)} node{'s' * (len(saved) != 1)}"


def story(one: Group) -> str:
    """One measurement in a line, and the words of one that did not come back."""
    who = " - ".join(one.nodes)
    if one.busbw is not None:
        amount = (one.bytes or 0) / 2**20
        return f"{who}: {one.busbw:.3g} GB/s ({amount:.0f} MiB in {one.seconds or 0:.3f} s)"
    return f"{who}: no end, at stage {one.stage}" + (f"\n{one.words}" if one.words else "")


def _row(name: str, groups: list[Group]) -> Iterator[str]:
    """All of a few; of many the slowest, and how fast the rest is."""
    slowest = sorted(groups, key=lambda one: one.busbw or 0.0)
    few = groups if len(groups) <= _SHOWN else slowest[: _SHOWN - 1]
    shown = [f"{one.name} {_figure(one)}" for one in few]
    if len(groups) > _SHOWN:
        shown.append(f"{len(groups) - len(few)} more, up to {_figure(slowest[-1])}")
    if shown:
        yield f"  {name:<{_WIDTH}}{'   '.join(shown)}"


def _figure(one: Group) -> str:
    return "no end" if one.busbw is None else f"{one.busbw:.3g}"


def _cards(cards: Iterable[Card]) -> Iterator[str]:
    by_name: dict[str, list[float]] = {}
    for card in cards:
        if card.flops:
            by_name.setdefault(card.name, []).append(card.flops / 1e12)
    for name, rates in by_name.items():
        span = " to ".join(map(_rate, (min(rates), max(rates))[: len(rates)]))
        yield f"{len(rates)} slot{'s' * (len(rates) != 1)} ({name}) at work: {span} TFLOP/s"


def _rate(tera: float) -> str:
    return f"{tera:.0f}" if tera >= 10 else f"{tera:.2g}"
