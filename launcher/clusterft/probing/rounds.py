"""Who tries whom: every pair of a small cluster, a fixed choice of O(n log n) pairs of a large one. Pure.

Owns no clock and no chance: the same nodes are always paired in the same way, and what was left out is said.
"""

from __future__ import annotations

ALL = 32  # nodes: up to here every ordered pair is dialled
FLOWS = 16  # nodes: up to here every pair is measured
Pair = tuple[str, str]


def targets(nodes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Whom each node dials: all others, else those 1, 2, 4, 8, ... places before and after it."""
    count = len(nodes)
    if count <= ALL:
        return {node: tuple(other for other in nodes if other != node) for node in nodes}
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count]
    chosen = {}
    for place, node in enumerate(nodes):
        places = dict.fromkeys((place + sign * step) % count for step in steps for sign in (1, -1))
        chosen[node] = tuple(nodes[one] for one in places if one != place)
    return chosen


def matchings(nodes: tuple[str, ...]) -> tuple[tuple[Pair, ...], ...]:
    """Rounds of pairs in which nobody is twice: all pairs, else two rounds of neighbours."""
    if len(nodes) > FLOWS:
        first = tuple(zip(nodes[0::2], nodes[1::2], strict=False))
        ring = (*nodes[1:], nodes[0])
        return first, tuple(zip(ring[0::2], ring[1::2], strict=False))
    seats: list[str | None] = [*nodes, *((None,) if len(nodes) % 2 else ())]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        sides = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append(tuple((one, other) for one, other in sides if one and other))
        seats = [seats[0], seats[-1], *seats[1:-1]]  # the circle method: one stays, the others move on
    return tuple(rounds)


def sampled(nodes: tuple[str, ...]) -> str:
    """What the user is told of pairs that were left out; empty if there are none."""
    count = len(nodes)
    if count <= ALL:
        return ""
    dialled = sum(len(others) for others in targets(nodes).values())
    return (
        f"ports: of {count} nodes each has dialled the {len(targets(nodes)[nodes[0]])} that are 1, 2, 4, 8, ... "
        f"places before and after it in the hostfile: {dialled} of {count * (count - 1)} pairs"
    )
