"""Writes the bundles of failures that take GPUs, InfiniBand or a real NFS server: transcribed, not run.

Each line has the form in which NCCL, torch, the driver, the kernel or the engine print it, as their sources, their
documentation and their users' reports show it (the source stands in each note); names, addresses and times are ours.

    python tests/bundles/transcribed.py
"""

# ruff: noqa: E501 - lines are as long as they are printed
from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH = "/opt/venv/lib/python3.11/site-packages/torch"


@dataclass(frozen=True)
class Told:
    """One bundle."""

    name: str
    source: str
    files: dict[str, str]
    id: str
    node: str
    rank: int | None


def frames(rank: int, call: str, error: str) -> str:
    """A traceback of a collective, as torch's hook prints it with the rank."""
    rows = [
        "Traceback (most recent call last):",
        '  File "/data/code/train.py", line 212, in <module>',
        "    main()",
        '  File "/data/code/train.py", line 171, in main',
        f"    {call}",
        f'  File "{TORCH}/distributed/c10d_logger.py", line 83, in wrapper',
        "    return func(*args, **kwargs)",
        f'  File "{TORCH}/distributed/distributed_c10d.py", line 2810, in all_reduce',
        "    work = group.allreduce([tensor], opts)",
        *error.splitlines(),
    ]
    return "".join(f"[rank{rank}]: {row}\n" for row in rows)


def nccl(error: str, last: str) -> str:
    """What torch makes of an error of NCCL's."""
    return (
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
        f"{error}, NCCL version 2.27.3\nLast error:\n{last}"
    )


SYSTEM = "unhandled system error (run with NCCL_DEBUG=INFO for details)"
REMOTE = "remote process exited or there was a network error"


def watchdog(rank: int, seq: int, clock: str, op: str = "ALLREDUCE") -> str:
    """ProcessGroupNCCL's watchdog."""
    return (
        f"[rank{rank}]:[E1126 {clock}.103112 ProcessGroupNCCL.cpp:685] [Rank {rank}] Watchdog caught collective "
        f"operation timeout: WorkNCCL(SeqNum={seq}, OpType={op}, NumelIn=26214400, NumelOut=26214400, "
        f"Timeout(ms)=600000) ran for 600042 milliseconds before timing out.\n"
        f"[rank{rank}]:[E1126 {clock}.103540 ProcessGroupNCCL.cpp:2252] [PG ID 0 PG GUID 0(default_pg) Rank {rank}]  "
        f"failure detected by watchdog at work sequence id: {seq} PG status: last enqueued work: {seq + 1}, last "
        f"completed work: {seq - 1}\n"
        f"[rank{rank}]:[E1126 {clock}.104010 ProcessGroupNCCL.cpp:740] [Rank {rank}] Some NCCL operations have failed "
        f"or timed out. Due to the asynchronous nature of CUDA kernels, subsequent GPU operations might run on "
        f"corrupted/incomplete data.\n"
        f"terminate called after throwing an instance of 'c10::DistBackendError'\n"
    )


def steps(clock: str, rank: int, last: int) -> str:
    """Ordinary lines before it."""
    return "".join(
        f"2026-11-26 {clock},{i}00 [INFO] rank {rank}: step {last - 3 + i} loss 0.11\n" for i in range(1, 4)
    )


