"""Facts of 64 nodes: ours in a fresh process, against clush running the same probe text on the same nodes.

Both sides alternate. CPU seconds are the controller's: the process and all its children. `ansible -m setup`
gathers other facts in another way; it is measured once, for the record. Needs a light lab: root on Linux.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _figures import Figure, main, ratio

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from clusterft import facts  # noqa: E402 - the lab lies in tests/
from lab import LightLab  # noqa: E402

WORD = "fanout0123456789"
TOOLS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clusterft-benchmarks"
OURS = """\
import sys
from pathlib import Path
from clusterft import facts, hosts
from clusterft.fleet import Fleet

with Fleet(hosts.load(Path(sys.argv[1])), Path(sys.argv[2])) as fleet:
    survey = fleet.survey(lambda node: (facts.HOME,))
print(len(survey.facts), survey.unreached)
"""


@dataclass(frozen=True)
class Cost:
    """What one process and its children took."""

    seconds: float
    cpu: float
    peak_mb: float
    out: str


def cost(argv: list[str], given: str, home: Path) -> Cost:
    """Run to the end with this text on stdin, in a home without keys or settings of the person's own."""
    environ = {**os.environ, "HOME": str(home)}
    environ.pop("SSH_AUTH_SOCK", None)
    with tempfile.TemporaryFile("w+") as question, tempfile.TemporaryFile("w+") as answer:
        question.write(given)
        question.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(argv, stdin=question, stdout=answer, stderr=subprocess.STDOUT, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        answer.seek(0)
        out = answer.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} ended with {process.returncode}:\n{out[-3000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out)


def tool(package: str, program: str) -> Path | None:
    """A program from a package index, in a virtual environment that is kept; None if it cannot be had."""
    place = TOOLS / package
    if not (place / "bin" / program).exists():
        venv.create(place, with_pip=True, clear=True)
        done = subprocess.run(
            [place / "bin" / "pip", "install", "--quiet", package], capture_output=True, text=True
        )
        if done.returncode:
            sys.stderr.write(f"{package} cannot be installed: {done.stderr.strip()[-300:]}\n")
            return None
    return place / "bin" / program


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Bring the nodes up, alternate, take them down."""
    count, rounds = (8, 1) if quick else (64, 5)
    clush = tool("clustershell", "clush")
    if clush is None:
        raise SystemExit("without clush there is nothing to compare with")
    with LightLab.up(count=count) as lab, tempfile.TemporaryDirectory(prefix="clusterft-fanout-") as directory:
        home = Path(directory)
        (home / ".ssh").mkdir()
        (home / ".ssh" / "config").write_text(lab.ssh_config.read_text())  # both sides know the same of the nodes
        probe = facts.script(WORD, peers=tuple(node.address for node in lab.nodes), disks=(facts.HOME,))
        names = ",".join(node.name for node in lab.nodes)

        def ours() -> Cost:
            done = cost([sys.executable, "-c", OURS, str(lab.hostfile), str(lab.known_hosts)], "", home)
            if done.out.split() != [str(count), "()"]:
                raise SystemExit(f"not all nodes answered: {done.out}")
            return done

        def theirs() -> Cost:
            argv = [str(clush), "-f", str(count), "-w", names, "-o", f"-F {lab.ssh_config}", "sh"]
            done = cost(argv, probe, home)
            if done.out.count(WORD) < count:
                raise SystemExit(f"not all nodes answered: {done.out[-2000:]}")
            return done

        mine, baseline = alternate(ours, theirs, rounds)
        figures = compare(mine, baseline, count)
        if not quick:
            figures += record(lab, home, count)
    return figures, {"nodes": count, "rounds": rounds, "probe_bytes": len(probe)}


def alternate(ours: Callable[[], Cost], theirs: Callable[[], Cost], rounds: int) -> tuple[list[Cost], list[Cost]]:
    """One of each to warm the page cache for both, then in turn."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return [one for one, _ in pairs], [two for _, two in pairs]


def compare(mine: list[Cost], baseline: list[Cost], count: int) -> list[Figure]:
    """The figures of the issue."""
    per_node = [one.cpu / count for one in mine], [one.cpu / count for one in baseline]
    peak = statistics.median(one.peak_mb for one in mine)
    return [
        *ratio("wall", [one.seconds for one in mine], [one.seconds for one in baseline], target=1.15),
        *ratio("cpu_per_node", *per_node, target=0.25),
        Figure("controller_memory", round(peak, 1), "MB", 150, peak <= 150),
    ]


def record(lab: LightLab, home: Path, count: int) -> list[Figure]:
    """ansible, if it can be had: no target."""
    ansible = tool("ansible-core", "ansible")
    if ansible is None:
        return []
    inventory = home / "inventory"
    inventory.write_text("".join(f"{node.name}\n" for node in lab.nodes))
    python = "ansible_python_interpreter=/usr/bin/python3"
    argv = [str(ansible), "all", "-i", str(inventory), "-m", "setup", "-f", "32", "-e", python]
    done = cost([*argv, "--ssh-common-args", f"-F {lab.ssh_config}"], "", home)
    if done.out.count("SUCCESS") < count:
        raise SystemExit(f"ansible did not reach all nodes: {done.out[-2000:]}")
    return [
        Figure("ansible.wall", round(done.seconds, 3), "s"),
        Figure("ansible.cpu_per_node", round(done.cpu / count, 4), "s"),
    ]


if __name__ == "__main__":
    sys.exit(main("fanout", measure))
