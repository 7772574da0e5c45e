"""Runs that fail, made when the rules of diagnosis were written; by runs of clusterft and in containers too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from first import STORE
from nodes import HERE, IMAGE, PYTHON, ROOT, Run, accelerate, both, deepspeed, scenario, torchrun

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


@scenario(
    "torchrun, 3 nodes x 2; n3 has another config, and builds 3 layers instead of 2", "job.other-model", "n3"
)
def another_model(run: Run) -> None:
    compared(run, {"n1": {}, "n2": {}, "n3": {"LAYERS": "3"}})


@scenario(
    "torchrun, 3 nodes x 1; n1, with rank 0, builds its layers of another size, of which n2 and n3 complain",
    "job.other-model",
    "n1",
    0,
)
def another_size_on_rank_zero(run: Run) -> None:
    compared(run, {"n1": {"HIDDEN": "48"}, "n2": {}, "n3": {}}, ranks=1)


@scenario(
    "torchrun, 2 nodes x 2; n2 builds 3 layers, and of two sides neither is the usual one", "job.other-model"
)
def another_model_on_one_of_two(run: Run) -> None:
    compared(run, {"n1": {}, "n2": {"LAYERS": "3"}})


def compared(run: Run, nodes: dict[str, dict[str, str]], ranks: int = 2) -> None:
    """A model under DDP on each node, by that node's own settings."""
    for place, (name, env) in enumerate(nodes.items()):
        run.node(name, torchrun(run, place, nodes=len(nodes), ranks=ranks, script="ddp.py"), **env)
    run.wait(100)