ALL = (
    Told(
        "nccl-ifname",
        "NCCL src/bootstrap.cc; NCCL_SOCKET_IFNAME in its documentation",
        {
            "n1.log": "n1:411:411 [0] NCCL INFO Bootstrap : Using eth0:192.168.7.11<0>\n"
            + frames(
                0,
                "dist.all_reduce(x)",
                nccl(f"{REMOTE}", "socketProgress: Connection closed by remote peer n2<40112>"),
            ),
            "n2.log": "n2:398:398 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to eth0\n\n"
            "n2:398:398 [0] bootstrap.cc:93 NCCL WARN Bootstrap : no socket interface found\n"
            + frames(1, "dist.all_reduce(x)", nccl(SYSTEM, "Bootstrap : no socket interface found")),
        },
        "nccl.ifname",
        "n2",
        1,
    ),
    Told(
        "nccl-firewall",
        "NCCL src/misc/socket.cc; nccl#375 (a firewalld that rejects)",
        {
            "n1.log": "n1:411:502 [0] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 192.168.7.12<40911> "
            "failed : No route to host\n"
            + frames(
                0,
                "dist.all_reduce(x)",
                nccl(SYSTEM, "socketStartConnect: Connect to 192.168.7.12<40911> failed : No route to host"),
            ),
            "n2.log": frames(
                1, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n1<51022>")
            ),
        },
        "net.high-ports",
        "n1",
        0,
    ),
    Told(
        "nccl-bridge",
        "NCCL src/misc/socket.cc; accelerate#1317 (br-* is not excluded)",
        {
            "n1.log": "n1:88:144 [0] NCCL INFO Bootstrap : Using br-5d0a:172.18.0.1<0>\n"
            + frames(
                0,
                "dist.all_reduce(x)",
                nccl(REMOTE, "socketProgress: Connection closed by remote peer 172.18.0.1<40118>"),
            ),
            "n2.log": "n2:91:151 [0] NCCL INFO Bootstrap : Using br-77c1:172.18.0.1<0>\n"
            "n2:91:151 [0] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 172.18.0.1<42777> failed : "
            "Connection refused\n"
            + frames(
                1,
                "dist.all_reduce(x)",
                nccl(SYSTEM, "socketStartConnect: Connect to 172.18.0.1<42777> failed : Connection refused"),
            ),
        },
        "nccl.bridge",
        "n2",
        1,
    ),
    Told(
        "nccl-versions",
        "NCCL src/bootstrap.cc; nccl#1267",
        {
            "n1.log": frames(
                0,
                "dist.all_reduce(x)",
                nccl(
                    "invalid usage (run with NCCL_DEBUG=WARN for details)",
                    "Mismatched NCCL version detected : rank 1 is running version 22703 rank 0 is running version 22602",
                ),
            ),
            "n2.log": frames(
                1, "dist.all_reduce(x)", nccl(REMOTE, "socketPollConnect: Connection closed by remote peer")
            ),
        },
        "nccl.version",
        "n1",
        0,
    ),
    Told(
        "nccl-duplicate-gpu",
        "NCCL src/init.cc",
        {
            "n1.log": "n1:70:70 [0] init.cc:1049 NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000\n"
            + frames(
                0,
                "dist.all_reduce(x)",
                nccl(
                    "invalid usage (run with NCCL_DEBUG=WARN for details)",
                    "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
                ),
            ),
            "n2.log": frames(1, "dist.all_reduce(x)", nccl(REMOTE, "recv: Connection closed by remote peer")),
        },
        "ctl.same-host-twice",
        "n1",
        0,
    ),
    Told(
        "cuda-oom-by-another",
        "torch c10/cuda/CUDACachingAllocator.cpp",
        {
            "n1.log": steps("10:00:01", 0, 40)
            + frames(
                0, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n2<40112>")
            ),
            "n2.log": steps("10:00:01", 1, 40)
            + '[rank1]: Traceback (most recent call last):\n[rank1]:   File "/data/code/train.py", line 164, in main\n'
            "[rank1]:     loss.backward()\n"
            "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has a total capacity "
            "of 23.68 GiB of which 310.00 MiB is free. Process 41233 has 11.90 GiB memory in use. Including non-PyTorch "
            "memory, this process has 11.40 GiB memory in use. Of the allocated memory 10.80 GiB is allocated by "
            "PyTorch, and 190.00 MiB is reserved by PyTorch but unallocated.\n",
        },
        "gpu.busy",
        "n2",
        1,
    ),
    Told(
        "cuda-oom",
        "torch c10/cuda/CUDACachingAllocator.cpp",
        {
            "n1.log": '[rank2]: Traceback (most recent call last):\n[rank2]:   File "/data/code/train.py", line 164, in main\n'
            "[rank2]:     loss = model(batch)\n"
            "[rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 2 has a total capacity "
            "of 79.11 GiB of which 1.02 GiB is free. Including non-PyTorch memory, this process has 78.05 GiB memory in "
            "use. Of the allocated memory 76.40 GiB is allocated by PyTorch, and 610.22 MiB is reserved by PyTorch but "
            "unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\n"
            + frames(
                0, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n1<40112>")
            ),
        },
        "job.memory",
        "n1",
        2,
    ),
    Told(
        "card-fell-off-the-bus",
        "NVIDIA's list of Xid errors; torch ProcessGroupNCCL.cpp",
        {
            "n1.log": steps("09:40:10", 0, 812) + watchdog(0, 812, "09:50:12") + watchdog(1, 812, "09:50:12"),
            "n2.log": steps("09:40:10", 2, 812) + watchdog(2, 812, "09:50:12"),
            "dmesg-n2.txt": "[Thu Nov 26 09:40:11 2026] NVRM: GPU at PCI:0000:41:00: GPU-6d9a7e3c-1111-2222-3333-444455556666\n"
            "[Thu Nov 26 09:40:11 2026] NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen "
            "off the bus.\n",
        },
        "gpu.xid",
        "n2",
        None,
    ),
    Told(
        "ecc",
        "CUDA error 214 in torch's words; ml-engineering",
        {
            "n1.log": frames(
                0, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n2<40112>")
            ),
            "n2.log": '[rank5]: Traceback (most recent call last):\n[rank5]:   File "/data/code/train.py", line 164, in main\n'
            "[rank5]:     loss.backward()\n"
            "[rank5]: torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered\n"
            "[rank5]: CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
            "might be incorrect.\n",
        },
        "gpu.ecc",
        "n2",
        5,
    ),
    Told(
        "watchdog-missing-rank",
        "torch ProcessGroupNCCL.cpp; pytorch forums",
        {
            "n1.log": "world_size=4\n"
            + steps("11:00:00", 0, 99)
            + watchdog(0, 99, "11:10:01")
            + watchdog(1, 99, "11:10:02"),
            "n2.log": steps("11:00:00", 2, 99) + steps("11:00:00", 3, 98) + watchdog(2, 99, "11:10:01"),
        },
        "run.watchdog",
        "n2",
        3,
    ),
    Told(
        "watchdog-behind",
        "torch ProcessGroupNCCL.cpp",
        {
            "n1.log": watchdog(0, 99, "11:10:01") + watchdog(1, 99, "11:10:02"),
            "n2.log": watchdog(2, 97, "11:10:04", "BROADCAST") + watchdog(3, 99, "11:10:01"),
        },
        "run.watchdog",
        "n2",
        2,
    ),
    Told(
        "share-hung",
        "Linux net/sunrpc/clnt.c; gpud's kmsg matchers",
        {
            "n1.log": steps("12:00:00", 0, 400) + watchdog(0, 401, "12:11:30"),
            "n2.log": steps("12:00:00", 1, 400) + watchdog(1, 401, "12:11:30"),
            "kern-n1.txt": "Nov 26 12:01:05 n1 kernel: nfs: server 192.168.7.9 not responding, still trying\n"
            "Nov 26 12:04:31 n1 kernel: INFO: task python3:4112 blocked for more than 120 seconds.\n",
        },
        "fs.hung",
        "n1",
        None,
    ),
    Told(
        "share-that-recovered",
        "Linux net/sunrpc/clnt.c",
        {
            "kern-n1.txt": "Nov 26 12:01:05 n1 kernel: nfs: server 192.168.7.9 not responding, still trying\n"
            "Nov 26 12:01:40 n1 kernel: nfs: server 192.168.7.9 OK\n",
            "n1.log": steps("12:05:00", 0, 400) + "2026-11-26 12:05:09,120 [INFO] rank 0: saving\n"
            '[rank0]: Traceback (most recent call last):\n[rank0]:   File "/data/code/train.py", line 190, in main\n'
            "[rank0]:     note = notes[\"epoch\"]\n[rank0]: KeyError: 'epoch'\n",
            "n2.log": steps("12:05:00", 1, 400)
            + frames(
                1, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n1<40112>")
            ),
        },
        "exception",
        "n1",
        0,
    ),
    Told(
        "nvml-lost",
        "nvidia-container-toolkit#251",
        {
            "n1.log": steps("13:00:00", 0, 7)
            + frames(
                0, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n2<40112>")
            ),
            "n2.log": steps("13:00:00", 1, 7) + "Failed to initialize NVML: Unknown Error\n"
            '[rank1]: Traceback (most recent call last):\n[rank1]:   File "/data/code/train.py", line 99, in main\n'
            "[rank1]:     torch.cuda.synchronize()\n[rank1]: RuntimeError: No CUDA GPUs are available\n",
        },
        "dk.nvml-lost",
        "n2",
        1,
    ),
    Told(
        "infiniband-timeout",
        "nccl#902, nccl#1524",
        {
            "n1.log": "n1:52:88 [0] transport/net_ib.cc:1295 NCCL WARN NET/IB: Got completion from peer 192.168.7.12<41235> "
            "with status=IBV_WC_RETRY_EXC_ERR(12) opcode=0 len=0 vendor err 129 (Send) localGid fe80::1 hca mlx5_0\n"
            + frames(
                0,
                "dist.all_reduce(x)",
                nccl(
                    REMOTE,
                    "NET/IB: Got completion from peer 192.168.7.12<41235> with status=IBV_WC_RETRY_EXC_ERR(12) opcode=0 len=0 vendor err 129 (Send)",
                ),
            ),
            "n2.log": frames(
                1, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n1<40112>")
            ),
        },
        "nccl.ib-timeout",
        "n1",
        0,
    ),
    Told(
        "shm-of-nccl",
        "NCCL src/misc/shmutils.cc; pytorch#5040",
        {
            "n2.log": "n2:33:71 [1] misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-h2GzQd to 33030532 bytes, error: No space left on device (28)\n"
            + frames(
                3,
                "dist.all_reduce(x)",
                nccl(
                    SYSTEM,
                    "Error: failed to extend /dev/shm/nccl-h2GzQd to 33030532 bytes, error: No space left on device (28)",
                ),
            ),
            "n1.log": frames(
                0, "dist.all_reduce(x)", nccl(REMOTE, "socketProgress: Connection closed by remote peer n2<40112>")
            ),
        },
        "os.shm",
        "n2",
        3,
    ),
)


def main() -> int:
    """Write them all."""
    for one in ALL:
        folder = HERE / one.name
        folder.mkdir(exist_ok=True)
        for name, text in one.files.items():
            (folder / name).write_text(text)
        expect = {"verdict": "failed", "id": one.id, "node": one.node, "rank": one.rank}
        note = {"made": "transcribed", "how": one.source, "expect": expect}
        (folder / "note.json").write_text(json.dumps(note, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
