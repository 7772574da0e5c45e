"""How long `clusterft doctor` takes on 8 nodes, and what it costs more on 64 nodes than on 16.

All on one lab of 64 light nodes, of which a hostfile names some; the runs alternate. Each is a process of its own
with a job, so that ports and the shared dir are tried. CPU seconds are the controller's; the wall time holds the
nodes' work too, as they are on the same machine. A node's share on 64 nodes over that on 16: 1.0 is linear.
Needs a light lab: root on Linux.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _figures import Figure, main

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]

from doctoring import Desk  # noqa: E402 - the lab lies in tests/

from lab import LightLab  # noqa: E402


@dataclass(frozen=True)
class Cost:
    """What one doctor took."""

    seconds: float
    cpu: float
    above_info: int


def cost(desk: Desk, *options: str) -> Cost:
    """As typed, to the end."""
    argv = [
        sys.executable,
        "-m",
        "clusterft",
        "doctor",
        "--hosts",
        str(desk.hosts),
        "--job",
        str(desk.job),
        "--json",
    ]
    with tempfile.TemporaryFile("w+") as answer:
        began = time.monotonic()
        process = subprocess.Popen(
            [*argv, *options], stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.DEVNULL, env=desk.env
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        answer.seek(0)
        said = json.load(answer)
    found = [one for one in said["checks"] if one["status"] in ("fail", "warn")]
    for one in found:
        sys.stderr.write(f"{len(said['checks'])} checks: {one['id']} {one['nodes']} {one['summary']}\n")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, len(found))


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Bring the nodes up, alternate, take them down."""
    most, rounds = (16, 1) if quick else (64, 3)
    few = most // 4
    with LightLab.up(count=most) as lab, tempfile.TemporaryDirectory(prefix="clusterft-doctor-") as place:
        lines = lab.hostfile.read_text().splitlines()
        named = [line for line in lines if line.startswith("n")]
        desks = {
            count: Desk(lab, Path(place, str(count)), hosts="\n".join(named[:count]) + "\n")
            for count in sorted({8, few, most})
        }
        costs: dict[str, list[Cost]] = {}
        for _ in range(rounds):
            costs.setdefault("quick", []).append(cost(desks[8], "--quick"))
            for count, desk in desks.items():
                costs.setdefault(str(count), []).append(cost(desk))
    figures = [
        *_bounded("quick_on_8", [one.seconds for one in costs["quick"]], 10.0),
        *_bounded("usual_on_8", [one.seconds for one in costs["8"]], 60.0),
    ]
    for name, pick in (("cpu", "cpu"), ("wall", "seconds")):
        on_few, on_most = (
            statistics.median(getattr(one, pick) for one in costs[str(count)]) for count in (few, most)
        )
        share = on_most / on_few / (most / few)
        figures += [
            Figure(f"{name}.on_{few}", round(on_few, 2), "s"),
            Figure(f"{name}.on_{most}", round(on_most, 2), "s"),
            Figure(f"{name}.a_nodes_share", round(share, 3), "x", 1.2, share <= 1.2),
        ]
    false_alarms = sum(one.above_info for each in costs.values() for one in each)
    figures.append(Figure("findings_on_healthy_nodes", false_alarms, "", 0, false_alarms == 0))
    return figures, {"nodes": [8, few, most], "rounds": rounds, "load": round(os.getloadavg()[0], 1)}


def _bounded(name: str, seconds: list[float], target: float) -> list[Figure]:
    """The median, and the worst against its upper bound."""
    worst = max(seconds)
    return [
        Figure(f"{name}.median", round(statistics.median(seconds), 2), "s"),
        Figure(f"{name}.worst", round(worst, 2), "s", target, worst <= target),
    ]


if __name__ == "__main__":
    sys.exit(main("doctor", measure))
