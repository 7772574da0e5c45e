"""Who tries whom in the port matrix: every pair of a small cluster, O(n log n) pairs of a large one. Pure.

Owns no clock and no chance: the same nodes are always paired in the same way, and what was left out is said.
"""

from __future__ import annotations

from clusterft.probing import rounds

ALL = 32  # nodes: up to here every ordered pair is dialled
FLOWS = 16  # nodes: up to here every pair is measured
Pair = tuple[str, ...]


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


def matchings(nodes: tuple[str, ...]) -> list[list[Pair]]:
    """Rounds of pairs in which nobody is twice: all pairs, else two rounds of neighbours."""
    if len(nodes) > FLOWS:
        return [rounds.neighbours(nodes), rounds.neighbours((*nodes[1:], nodes[0]))]
    return rounds.every(nodes)


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
