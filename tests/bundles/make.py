"""Makes the log bundles of tests/bundles by really failing runs: on CPUs, with gloo, on "nodes" of this machine.

    python tests/bundles/make.py            those that are missing
    python tests/bundles/make.py NAME ...   these, anew
    python tests/bundles/make.py --notes    their note.json alone

A node is a UTS and mount namespace, so each has its hostname and its own /dev/shm; root on Linux is needed. Paths
of this machine are written as /opt/venv, /opt/python and /data. What takes hardware that is not here is
transcribed in transcribed.py from texts that their authors or users have published.

Each bundle is a folder: logs, and note.json with how it came about and what doctor must say of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = sys.executable
IMAGE = "debian:trixie-slim"
_MOST = 28_000  # bytes of a bundle
_HEAD, _TAIL = 40, 140  # lines that are kept of a longer log


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


# -- killed, crashed, failed by an exception -----------------------------------------------------


@scenario("torchrun, 2 nodes x 2 ranks; rank 2 is ended by SIGKILL in step 4", "killed", "n2", 2)
def killed_rank(run: Run) -> None:
    both(run, ranks=2, FAULT="kill", FAULT_RANK="2")


@scenario("torchrun, 2 nodes x 1; rank 1 reads a null pointer", "crash", "n2", 1)
def segfault(run: Run) -> None:
    both(run, FAULT="segv", FAULT_RANK="1")


@scenario("torchrun, 2 nodes x 2; rank 3 raises KeyError in step 4", "exception", "n2", 3)
def exception_in_one_rank(run: Run) -> None:
    both(run, ranks=2, FAULT="exception", FAULT_RANK="3", STYLE="timed")


@scenario("torchrun, 2 nodes x 1; rank 0, host of the store, raises KeyError", "exception", "n1", 0)
def exception_on_rank_zero(run: Run) -> None:
    both(run, FAULT="exception", FAULT_RANK="0")


@scenario("torchrun --tee 3, 2 nodes x 1; rank 1 finds its loss to be NaN", "nan", "n2", 1)
def nan_on_one_rank(run: Run) -> None:
    both(
        run,
        more=["--tee", "3", "--log_dir", str(run.place / "elastic")],
        FAULT="nan",
        FAULT_RANK="1",
        STYLE="timed",
    )
    shutil.rmtree(run.place / "elastic")


@scenario("torchrun, 2 nodes x 1; a module is not installed on n2", "exception", "n2", 1)
def import_error_on_one_node(run: Run) -> None:
    both(run, FAULT="import", FAULT_RANK="1", TIMEOUT="12")


@scenario(
    "torchrun, 2 nodes x 1; settings.json of n2 says learning-rate where n1's says learning_rate",
    "exception",
    "n2",
    1,
)
def typo_in_one_nodes_settings(run: Run) -> None:
    for place, (name, key) in enumerate((("n1", "learning_rate"), ("n2", "learning-rate"))):
        path = run.place / f"{name}.json"
        path.write_text(json.dumps({key: 1e-3, "hidden": 64}))
        run.node(name, torchrun(run, place), SETTINGS=str(path), TIMEOUT="12")
    run.wait()
    for name in ("n1", "n2"):
        (run.place / f"{name}.json").unlink()


@scenario("torchrun, 2 nodes x 1; rank 1 asks for more memory than its limit (RLIMIT_AS)", "os.oom", "n2", 1)
def memory_error(run: Run) -> None:
    both(run, FAULT="memory", FAULT_RANK="1", STYLE="timed")


@scenario("torchrun, 2 nodes x 1; rank 0 saves onto a tmpfs of 4 MB", "os.disk-full", "n1", 0)
def disk_full(run: Run) -> None:
    (run.place / "disk").mkdir()
    small = f"mount -t tmpfs -o size=4m small {run.place}/disk"
    for place, name in enumerate(("n1", "n2")):
        run.node(name, torchrun(run, place), before=small, SAVE=str(run.place / "disk" / "last.pt"), STYLE="timed")
    run.wait()
    (run.place / "disk").rmdir()


@scenario(
    "torchrun, 2 nodes x 1; /dev/shm of n2 has 1 MB, and the loader's workers pass pictures through it",
    "os.shm",
    "n2",
    1,
)
def shm_full(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        small = f"mount -t tmpfs -o size={'1m' if place else '200m'} shm /dev/shm"
        run.node(name, torchrun(run, place), before=small, WORKERS="1", PIXELS="400000")
    run.wait()


@scenario(
    "torchrun, 2 nodes x 1; one picture of rank 1 is truncated, a loader's worker says so", "exception", "n2", 1
)
def broken_picture_in_a_worker(run: Run) -> None:
    both(run, FAULT="picture", FAULT_RANK="1", WORKERS="1")


# -- hangs ---------------------------------------------------------------------------------------


@scenario(
    "torchrun, 2 nodes x 2; rank 2 sleeps, the others wait in all_reduce until gloo's timeout",
    "run.watchdog",
    "n2",
    2,
)
def stalled_rank(run: Run) -> None:
    both(run, ranks=2, FAULT="stall", FAULT_RANK="2", TIMEOUT="8", seconds=45)


@scenario("torchrun, 2 nodes x 2; monitored_barrier names rank 3", "run.watchdog", "n2", 3)
def monitored_barrier(run: Run) -> None:
    both(run, ranks=2, FAULT="barrier", FAULT_RANK="3", TIMEOUT="6", seconds=45)


@scenario(
    "torchrun, 2 nodes x 2, TORCH_DISTRIBUTED_DEBUG=DETAIL; rank 3 calls broadcast, the others all_reduce",
    "run.watchdog",
    "n2",
    3,
)
def mismatch_of_collectives(run: Run) -> None:
    both(
        run, ranks=2, FAULT="mismatch", FAULT_RANK="3", TIMEOUT="10", seconds=60, TORCH_DISTRIBUTED_DEBUG="DETAIL"
    )


# -- rendezvous ----------------------------------------------------------------------------------


@scenario("torchrun, n1's port is held by another program", "rdzv.inuse", "n1", None)
def rendezvous_port_in_use(run: Run) -> None:
    with socket.socket() as held:
        held.bind(("0.0.0.0", run.port))
        held.listen()
        run.node("n1", torchrun(run, 0), TORCH_CPP_LOG_LEVEL="INFO")
        run.wait(60)


@scenario(
    "torchrun, 3 nodes are expected, n3 never comes; every rank's store waits 20 s", "rdzv.partial", "", None
)
def missing_node(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        argv = [PYTHON, "-c", STORE.format(port=run.port)]
        run.node(name, argv, RANK=str(place), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(run.port))
    run.wait(60)


STORE = """
import datetime, os, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=15))
"""


@scenario("torchrun, n2 has a wrong --master_addr (an address that nobody has)", "net.master-port", "n2", None)
def wrong_master_address(run: Run) -> None:
    argv = [PYTHON, "-c", STORE.format(port=run.port)]
    common = {"WORLD_SIZE": "2", "MASTER_PORT": str(run.port)}
    run.node("n1", argv, RANK="0", MASTER_ADDR="127.0.0.1", **common)
    run.node("n2", argv, RANK="1", MASTER_ADDR="192.0.2.9", **common)
    run.wait(90)


@scenario("torchrun, n2's --master_addr is a name that does not resolve", "rdzv.dns", "n2", None)
def unresolvable_master(run: Run) -> None:
    argv = [PYTHON, "-c", STORE.format(port=run.port)]
    common = {"WORLD_SIZE": "2", "MASTER_PORT": str(run.port)}
    run.node("n1", argv, RANK="0", MASTER_ADDR="127.0.0.1", **common)
    run.node("n2", argv, RANK="1", MASTER_ADDR="gpu-head.invalid", **common)
    run.wait(90)


# -- DeepSpeed -----------------------------------------------------------------------------------


@scenario("deepspeed, 2 nodes x 1; rank 1 is ended by SIGKILL in step 3", "killed", "n2", 1)
def deepspeed_killed(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, deepspeed(run, place, "--kill", "1"))
    run.wait(120)


@scenario("deepspeed, 2 nodes x 1; train_batch_size is not micro x accumulation x ranks", "job.batch", "n1", 0)
def deepspeed_batch(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, deepspeed(run, place, "--batch", "5"))
    run.wait(120)


@scenario("deepspeed, 2 nodes x 1; told to resume, the folder has no file `latest`", "ckpt.latest", "n1", None)
def deepspeed_latest(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, deepspeed(run, place, "--resume"), STRICT="1")
    run.wait(120)


@scenario("deepspeed, a checkpoint of 2 ranks is resumed by 1", "ckpt.world", "n1", 0)
def deepspeed_world(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, deepspeed(run, place, "--steps", "1"), log="before.out")
    run.wait(120)
    (run.place / "before.out").unlink()
    run.begun.clear()
    (run.place / "one").write_text("n1 slots=1\n")
    argv = [
        one.replace("--hostfile=hostfile", "--hostfile=one")
        for one in deepspeed(run, 0, "--resume", "--batch", "2")
    ]
    run.node("n1", argv)
    run.wait(120)


@scenario("deepspeed with a hostfile that is not there", "job.hostfile", "n1", None)
def deepspeed_hostfile(run: Run) -> None:
    argv = [
        one.replace("--hostfile=hostfile", "--hostfile=hostfile.txt") for one in deepspeed(run, 0, "--batch", "3")
    ]
    argv = [one for one in argv if one not in ("--no_ssh", "--node_rank=0")]
    run.node("n1", argv)
    run.wait(90)


@scenario("deepspeed over two nodes that it cannot log in to", "ssh.unreachable", "n1", None)
def deepspeed_ssh(run: Run) -> None:
    argv = [one for one in deepspeed(run, 0) if one not in ("--no_ssh", "--node_rank=0")]
    run.node("n1", argv)
    run.wait(90)


@scenario("deepspeed over two nodes where pdsh is not installed", "job.pdsh", "n1", None)
def deepspeed_pdsh(run: Run) -> None:
    argv = [one for one in deepspeed(run, 0) if one not in ("--no_ssh", "--node_rank=0")]
    run.node("n1", [*argv[:3], "--no_ssh_check", *argv[3:]])
    run.wait(90)


# -- the last third: made when the rules were written, and not touched for them ----------------------


@scenario(
    "torchrun, 2 nodes x 2; the terminals of both launchers are closed (SIGHUP to all), n1's first",
    "ctl.sighup",
    "n1",
)
def sighup_of_all(run: Run) -> None:
    signalled(run, signal.SIGHUP, "n1", "n2")


@scenario("torchrun, 2 nodes x 2; somebody presses Ctrl-C on n1", "interrupted", "n1", verdict="stopped")
def ctrl_c(run: Run) -> None:
    signalled(run, signal.SIGINT, "n1")


@scenario(
    "torchrun, 2 nodes x 2; n2's launcher and ranks get SIGTERM, as when an engine or a machine stops",
    "interrupted",
    "n2",
)
def sigterm_on_one_node(run: Run) -> None:
    signalled(run, signal.SIGTERM, "n2")


def signalled(run: Run, number: signal.Signals, *names: str) -> None:
    """Whole sessions of the loop get a signal in mid-run."""
    begun = {}
    for place, name in enumerate(("n1", "n2")):
        begun[name] = run.node(name, torchrun(run, place, ranks=2), STEPS="400", STYLE="timed")
    run.until("step 3/", "n1.log")
    for name in names:
        os.killpg(begun[name].pid, number)
        time.sleep(0.3)
    run.wait(60)


@scenario(
    "torchrun, 2 nodes x 1; all of n1, host of the store, vanishes (SIGKILL to its session)", "node-lost", "n1"
)
def store_host_dead(run: Run) -> None:
    signalled(run, signal.SIGKILL, "n1")


@scenario(
    "torchrun, 2 nodes x 1, n2 in a memory cgroup of 500 MB; rank 1 takes all; with n2's kernel log",
    "os.oom",
    "n2",
    1,
)
def killed_by_the_kernel(run: Run) -> None:
    group = Path("/sys/fs/cgroup/memory", f"clusterft-bundle-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(500 << 20))
        for place, name in enumerate(("n1", "n2")):
            join = f"echo $$ > {group}/cgroup.procs" if place else ":"
            run.node(name, torchrun(run, place), before=join, FAULT="swallow", FAULT_RANK="1", STYLE="timed")
        run.wait(90)
        dmesg(run, "n2", group.name)
    finally:
        run.end()
        group.rmdir()


def dmesg(run: Run, node: str, group: str) -> None:
    """What the kernel said of that group, as `dmesg -T` prints it."""
    said = subprocess.run(["dmesg", "-T"], capture_output=True, text=True, check=True).stdout.splitlines()
    begin = max(i for i, line in enumerate(said) if "oom-kill:" in line and group in line)
    (run.place / f"dmesg-{node}.txt").write_text(
        "\n".join(said[max(0, begin - 12) : begin + 3]).replace(group, "run") + "\n"
    )


@scenario("torchrun, 2 nodes x 1; rank 1 asks for a tensor of 256 TB", "os.oom", "n2", 1)
def tensor_too_large(run: Run) -> None:
    both(run, FAULT="tensor-memory", FAULT_RANK="1")


@scenario("torchrun, 2 nodes x 1; a data loader's worker of rank 1 is ended by SIGKILL", "killed", "n2", 1)
def worker_killed(run: Run) -> None:
    both(run, FAULT="worker-killed", FAULT_RANK="1", WORKERS="1", STYLE="timed")


@scenario("accelerate launch, 2 machines x 2; rank 3 raises KeyError", "exception", "n2", 3)
def accelerate_exception(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, accelerate(run, place, ranks=4), FAULT="exception", FAULT_RANK="3")
    run.wait(120)


@scenario(
    "accelerate launch for CPUs on 2 machines, which sets no RANK for a program of one's own", "exception", "n1"
)
def accelerate_sets_no_ranks(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, accelerate(run, place, kind="MULTI_CPU"))
    run.wait(120)


@scenario(
    "accelerate launch, 2 machines x 1; the main process's port is held by another program", "rdzv.inuse", "n1"
)
def accelerate_port_in_use(run: Run) -> None:
    with socket.socket() as held:
        held.bind(("0.0.0.0", run.port))
        held.listen()
        run.node("n1", accelerate(run, 0))
        run.wait(60)


@scenario(
    "two containers x 1 rank; n2's reaches its memory limit; docker logs -t and docker inspect", "os.oom", "n2"
)
def container_out_of_memory(run: Run) -> None:
    contained(run, FAULT="swallow", FAULT_RANK="1")


@scenario("two containers x 1 rank; `docker kill` ends n2's; docker logs -t and docker inspect", "killed", "n2")
def container_killed(run: Run) -> None:
    contained(run, STEPS="400")


def contained(run: Run, **env: str) -> None:
    """The loop in two containers on this machine's engine; what the engine has of them afterwards."""
    names = {name: f"{run.place.name}-{name}" for name in ("n1", "n2")}
    shown = [word for path in (str(ROOT), sys.base_prefix, *libraries()) for word in ("-v", f"{path}:{path}:ro")]
    docker = ["nice", "-n", "15", "docker"]
    try:
        for rank, container in enumerate(names.values()):
            whole = {
                "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(run.port),
                "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                "STYLE": "timed", **env,
            }  # fmt: skip
            given = [word for pair in whole.items() for word in ("-e", "=".join(pair))]
            limit = ["--memory", "500m", "--memory-swap", "500m", "--network", "host"]
            argv = [
                *docker,
                "run",
                "-d",
                "--name",
                container,
                *limit,
                *shown,
                *given,
                IMAGE,
                PYTHON,
                str(HERE / "loop.py"),
            ]
            subprocess.run(argv, check=True, capture_output=True)
        if "FAULT" not in env:
            deadline = time.monotonic() + 60
            while "step 3/" not in _docker("logs", names["n2"]) and time.monotonic() < deadline:
                time.sleep(0.3)
            _docker("kill", names["n2"])
        for name, container in names.items():
            _docker("wait", container)
            (run.place / f"{name}.log").write_text(_docker("logs", "-t", container))
            body = json.loads(_docker("inspect", container))[0]
            kept = {"Name": f"/clusterft-{name}", "State": body["State"], "RestartCount": body["RestartCount"]}
            (run.place / f"{name}.inspect.json").write_text(json.dumps([kept], indent=1))
    finally:
        for container in names.values():
            subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False)


