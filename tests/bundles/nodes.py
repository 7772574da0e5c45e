"""What the scenarios are made of: nodes of this machine, launchers on them, and the register of scenarios."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = sys.executable
IMAGE = "debian:trixie-slim"


@dataclass
class Run:
    """One failing run and what is kept of it."""

    place: Path
    port: int
    begun: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def node(
        self, name: str, argv: Sequence[str], *, log: str = "", before: str = ":", **env: str
    ) -> subprocess.Popen[bytes]:
        """Start a command on a node; both its streams go into one log, as a terminal or nohup would have them."""
        whole = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("CLUSTERFT", "SSH"))},
            **{
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONUNBUFFERED": "1",
                "DS_ACCELERATOR": "cpu",
            },
            **{"TORCH_EXTENSIONS_DIR": str(Path.home() / ".cache/clusterft-lab/torch_extensions")},
            **{
                "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "200",
            },
            **env,
        }
        hosts = self.place / "hosts"
        hosts.write_text("127.0.0.1 localhost n1 n2 n3\n")
        script = f'hostname "$0"; mount --bind {hosts} /etc/hosts; {before}; exec "$@"'
        words = [
            "nice",
            "-n",
            "15",
            "unshare",
            "--uts",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            name,
        ]
        with (self.place / (log or f"{name}.log")).open("ab") as out:
            process = subprocess.Popen(
                [*words, *argv],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=whole,
                cwd=self.place,
                start_new_session=True,
            )
        self.begun.append(process)
        return process

    def wait(self, seconds: float = 150) -> None:
        """Until all have ended; whoever has not is ended."""
        deadline = time.monotonic() + seconds
        for process in self.begun:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.begun:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)

    def until(self, text: str, log: str, seconds: float = 90) -> None:
        """Until a log holds a text."""
        deadline = time.monotonic() + seconds
        while text not in (self.place / log).read_text(errors="replace"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r} in {log}")
            time.sleep(0.1)


def torchrun(
    run: Run, node: int, *, nodes: int = 2, ranks: int = 1, script: str = "loop.py", more: Sequence[str] = ()
) -> list[str]:
    """The command of one node."""
    meet = ["--master_addr", "127.0.0.1", "--master_port", str(run.port)]
    return [
        *[PYTHON, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--node_rank", str(node)],
        *["--nproc_per_node", str(ranks), *meet, *more, str(HERE / script)],
    ]


def both(
    run: Run, *, ranks: int = 1, more: Sequence[str] = (), seconds: float = 150, before: str = ":", **env: str
) -> None:
    """The loop by torchrun on two nodes, to the end."""
    for place, name in enumerate(("n1", "n2")):
        run.node(name, torchrun(run, place, ranks=ranks, more=more), before=before, **env)
    run.wait(seconds)


def deepspeed(run: Run, node: int, *words: str, ranks: int = 1, script: str = "ds.py") -> list[str]:
    """DeepSpeed's launcher on one of two nodes, without its own ssh."""
    (run.place / "hostfile").write_text(f"n1 slots={ranks}\nn2 slots={ranks}\n")
    return [
        *[PYTHON, "-m", "deepspeed.launcher.runner", "--no_ssh", f"--node_rank={node}", "--hostfile=hostfile"],
        *["--master_addr=127.0.0.1", f"--master_port={run.port}", str(HERE / script), *words],
    ]


def accelerate(run: Run, node: int, *, ranks: int = 2, kind: str = "MULTI_GPU") -> list[str]:
    """accelerate's launcher on one of two nodes; `ranks` in all. Without cards too, MULTI_GPU starts them all."""
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "machine_rank": node,
        "main_process_ip": "127.0.0.1",
        "main_process_port": run.port,
        "mixed_precision": "no",
        "num_machines": 2,
        "num_processes": ranks,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": kind == "MULTI_CPU",
    }
    path = run.place / f"accelerate-{node}.yaml"
    path.write_text(json.dumps(config))
    return [PYTHON, "-m", "accelerate.commands.launch", "--config_file", str(path), str(HERE / "loop.py")]


@dataclass(frozen=True)
class Scenario:
    """One fault: how it is made, and what doctor must say."""

    how: str
    id: str
    node: str
    rank: int | None
    make: Callable[[Run], None]
    verdict: str = "failed"
    log: str = ""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    how: str, id: str, node: str = "", rank: int | None = None, verdict: str = "failed"
) -> Callable[[Callable[[Run], None]], None]:
    """Register one."""

    def keep(make: Callable[[Run], None]) -> None:
        SCENARIOS[make.__name__.replace("_", "-")] = Scenario(how, id, node, rank, make, verdict)

    return keep
