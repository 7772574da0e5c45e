"""An image to six nodes against one, and against `docker save | ssh docker load` to each, on links of one rate.

Every link is shaped by tbf: each node's, both ways, and the controller's own to all of them. The rate is chosen
from what a load costs here, so that the transfer takes at least ten times the CPU time of a load. Bytes are those
that the kernel counts on the controller's end of the lab's network: with SSH, TCP and Ethernet around them, and
those sent again. The baseline runs in the same rounds, to one node and to all of them at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from _figures import Figure, main

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]

from shipping import MIB, Harbour, Made, layer, made  # noqa: E402 - it lies beside the tests

from clusterft import ship  # noqa: E402
from clusterft.remote.local import LocalRemote  # noqa: E402
from lab import FullLab  # noqa: E402
from lab.engine import docker  # noqa: E402

NODES = 6
TIMES_A_LOAD = 30  # at least 10 is asked; but here six nodes share the cores that each would have of its own


class Yard:
    """The lab, its rate, and the controller's end of its network."""

    def __init__(self, lab: FullLab) -> None:
        self.lab = lab
        self.harbour = Harbour(lab)
        self.names = [node.name for node in lab.nodes]
        self.bridge = "br-" + docker("network", "inspect", "--format", "{{.Id}}", lab.prefix)[:12]

    def sent(self) -> int:
        """Bytes that the controller has sent to nodes."""
        return int(Path(f"/sys/class/net/{self.bridge}/statistics/tx_bytes").read_text())

    def throttle(self, kbit: int) -> None:
        """Shape every link, the controller's too."""
        for node in self.lab.nodes:
            node.throttle(f"{kbit}kbit")
        words = f"tc qdisc replace dev {self.bridge} root tbf rate {kbit}kbit burst 64kb latency 100ms"
        image = self.lab.nodes[0].image
        docker("run", "--rm", "--network=host", "--cap-add=NET_ADMIN", image, *words.split())

    def load_cpu(self, image: Made) -> float:
        """CPU seconds of one `docker load` on a node, before any link is shaped."""
        node = self.lab.nodes[0]
        save = subprocess.run(["docker", "save", image.reference], capture_output=True, check=True).stdout
        node.run(["sh", "-c", "mkdir -p /var/tmp/load"])
        ssh = ["ssh", "-F", str(self.lab.ssh_config), node.name]
        subprocess.run([*ssh, "cat >/var/tmp/load/image.tar"], input=save, check=True)
        ticks = "$(cut -d' ' -f14-17 /proc/$(cat /run/docker.pid)/stat | tr ' ' '+')"
        script = f"a=$(({ticks})); docker load -qi /var/tmp/load/image.tar >/dev/null; times | tail -n 1; "
        script += f"echo $(({ticks} - a)); rm -r /var/tmp/load"
        times, spent = node.run(["sh", "-c", script], timeout=120).stdout.split("\n")[:2]
        client = sum(60 * float(m) + float(s.rstrip("s")) for m, s in (t.split("m") for t in times.split()))
        return client + int(spent) / 100

    def clear(self, image: Made) -> None:
        """As if it had never been there."""
        for name in self.names:
            self.harbour.on(name, f"docker image rm -f {image.reference} >/dev/null 2>&1; docker image prune -f")

    def ours(self, image: Made, nodes: list[str], known: ship.ImageParts | None = None) -> tuple[float, int]:
        """(seconds, bytes that the controller sent) of one shipment, login not counted."""
        with self.harbour.fleet() as fleet:
            whole = self.harbour.convoy(fleet)
            targets = {name: whole.targets[name] for name in nodes}
            convoy = ship.Convoy(fleet, targets, whole.report)
            began, before = time.monotonic(), self.sent()
            done = ship.image(convoy, image.reference, ship.Origin(LocalRemote()), known)
            seconds, sent = time.monotonic() - began, self.sent() - before
        failed = [name for name in nodes if not isinstance(done.outcomes[name], tuple)]
        if failed or not all(self.harbour.has(name, image) for name in nodes):
            raise SystemExit(f"not all nodes have the image: {done}")
        return seconds, sent

    def by_hand(self, image: Made, nodes: list[str]) -> tuple[float, int]:
        """The same with a pipe to each node, all at once."""

        def one(name: str) -> None:
            line = f"docker save {image.reference} | ssh -F {self.lab.ssh_config} {name} docker load -q"
            subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, capture_output=True)

        began, before = time.monotonic(), self.sent()
        at_once([lambda name=name: one(name) for name in nodes])  # type: ignore[misc]
        seconds, sent = time.monotonic() - began, self.sent() - before
        if not all(self.harbour.has(name, image) for name in nodes):
            raise SystemExit("by hand, not all nodes got the image")
        return seconds, sent


