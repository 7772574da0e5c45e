"""What an interconnect should reach, and when a figure is too low to be chance. Pure.

The table is of bus bandwidth as nccl-tests defines it; what is below it on cards is slow. Over gloo nothing
absolute is claimed: only what is far below the other links, and below gigabit Ethernet, is called slow.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clusterft.facts.deep import Card, Deep, Group

# Mbit/s -> GB/s of an all-reduce between nodes, one link each. Measured by others for 25, 100, 200 and 400 Gbit/s
# (nccl#209, nccl#450, Azure's node health checks); the others are 72 % of the wire.
BETWEEN: tuple[tuple[int, float], ...] = (
    (1_000, 0.09),
    (2_500, 0.22),
    (5_000, 0.45),
    (10_000, 0.9),
    (25_000, 2.0),
    (40_000, 3.0),
    (100_000, 4.0),
)
# (words of the card's name, cards in the node) -> GB/s inside of it, after Azure's node health checks.
INSIDE: Mapping[tuple[str, int], float] = {
    ("A100-SXM", 8): 228.0,
    ("H100 80GB HBM3", 8): 360.0,  # as a ring: NVLink SHARP, which gives more, may be off
    ("H200", 8): 360.0,
    ("V100-SXM", 8): 110.0,
}
MARGIN = 0.05  # below the median, among equal nodes
EQUAL_NODES = 4
GROSS = {"gloo": 4.0, "nccl": 2.0}  # times slower than the others is no noise
GIGABIT = 0.08  # GB/s; a CPU that is busy gets more than that through gloo
WIRE_SHARE = 0.5  # of a link's speed: no fault of the link
FALL = {"gloo": 0.3, "nccl": 0.7}  # of what earlier runs measured
_UNET_BYTES = 5.1e9  # gradients of SDXL's UNet in bf16


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Against what pairs of a cluster are held."""

    backend: str
    best: float | None = None  # GB/s, of the pairs that came back
    middle: float | None = None
    equal: bool = False  # four or more nodes with the same cards and links
    wires: Mapping[str, int] | None = None  # node -> Mbit/s of the interface in use, where it is told


def between(speed: int | None) -> float | None:
    """What a link of so many Mbit/s should give; None where nothing is known of such a link."""
    if speed is None:
        return None
    fitting = [expected for known, expected in BETWEEN if known <= speed]
    return fitting[-1] if fitting and speed <= BETWEEN[-1][0] else None


def inside(card: str, count: int) -> float | None:
    """What the cards of one node should give among themselves."""
    for (words, cards), expected in INSIDE.items():
        if words in card and cards == count:
            return expected
    return None


def inside_too_low(group: Group, cards: Iterable[Card]) -> float | None:
    """What the cards of this node should give among themselves, if it is known and they do not."""
    names = {card.name for card in cards if card.node in group.nodes}
    expected = inside(names.pop(), group.ranks) if len(names) == 1 else None
    return expected if expected and group.busbw is not None and group.busbw < expected else None


def sharing(speed: float, ranks: int) -> float:
    """Seconds that a step of SDXL spends on its gradients, at so many GB/s of bus bandwidth."""
    return _UNET_BYTES * 2 * (ranks - 1) / ranks / (speed * 1e9)


def yardstick(groups: Iterable[Group], backend: str, wires: Mapping[str, int | None], *, equal: bool) -> Yardstick:
    """From the pairs that came back."""
    pairs = best(groups)
    figures = [one.busbw for one in pairs.values() if one.busbw is not None]
    known = {node: speed for node, speed in wires.items() if speed}
    if not figures:
        return Yardstick(backend, wires=known)
    return Yardstick(backend, max(figures), statistics.median(figures), equal, known)


def judged(deep: Deep) -> tuple[dict[tuple[str, ...], Group], dict[tuple[str, ...], str]]:
    """(the best try of each pair, why those are slow that were slow twice): one slow try is chance."""
    pairs = best(deep.groups)
    against = yardstick(deep.groups, deep.backend, dict(deep.wires), equal=deep.equal)
    twice = {pair for pair in pairs if sum(one.nodes == pair for one in deep.groups) > 1}
    return pairs, {pair: why for pair, one in pairs.items() if pair in twice and (why := slow(one, against))}


