"""Makes the log bundles of tests/bundles by really failing runs: on CPUs, with gloo, on "nodes" of this machine.

    python tests/bundles/make.py            those that are missing
    python tests/bundles/make.py NAME ...   these, anew
    python tests/bundles/make.py --notes    their note.json alone

A node is a UTS and mount namespace, so each has its hostname and its own /dev/shm; root on Linux is needed. Paths
of this machine are written as /opt/venv, /opt/python and /data. What takes hardware that is not here is transcribed
in transcribed.py from texts that their authors or users have published.

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
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = sys.executable
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


def accelerate(run: Run, node: int, *, ranks: int = 2) -> list[str]:
    """accelerate's launcher on one of two nodes; `ranks` in all."""
    return [
        *[PYTHON, "-m", "accelerate.commands.launch", "--cpu", "--num_machines=2"],
        *[f"--num_processes={ranks}", f"--machine_rank={node}", "--main_process_ip=127.0.0.1"],
        *[f"--main_process_port={run.port}", "--mixed_precision=no", "--dynamo_backend=no", str(HERE / "loop.py")],
    ]


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