def at_once(work: list[Callable[[], None]]) -> None:
    """All of it, each in a thread."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """Alternate ours and by hand; then the change of the last layer."""
    rounds, size = (1, 16 * MIB) if quick else (3, 64 * MIB)
    base = [layer("base", size * 3 // 4, "base"), layer("libraries", size // 4, "libraries")]
    code = layer("code", 2 * MIB, "one")
    tables: dict[str, list[tuple[float, int]]] = {}
    changed_sent = []
    with FullLab.up(count=NODES) as lab, made("clusterft-bench:ship", [*base, code]) as image:
        yard = Yard(lab)
        with yard.harbour.fleet():
            pass  # the relays are given before the links are slow
        costs = []
        for _ in range(3):
            costs.append(yard.load_cpu(image))
            yard.clear(image)
        cpu = statistics.median(costs)
        kbit = int(image.size * 8 / 1000 / (cpu * TIMES_A_LOAD))
        yard.throttle(kbit)
        ways = {"ours": yard.ours, "by_hand": yard.by_hand}
        for number in range(rounds):
            for name, way in ways.items():
                for nodes in ([yard.names[0]], yard.names):
                    yard.clear(image)
                    tables.setdefault(f"{name}_{len(nodes)}", []).append(way(image, nodes))
            yard.clear(image)
            yard.ours(image, yard.names)
            with made("clusterft-bench:changed", [*base, layer("code", 2 * MIB, number)]) as changed:
                changed_sent.append(yard.ours(changed, yard.names)[1])
                yard.clear(changed)
    return figures(tables, changed_sent, image.size, len(code)), {
        "nodes": NODES,
        "rounds": rounds,
        "image_bytes": image.size,
        "changed_layer_bytes": len(code),
        "rate_kbit": kbit,
        "load_cpu_seconds": round(cpu, 3),
        "transfer_over_load_cpu": round(image.size * 8 / 1000 / kbit / cpu, 1),
    }


def figures(tables: dict[str, list[tuple[float, int]]], changed: list[int], size: int, code: int) -> list[Figure]:
    """Medians of the rounds, and the ratios that were promised."""
    seconds = {name: statistics.median(t for t, _ in runs) for name, runs in tables.items()}
    sent = {name: statistics.median(b for _, b in runs) for name, runs in tables.items()}
    six, one = f"ours_{NODES}", "ours_1"
    hand = f"by_hand_{NODES}"
    found = [Figure(f"seconds.{name}", round(value, 2), "s") for name, value in seconds.items()]
    for name, value, target in (
        ("time.six_over_one", seconds[six] / seconds[one], 1.5),
        ("bytes.controller_over_image", sent[six] / size, 1.1),
        ("bytes.changed_layer", statistics.median(changed) / code, 1.2),
        ("time.over_by_hand", seconds[six] / seconds[hand], None),
        ("bytes.over_by_hand", sent[six] / sent[hand], None),
        ("time.one_over_by_hand_one", seconds[one] / seconds["by_hand_1"], None),
    ):
        met = None if target is None else value <= target
        found.append(Figure(name, round(value, 3), "x", target, met))
    return found


if __name__ == "__main__":
    sys.exit(main("ship", measure))
