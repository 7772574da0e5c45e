"""Which nodes are tried together, and when. Pure.

Every link where there are few; else two rounds, neighbours and then the fastest with the slowest, which tell a
node from a link. What is still bad in all of them together is searched for by halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Pair = tuple[str, ...]
FEW = 4  # nodes of which every pair is tried


def every(names: Sequence[str]) -> list[list[Pair]]:
    """All pairs in rounds of disjoint ones, by the circle method; with an odd count one rests in each."""
    ring: list[str] = [*names, *([""] if len(names) % 2 else [])]
    rounds = []
    for _ in range(len(ring) - 1):
        both = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        rounds.append([in_order(names, pair) for pair in both if all(pair)])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def neighbours(names: Sequence[str]) -> list[Pair]:
    """The first round; with an odd count the last one rests."""
    return list(zip(names[::2], names[1::2], strict=False))


def mixed(names: Sequence[str], speeds: Mapping[str, float], first: Iterable[Pair]) -> list[Pair]:
    """The second round: the fastest with the slowest; who rested takes part, and no pair comes twice."""
    met = set(first)
    rested = [name for name in names if not any(name in pair for pair in met)]
    order = sorted((name for name in names if name not in rested), key=lambda name: -speeds.get(name, 0.0))
    left = [*rested, *order]
    pairs: list[Pair] = []
    while len(left) > 1:
        fast = left.pop(0)
        slow = next((name for name in reversed(left) if in_order(names, (fast, name)) not in met), left[-1])
        left.remove(slow)
        pairs.append(in_order(names, (fast, slow)))
    if pairs and pairs[-1] in met:  # only these two were left: they change partners with another pair
        (one, other), (left_one, right_one) = pairs[-1], pairs[-2]
        pairs[-2:] = [in_order(names, (one, left_one)), in_order(names, (other, right_one))]
    return [pair for pair in pairs if pair not in met]


def disjoint(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Rounds in which no node is in two pairs."""
    rounds: list[list[Pair]] = []
    for pair in pairs:
        for one in rounds:
            if not any(set(pair) & set(other) for other in one):
                one.append(pair)
                break
        else:
            rounds.append([pair])
    return rounds


def halves(names: Pair) -> tuple[Pair, Pair]:
    """Two groups that are as large as each other, or nearly."""
    middle = (len(names) + 1) // 2
    return names[:middle], names[middle:]


def across(left: Pair, right: Pair) -> list[list[Pair]]:
    """Every link between two groups, in rounds of disjoint pairs."""
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    return [
        [(longer[(index + turn) % len(longer)], one) for index, one in enumerate(shorter)]
        for turn in range(len(longer))
    ]


def in_order(names: Sequence[str], pair: Iterable[str]) -> Pair:
    """As the hostfile has them."""
    return tuple(sorted(pair, key=list(names).index))
