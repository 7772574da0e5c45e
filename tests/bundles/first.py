"""Runs that fail, made while the rules of diagnosis were written."""

from __future__ import annotations

import json
import shutil
import socket

from nodes import PYTHON, Run, both, deepspeed, scenario, torchrun

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
