"""How long `clusterft --help` takes against an empty Python, and what it imports on the way."""

from __future__ import annotations

import subprocess
import sys
import time

from _figures import Figure, main, ratio

HEAVY = ("torch", "paramiko", "docker", "rich.markdown")
# Asked of the interpreter at exit, so that every import of the command is counted, late ones too.
PROBE = (
    "import atexit, sys\n"
    f"atexit.register(lambda: sys.stderr.write(','.join(m for m in {HEAVY!r} if m in sys.modules)))\n"
    "from clusterft.__main__ import main\n"
    "sys.argv = ['clusterft', '--help']\n"
    "sys.exit(main())\n"
)


def seconds(argv: list[str]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Interleaved runs of both commands."""
    rounds = 3 if quick else 31
    ours, baseline = [], []
    for _ in range(rounds):
        baseline.append(seconds([sys.executable, "-c", "pass"]))
        ours.append(seconds([sys.executable, "-m", "clusterft", "--help"]))
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    heavy = [module for module in probe.stderr.split(",") if module]
    figures = ratio("help", ours, baseline, target=8.0)
    figures.append(Figure("help.heavy_imports", len(heavy), "modules", 0, not heavy))
    return figures, {"rounds": rounds, "heavy": heavy}


if __name__ == "__main__":
    sys.exit(main("startup", measure))
