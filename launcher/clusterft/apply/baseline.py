"""What `doctor --deep` measured on a cluster before: a few figures of each group, in the controller's own files.

Owns how many are kept, and that a bad day does not become the measure of the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from clusterft.apply import settings
from clusterft.checks.work import acceptance
from clusterft.errors import UsageError
from clusterft.facts import deep
from clusterft.facts.deep import Deep
from clusterft.places import ClusterPlaces

SCHEMA = 1
_KEPT = 5  # figures of each group
_FEW = 512  # groups
Figures = Mapping[str, tuple[float, ...]]


def load(where: ClusterPlaces) -> dict[str, tuple[float, ...]]:
    """What is remembered; nothing before the first time. UsageError for what this version does not write."""
    try:
        body = json.loads(where.baseline.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA:
            raise ValueError(f"schema {body['schema']}")
        return {str(key): tuple(float(one) for one in known) for key, known in body["figures"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"rm {where.baseline}   and the next doctor --deep begins a new one"
        raise UsageError(f"cannot be read: {error!r}", where=str(where.baseline), remedy=remedy) from None


def remember(where: ClusterPlaces, seen: Deep) -> None:
    """Add what this look measured."""
    figures = merged(load(where), seen)
    if figures:
        settings.write(where.baseline, json.dumps({"schema": SCHEMA, "figures": figures}, indent=1) + "\n")


def merged(before: Figures, seen: Deep) -> dict[str, list[float]]:
    """The newest few of each; what has clearly fallen is not taken for usual. Pure."""
    figures = {key: list(known) for key, known in before.items()}
    for key, figure in measured(seen).items():
        earlier = figures.pop(key, [])
        kept = [] if acceptance.fallen(figure, earlier, seen.backend) else [round(figure, 5)]
        figures[key] = [*earlier, *kept][-_KEPT:]
    return dict(list(figures.items())[-_FEW:])


def measured(seen: Deep) -> dict[str, float]:
    """Of each group the best try; not of those that are slow."""
    found: dict[str, float] = {}
    _, slow = acceptance.judged(seen)
    for one in seen.groups:
        if one.busbw is not None and one.kind != "part" and not (one.kind == "pair" and one.nodes in slow):
            key = deep.key(one.kind, one.nodes, seen.backend)
            found[key] = max(found.get(key, 0.0), one.busbw)
    return found
