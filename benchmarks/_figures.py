"""How a benchmark speaks: named figures with targets, one JSON line or a small table, and the settings used."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number; target is an upper bound, or None where there is none."""

    name: str
    value: float
    unit: str
    target: float | None = None
    met: bool | None = None


def ratio(name: str, ours: list[float], baseline: list[float], target: float) -> list[Figure]:
    """Medians of interleaved runs, and their ratio against its upper bound."""
    value = statistics.median(ours) / statistics.median(baseline)
    return [
        Figure(f"{name}.ours", round(statistics.median(ours), 4), "s"),
        Figure(f"{name}.baseline", round(statistics.median(baseline), 4), "s"),
        Figure(f"{name}.ratio", round(value, 3), "x", target, value <= target),
    ]


def main(name: str, measure: Callable[[bool], tuple[list[Figure], dict[str, object]]]) -> int:
    """Parse --json and --quick, measure, print; exit 0 when it could measure, whatever it measured."""
    parser = argparse.ArgumentParser(description=f"benchmark {name}")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round, figures mean little")
    options = parser.parse_args()
    figures, settings = measure(options.quick)
    settings |= {"quick": options.quick, "python": platform.python_version(), "machine": platform.machine()}
    if options.json:
        body = {"benchmark": name, "figures": [asdict(f) for f in figures], "settings": settings}
        print(json.dumps(body), flush=True)
        return 0
    for figure in figures:
        target = (
            "" if figure.target is None else f"  target {figure.target:g}  {'met' if figure.met else 'MISSED'}"
        )
        print(f"{figure.name:<28} {figure.value:>10.4f} {figure.unit}{target}")
    return 0