def top(groups: Iterable[Group]) -> dict[tuple[str, tuple[str, ...]], Group]:
    """Of each group the best try: whatever is slow by chance is not slow twice."""
    found: dict[tuple[str, tuple[str, ...]], Group] = {}
    for one in groups:
        known = found.get((one.kind, one.nodes))
        if known is None or (one.busbw or 0.0) > (known.busbw or 0.0):
            found[one.kind, one.nodes] = one
    return found


def best(groups: Iterable[Group]) -> dict[tuple[str, ...], Group]:
    """The same of the pairs alone."""
    return {nodes: one for (kind, nodes), one in top(groups).items() if kind == "pair"}


def attempts(groups: Iterable[Group]) -> dict[tuple[str, tuple[str, ...]], tuple[float, ...]]:
    """What each group has reached, each time that it came back."""
    found: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}
    for one in groups:
        if one.busbw is not None:
            found[one.kind, one.nodes] = (*found.get((one.kind, one.nodes), ()), one.busbw)
    return found


def slow(pair: Group, against: Yardstick) -> str:
    """Why a pair that came back is slow, or nothing."""
    if pair.busbw is None:
        return ""
    speed = min((against.wires or {}).get(node, 0) for node in pair.nodes) or None
    if against.backend == "gloo":
        if pair.busbw >= GIGABIT or (speed and pair.busbw >= WIRE_SHARE * speed / 8000):
            return ""
        return _gross(pair.busbw, against)
    expected = between(speed)
    if expected is not None:
        return f"{expected:g} GB/s are usual on such a link" if pair.busbw < expected else _fine(pair, against)
    return _gross(pair.busbw, against) or _fine(pair, against)


def _gross(figure: float, against: Yardstick) -> str:
    if against.best is None or figure * GROSS[against.backend] >= against.best:
        return ""
    return f"the fastest pair reaches {against.best:.3g} GB/s"


def _fine(pair: Group, against: Yardstick) -> str:
    """A few per cent count among equals only, and where the figure itself is steady."""
    steady = pair.spread is not None and pair.spread < MARGIN
    if not against.equal or not steady or against.middle is None or pair.busbw is None:
        return ""
    low = pair.busbw < against.middle * (1 - MARGIN)
    return f"the median of all pairs is {against.middle:.3g} GB/s" if low else ""


@dataclass(frozen=True, slots=True)
class Blame:
    """Whose fault the bad pairs are: bad in all its pairs, a node; in one only, that link."""

    nodes: tuple[str, ...]
    links: tuple[tuple[str, ...], ...]
    unsure: tuple[str, ...]  # bad in the one pair that they were in


def blame(tried: Iterable[tuple[str, ...]], bad: Iterable[tuple[str, ...]]) -> Blame:
    """Which nodes explain the bad pairs, and which links remain."""
    pairs, ill = tuple(dict.fromkeys(tried)), set(bad)
    names = tuple(dict.fromkeys(node for pair in pairs for node in pair))
    mine = {node: [pair for pair in pairs if node in pair] for node in names}
    worst = tuple(node for node in names if len(mine[node]) > 1 and all(pair in ill for pair in mine[node]))
    links = tuple(pair for pair in pairs if pair in ill and not set(pair) & set(worst))
    alone = tuple(node for node in names if len(mine[node]) == 1 and mine[node][0] in ill and node not in worst)
    return Blame(worst, links, alone if len(names) > 2 else ())


def poor(whole: Group, pair: float | None, backend: str) -> bool:
    """Whether many nodes together are far below what pairs of them reach."""
    if whole.busbw is None:
        return True
    if pair is None or (backend == "gloo" and whole.busbw >= GIGABIT):
        return False
    # Over gloo a ring of many costs more than one of two by itself.
    return whole.busbw * GROSS[backend] < pair / (2 if backend == "gloo" else 1)


def fallen(figure: float, before: Iterable[float], backend: str) -> float | None:
    """What it used to be, if this is clearly less."""
    known = sorted(before)
    if not known:
        return None
    usual = statistics.median(known)
    if backend == "gloo" and figure >= GIGABIT:
        return None
    return usual if figure < usual * FALL[backend] else None