def libraries() -> list[str]:
    """What this interpreter needs of the machine, and a slim image has not."""
    said = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    names = (
        "libffi.so",
        "libssl.so",
        "libcrypto.so",
        "libsqlite3.so.0",
        "libbz2.so.1",
        "liblzma.so.5",
        "libgomp.so",
    )
    found = [line.partition("=> ")[2].strip() for line in said.splitlines() if line.strip().startswith(names)]
    return [path for path in dict.fromkeys(found) if path.startswith(("/lib/x86", "/usr/lib/x86"))]


def _docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout + done.stderr


@scenario("deepspeed with pdsh over two nodes; .deepspeed_env has a blank line", "job.deepspeed-env", "n1")
def deepspeed_env_blank(run: Run) -> None:
    (run.place / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n\n")
    (run.place / "bin").mkdir()
    pdsh = run.place / "bin" / "pdsh"
    pdsh.write_text("#!/bin/sh\nexit 0\n")
    pdsh.chmod(0o755)
    argv = [one for one in deepspeed(run, 0) if one not in ("--no_ssh", "--node_rank=0")]
    path = f"{run.place}/bin:{Path(PYTHON).parent}:{os.environ['PATH']}"
    run.node("n1", [*argv[:3], "--no_ssh_check", *argv[3:]], PATH=path)
    run.wait(60)


@scenario("an operation for CUDA is built where there is no CUDA compiler", "run.cuda-home", "n1")
def cuda_home_missing(run: Run) -> None:
    text = "from torch.utils.cpp_extension import CUDAExtension\nCUDAExtension('fused', ['fused.cu'])\n"
    (run.place / "build.py").write_text(text)
    run.node("n1", [PYTHON, "build.py"], PATH="/usr/bin:/bin", CUDA_HOME="")
    run.wait(60)


@scenario(
    "torchrun, 2 nodes x 1; the checkpoint folder of rank 0 answers ESTALE (raised with the kernel's errno)",
    "fs.stale",
    "n1",
    0,
)
def stale_share(run: Run) -> None:
    both(run, FAULT="stale", FAULT_RANK="0", STYLE="timed")


@scenario(
    "torchrun, 2 nodes x 2, each in a container: `docker logs -t`; rank 1 raises KeyError", "exception", "n1", 1
)
def docker_logs_with_times(run: Run) -> None:
    stamp = (
        "import datetime, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=-1, stderr=-2)\n"
        "for row in child.stdout:\n"
        "    at = datetime.datetime.utcnow().isoformat() + '000Z '\n"
        "    sys.stdout.buffer.write(at.encode() + row)\n"
        "    sys.stdout.buffer.flush()\n"
        "sys.exit(child.wait())\n"
    )
    for place, name in enumerate(("n1", "n2")):
        argv = [PYTHON, "-W", "ignore", "-c", stamp, *torchrun(run, place, ranks=2)]
        run.node(name, argv, FAULT="exception", FAULT_RANK="1")
    run.wait(120)


@scenario("torchrun, 2 nodes x 1; rank 1 leaves with exit code 0 in mid-run, without a word", "peer-lost", "n2", 1)
def rank_that_leaves_quietly(run: Run) -> None:
    both(run, FAULT="exit", FAULT_RANK="1", STYLE="timed")


@scenario("deepspeed, 2 nodes x 1; rank 1 raises RuntimeError in step 3", "exception", "n2", 1)
def deepspeed_exception(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        run.node(name, deepspeed(run, place, "--fail", "1"))
    run.wait(120)


@scenario("python started by hand on 2 nodes; rank 0 raises KeyError", "exception", "n1", 0)
def by_hand(run: Run) -> None:
    for place, name in enumerate(("n1", "n2")):
        env = {"RANK": str(place), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(run.port)}
        run.node(name, [PYTHON, str(HERE / "loop.py")], FAULT="exception", FAULT_RANK="0", **env)
    run.wait(60)


@scenario("torchrun, c10d and one restart, 2 nodes x 1; rank 1 raises KeyError each time", "exception", "n2", 1)
def elastic_restart(run: Run) -> None:
    meet = [
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        f"127.0.0.1:{run.port}",
        "--rdzv_id",
        "7",
        "--max_restarts",
        "1",
    ]
    for name in ("n1", "n2"):
        argv = [
            PYTHON,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc_per_node",
            "1",
            *meet,
            str(HERE / "loop.py"),
        ]
        run.node(name, argv, FAULT="exception", FAULT_RANK="1")
        time.sleep(3)  # so that n1 comes first, and has rank 0
    run.wait(90)


@scenario("torchrun on 2 light lab nodes; n1 drops what comes to the rendezvous port", "net.master-port", "n2")
def filtered_port(run: Run) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from lab import LightLab

    with LightLab.up(count=2) as lab:
        one, two = lab.nodes
        one.block_port(29500, action="drop")
        argv = ["sh", "-c", f"GLOO_SOCKET_IFNAME=lo MASTER_PORT=29500 MASTER_ADDR={one.address} WORLD_SIZE=2 "]
        begun = []
        for rank, node in enumerate((one, two)):
            line = argv[2] + f"RANK={rank} {PYTHON} -c '{STORE.strip()}'".replace("\n", ";")
            begun.append((node.name, threaded(node, ["sh", "-c", line])))
        for name, answer in begun:
            done = answer.result(120)
            (run.place / f"{name}.log").write_text(
                (done.stdout + done.stderr).replace(one.address, "192.168.7.11")
            )


def threaded(node: object, argv: list[str]) -> Any:
    """A command on a lab node, in the background."""
    pool = ThreadPoolExecutor(1)
    return pool.submit(node.run, argv, timeout=110)  # type: ignore[attr-defined]


@scenario(
    "clusterft train, a script on 2 nodes x 2; rank 2 is ended by SIGKILL; the run's folder", "killed", "n2", 2
)
def our_run_killed(run: Run) -> None:
    trained(run, FAULT="kill", FAULT_RANK="2")


@scenario(
    "clusterft train, a script on 2 nodes x 2; rank 3 raises KeyError; the run's folder", "exception", "n2", 3
)
def our_run_exception(run: Run) -> None:
    trained(run, FAULT="exception", FAULT_RANK="3")


@scenario(
    "clusterft train, a script on 2 nodes x 2; rank 1 sleeps until gloo's timeout; the run's folder",
    "run.watchdog",
    "n1",
    1,
)
def our_run_stalled(run: Run) -> None:
    trained(run, FAULT="stall", FAULT_RANK="1", TIMEOUT="8")


def trained(run: Run, **env: str) -> None:
    """By clusterft itself, on nodes that are both this machine; what its run leaves in the shared dir."""
    (run.place / "hostfile.txt").write_text("n1 slots=2 transport=local\nn2 slots=2 transport=local\n")
    (run.place / "code").mkdir()
    shutil.copy(HERE / "loop.py", run.place / "code")
    body = {
        "name": "own", "hosts": str(run.place / "hostfile.txt"), "shared": str(run.place / "shared"),
        "runtime": "process",
        "resources": {"device": "cpu", "threads": 1}, "launcher": "torchrun", "restarts": 0, "env": env,
        "script": {"path": "code/loop.py", "args": []},
    }  # fmt: skip
    (run.place / "shared").mkdir()
    (run.place / "job.yaml").write_text(json.dumps(body))
    argv = ["nice", "-n", "15", PYTHON, "-m", "clusterft", "train", str(run.place / "job.yaml"), "--no-preflight"]
    home = {**os.environ, "CLUSTERFT_HOME": str(run.place / "home")}
    subprocess.run(argv, env=home, timeout=200, check=False, cwd=run.place)
    (found,) = [path.parent for path in (run.place / "shared").glob("*/run.json")]
    for path in ("run.json", "events/n1.jsonl", "events/n2.jsonl"):
        to = run.place / "kept" / path
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text((found / path).read_text())
    for gone in ("shared", "home", "code"):
        shutil.rmtree(run.place / gone)
    for gone in ("hostfile.txt", "job.yaml"):
        (run.place / gone).unlink()
    for path in (run.place / "kept").iterdir():
        path.rename(run.place / path.name)
    (run.place / "kept").rmdir()
    (run.place / "run.json").write_text("{}\n")  # that it is there says that this is a run's folder


# -- keeping it ----------------------------------------------------------------------------------


def main() -> int:
    """Make what is asked for."""
    if sys.argv[1:] == ["--notes"]:
        for name in SCENARIOS:
            if (HERE / name).exists():
                write_note(name)
        return 0
    names = sys.argv[1:] or [name for name in SCENARIOS if not (HERE / name).exists()]
    for name in names:
        began = time.monotonic()
        try:
            kept = make(name)
        except Exception as error:  # noqa: BLE001 - the others are made all the same
            print(f"{name}: {error!r}", flush=True)
            continue
        print(f"{name}: {kept} bytes, {time.monotonic() - began:.0f} s", flush=True)
    return 0


def make(name: str) -> int:
    """One bundle, in place of what was there; its size."""
    one = SCENARIOS[name]
    place = Path(tempfile.mkdtemp(prefix="clusterft-bundle-"))
    run = Run(place, free_port())
    try:
        one.make(run)
    finally:
        run.end()
    for gone in ("hosts", "hostfile", "one"):
        (place / gone).unlink(missing_ok=True)
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    size = 0
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        kept = cut(scrub(path.read_bytes().decode("utf-8", errors="backslashreplace"), place))
        if kept.strip() and path.suffix in (".log", ".txt", ".json", ".jsonl"):
            to = target / path.relative_to(place)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(kept)
            size += len(kept)
    write_note(name)
    shutil.rmtree(place)
    if size > _MOST:
        print(f"{name} is too large: {size} bytes")
    return size


def write_note(name: str) -> None:
    """How it was made, and what doctor must say."""
    one = SCENARIOS[name]
    expect = {"verdict": one.verdict, "id": one.id, "node": one.node, "rank": one.rank}
    note = {"made": "by a run that failed", "how": one.how, "expect": expect}
    (HERE / name / "note.json").write_text(json.dumps(note, indent=2) + "\n")


def scrub(text: str, place: Path) -> str:
    """Without this machine's paths and name."""
    paths = {
        str(place): "/data/run",
        str(HERE): "/data/code",
        str(ROOT / ".venv"): "/opt/venv",
        sys.base_prefix: "/opt/python",
        str(ROOT): "/opt/clusterft",
        str(Path.home()): "/home/me",
    }
    for path, name in paths.items():
        text = text.replace(path, name)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "ctl", text)


def cut(text: str) -> str:
    """The beginning and the end of a long log."""
    lines = text.splitlines()
    if len(lines) <= _HEAD + _TAIL:
        return text
    left_out = f"[... {len(lines) - _HEAD - _TAIL} lines left out ...]"
    return "\n".join([*lines[:_HEAD], left_out, *lines[-_TAIL:]]) + "\n"


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
