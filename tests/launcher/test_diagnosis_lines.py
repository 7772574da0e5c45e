"""Proves that every signature of the catalogue is known by a line as it is printed, and how lines are read."""

from __future__ import annotations

import calendar

import pytest

from clusterft.checks import catalogue
from clusterft.diagnosis import known, lines, naming, sieve, signatures, tracebacks
from clusterft.diagnosis.heard import Quote

# Row of the failure catalogue -> (id, a line as it is printed).
SAMPLES: dict[int, tuple[str, str]] = {
    1: ("nccl.ifname", "bootstrap.cc:93 NCCL WARN Bootstrap : no socket interface found"),
    2: ("nccl.ifname", "NCCL WARN NET/Socket : no interface found"),
    3: ("net.high-ports", "socketStartConnect: Connect to 192.168.7.12<40911> failed : No route to host"),
    4: ("peer-lost", "socketStartConnect: Connect to 192.168.7.12<40911> failed : Connection refused"),
    5: ("net.high-ports", "socketStartConnect: Connect to 192.168.7.12<40911> failed : Connection timed out"),
    6: ("nccl.bridge", "socketStartConnect: Connect to 172.18.0.1<42777> failed : Connection refused"),
    7: ("net.high-ports", "socketPollConnect: exceeded error retry count after 35 attempts"),
    8: ("peer-lost", "socketProgress: Connection closed by remote peer n2<40112>"),
    9: ("nccl.version", "Mismatched NCCL version detected : rank 1 is running version 22703"),
    10: ("nccl.version", "Net : connecting to address with family 0 is neither AF_INET(2) nor AF_INET6(10)"),
    11: ("ctl.same-host-twice", "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"),
    12: ("os.shm", "Error: failed to extend /dev/shm/nccl-h2GzQd to 33030532 bytes"),
    13: ("os.removeipc", "unlink shared memory /dev/shm/nccl-7NHG3v failed, error: No such file or directory"),
    14: ("os.memlock", "Call to ibv_reg_mr failed"),
    15: ("nccl.ib-timeout", "Call to ibv_modify_qp failed with error Invalid argument"),
    16: ("nccl.ib-timeout", "Got completion with status=IBV_WC_RETRY_EXC_ERR(12) opcode=0 len=0 vendor err 129"),
    17: ("nccl.ib-timeout", "NET/IB : mlx5_0:1 Got async fatal event: port error"),
    18: ("nccl.net-mix", "Detected mixed local Net device counts"),
    19: ("nccl", "ncclUnhandledCudaError: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
    20: ("peer-lost", "ncclRemoteError: remote process exited or there was a network error"),
    21: (
        "net.master-port",
        "The client socket has timed out after 60000ms while trying to connect to (n1, 29500).",
    ),
    22: ("rdzv.inuse", "The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use)."),
    23: ("rdzv.dns", "The IPv4 network addresses of (head, 29500) cannot be retrieved (gai error: -2 - unknown)."),
    24: ("", "The hostname of the client socket cannot be retrieved. err=-3"),
    25: ("rdzv.partial", "Timed out after 601 seconds waiting for clients. 3/4 clients joined."),
    26: ("net.master-port", "RendezvousConnectionError: The connection to the C10d store has failed."),
    27: (
        "os.localhost-name",
        "Gloo connectFullMesh failed with [gloo/pair.cc:144] no error, remote=[127.0.0.1]:9",
    ),
    28: ("os.localhost-name", "Unable to resolve hostname to a (local) address. Using the loopback address"),
    29: (
        "run.watchdog",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)",
    ),
    30: ("run.watchdog", "no heartbeat; increase TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC (value: 480)"),
    31: ("killed", "  traceback : Signal 9 (SIGKILL) received by PID 22528"),
    32: ("ctl.sighup", "torch.distributed.elastic.agent: Received 1 death signal, shutting down workers"),
    33: ("job.memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB."),
    34: ("gpu.ecc", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    35: ("gpu.arch", "CUDA error: no kernel image is available for execution on the device"),
    36: ("gpu.fabric", "Unexpected error from cudaGetDeviceCount(): Error 802: system not yet initialized"),
    37: ("dk.nvml-lost", "Failed to initialize NVML: Unknown Error"),
    38: ("gpu.mismatch", "Failed to initialize NVML: Driver/library version mismatch"),
    39: ("gpu.xid", "NVRM: Xid (PCI:0000:41:00): 79, pid=4112, name=python3, GPU has fallen off the bus."),
    40: ("os.oom", "Out of memory: Killed process 4112 (python3) total-vm:120000kB, anon-rss:90000kB"),
    41: ("fs.hung", "nfs: server 192.168.7.9 not responding, still trying"),
    42: ("os.ro-fs", "EXT4-fs (nvme0n1p2): Remounting filesystem read-only"),
    43: ("os.shm", "RuntimeError: DataLoader worker (pid 4112) is killed by signal: Bus error."),
    44: ("ssh.unreachable", "RuntimeError: Using hostfile at h but host=n2 was not reachable via ssh."),
    45: ("job.deepspeed-env", "ValueError: not enough values to unpack (expected 2, got 1)"),
    46: ("ckpt.latest", "Unable to find latest file at /mnt/out/latest, if trying to load latest checkpoint"),
    47: ("job.pdsh", "RuntimeError: launcher 'pdsh' not installed."),
    48: ("run.cuda-home", "deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist"),
    49: ("rdzv.inuse", "ConnectionError: Tried to launch distributed communication on port `29500`, but another"),
    50: ("ssh.maxstartups", "kex_exchange_identification: read: Connection reset by peer"),
    51: ("dk.nogpu", 'could not select device driver "" with capabilities: [[gpu]].'),
    52: ("gpu.old-driver", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8"),
    53: ("gpu.no-driver", "libnvidia-ml.so.1: cannot open shared object file: No such file or directory"),
    54: ("dk.ratelimit", "toomanyrequests: You have reached your pull rate limit."),
    55: ("fs.nfs-version", "mount.nfs: requested NFS version or transport protocol is not supported"),
    56: ("fs.export", "mount.nfs: access denied by server while mounting nas:/export/out"),
    57: ("fs.stale", "OSError: [Errno 116] Stale file handle: '/mnt/out/run'"),
    58: ("fs.nfs-port", "mount.nfs: Connection timed out"),
    59: ("fs.lock", "OSError: [Errno 37] No locks available"),
    60: ("run.torchvision", "RuntimeError: operator torchvision::nms does not exist"),
    61: ("run.int32", "RuntimeError: Trying to create tensor with negative dimension -2147483648"),
}
OTHERS = (
    ("os.disk-full", "OSError: [Errno 28] No space left on device"),
    (
        "os.oom",
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ),
    ("run.watchdog", "[Rank 0]: Ranks 3, 5 failed to pass monitoredBarrier in 6000 ms"),
    ("ckpt.world", "The checkpoint being loaded used a DP world size of 2 but the current world size is 1."),
    (
        "job.batch",
        "AssertionError: Check batch related parameters. train_batch_size is not equal to 5 != 2 * 1 * 2",
    ),
    ("job.hostfile", "Unable to find hostfile, will proceed with training with local resources only."),
    ("killed", "RuntimeError: DataLoader worker (pid 4112) is killed by signal: Killed. "),
    ("os.hung-task", "INFO: task python3:4112 blocked for more than 120 seconds."),
    ("run.import", "ModuleNotFoundError: No module named 'webdataset'"),
    ("run.import", "ImportError: /opt/venv/lib/libtorch_cpu.so: file too short"),
    ("run.import", "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"),
    ("run.import", "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x.so)"),
    ("run.import", "bash: line 1: torchrun: command not found"),
    ("data.broken-file", "_pickle.UnpicklingError: invalid load key, 'v'."),
    ("data.broken-file", "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
    ("data.broken-file", "SafetensorError: Error while deserializing header: MetadataIncompleteBuffer"),
    ("data.broken-file", "PIL.UnidentifiedImageError: cannot identify image file '/data/00012.png'"),
    ("data.broken-file", "OSError: image file is truncated (3 bytes not processed)"),
    ("data.hub", "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),
    ("data.hub", "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)"),
    ("fs.squash", "PermissionError: [Errno 13] Permission denied: '/mnt/out/checkpoint-10'"),
    ("fs.not-writable", "OSError: [Errno 5] Input/output error: '/mnt/out/x'"),
    ("fs.file-size", "OSError: [Errno 27] File too large"),
    ("data.missing", "FileNotFoundError: [Errno 2] No such file or directory: '/data/00012.png'"),
    ("gpu.count", "RuntimeError: CUDA error: invalid device ordinal"),
    ("gpu.old-driver", "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
    ("gpu.no-driver", "AssertionError: Torch not compiled with CUDA enabled"),
    ("job.memory", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("net.route", "OSError: [Errno 101] Network is unreachable"),
    ("net.master-port", "OSError: [Errno 99] Cannot assign requested address"),
    (
        "rdzv.env",
        "ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable "
        "RANK expected, but not set",
    ),
    (
        "job.other-model",
        "RuntimeError: DDP expects same model across all ranks, but Rank 0 has 1120 params, while rank 4 has "
        "inconsistent 1400 params.",
    ),
    (
        "job.other-model",
        "RuntimeError: [1]: params[0] in this process with sizes [32, 64] appears not to match sizes of the "
        "same param in process 0.",
    ),
    (
        "job.unused",
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting a new",
    ),
    ("gpu.busy", "CUDA out of memory. Tried 1 GiB. Process 41 has 11.90 GiB memory in use. Including non-PyTorch"),
)


def first(text: str) -> str:
    """The id of what a line matches first."""
    return next((one.signature.id for one in signatures.find(text, known.ALL)), "")


def test_every_row_of_the_catalogue_is_known_by_its_number() -> None:
    assert {one.number for one in known.ALL} - {0} == set(range(1, 62)) == set(SAMPLES)


@pytest.mark.parametrize("number", SAMPLES)
def test_a_line_as_it_is_printed_is_known(number: int) -> None:
    identity, text = SAMPLES[number]
    assert first(text) == identity
    assert not identity or number in {one.signature.number for one in signatures.find(text, known.ALL)}


@pytest.mark.parametrize(("identity", "text"), OTHERS)
def test_texts_that_were_met_later_are_known(identity: str, text: str) -> None:
    assert first(text) == identity


def test_what_is_known_is_never_sieved_out() -> None:
    texts = [text for _, text in (*SAMPLES.values(), *OTHERS)]
    structure = [
        "Traceback (most recent call last):",
        "  exitcode  : -9 (pid: 12)",
        "  rank      : 2 (local_rank: 0)",
        "  time      : 2026-11-26_09:07:10",
        "exits with return code = -9",
        "KeyError: 'caption'",
        '{"schema": 2, "kind": "attempt", "attempt": 1}',
        '{"schema": 2, "kind": "rank-died", "rank": 1}',
        "nfs: server 192.168.7.9 OK",
        "Segmentation fault (core dumped)",
        "Killed",
    ]
    for text in (*texts, *structure):
        assert not sieve.calm(text.encode()), text
    assert sieve.calm(b"2026-11-26 09:07:10,123 step 1200/90000 loss 0.1132 lr 4e-7 12.1 img/s\n" * 100)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-26 09:07:10,123 step 1200/90000 loss 0.1132",
        "epoch 3: 12/100 [00:10<00:30, 2.1it/s, loss=nan_count 0]",
        "FutureWarning: `torch.cuda.amp.GradScaler(args...)` is deprecated.",
        "NCCL INFO NET/Socket : Using [0]eth0:192.168.7.11<0>",
        "NCCL INFO Bootstrap : Using eth0:192.168.7.11<0>",
        "Connected to 192.168.7.12",
        "saved /mnt/out/checkpoint-400",
        "warning: PermissionError was ignored for /tmp/cache",
        "apex is not installed: No module named 'apex'; going on without it",
        "skipping /data/12.png: [Errno 2] No such file or directory",
    ],
)
def test_ordinary_lines_mean_nothing(text: str) -> None:
    assert first(text) == ""


def test_every_id_is_in_the_catalogue_or_is_a_class_of_the_trainers() -> None:
    ids = {one.id for one in known.ALL if one.weight != "benign"}
    classes = {"peer-lost", "nccl", "killed"}
    assert {one for one in ids if catalogue.entry(one) is None} <= classes | {"os.shm"}


def test_causes_and_fixes_are_whole_sentences_of_their_own_words() -> None:
    for number, (_, text) in SAMPLES.items():
        for match in signatures.find(text, known.ALL):
            words = {**match.words, "node": "n2"}
            for said in (match.signature.cause, *match.signature.fix):
                assert not said.endswith(".") and said.strip() == said, (number, said)
                assert "{node}" not in signatures.told(said, words)
            assert match.signature.cause and match.signature.fix, number


AT = calendar.timegm((2026, 11, 26, 9, 7, 10))


@pytest.mark.parametrize(
    ("text", "rest", "node", "rank", "at"),
    [
        ("[rank3]: Traceback (most recent call last):", "Traceback (most recent call last):", "", 3, None),
        ("[default0]:[rank0]: ValueError: x", "ValueError: x", "", 0, None),
        ("2026-11-26T09:07:10.500000000Z [rank1]: x", "x", "", 1, AT + 0.5),
        ("2026-11-26T11:07:10+0200 n3 kernel: nfs: x", "nfs: x", "n3", None, AT),
        ("2026-11-26 09:07:10,250 - INFO - __main__ - x", "INFO - __main__ - x", "", None, AT + 0.25),
        ("11/26/2026 09:07:10 - INFO - x", "INFO - x", "", None, AT),
        ("[2026-11-26 09:07:10,250] [INFO] x", "[INFO] x", "", None, AT + 0.25),
        ("n2: [2026-11-26 09:07:10,250] [INFO] x", "[INFO] x", "n2", None, AT + 0.25),
        ("Nov 26 09:07:10 n3 kernel: x", "x", "n3", None, AT),
        ("[Thu Nov 26 09:07:10 2026] x", "x", "", None, AT),
        ("1795684030.500000 n3 kernel: x", "x", "n3", None, 1795684030.5),
        ("n3:411:502 [0] NCCL WARN x", "NCCL WARN x", "n3", None, None),
        ("n2 rank 3 | KeyError: 'x'", "KeyError: 'x'", "n2", 3, None),
        ("n2 launcher | x", "x", "n2", None, None),
        ("[rank1]:[E1126 09:07:10.5 ProcessGroupNCCL.cpp:685] [Rank 1] x", "x", "", 1, AT + 0.5),
        ("E1126 09:07:10.5 123 torch/x/api.py:10] failed", "torch/x/api.py:10] failed", "", None, AT + 0.5),
        ("    indented: text", "    indented: text", "", None, None),
        ("ValueError: [x]", "ValueError: [x]", "", None, None),
        ("2026-13-45 99:99:99 x", "x", "", None, None),
    ],
)
def test_prefixes_tell_who_and_when(text: str, rest: str, node: str, rank: int | None, at: float | None) -> None:
    line = lines.peel(text, 2026)
    assert (line.node, line.rank, line.at) == (node, rank, at)
    assert line.text.endswith(rest)


def test_a_kernels_seconds_are_kept_as_such() -> None:
    assert lines.peel("[48394.559302] br0: port 4 entered blocking state", 2026).uptime == 48394.559302


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[31mred\x1b[0m\n", "red"),
        (b"a\x00b\x07c\r\n", "abc"),
        (b"10%\r20%\rdone\n", "done"),
        (b"\xff\xfe half\n", "\\xff\\xfe half"),
        (b"\x1b]0;title\x07text\n", "text"),
    ],
)
def test_whatever_bytes_a_line_has_it_can_be_shown(raw: bytes, shown: str) -> None:
    assert lines.clean(raw) == shown


def test_a_line_of_a_megabyte_keeps_its_beginning_and_its_end() -> None:
    text = lines.clean(b"begin" + b"x" * (1 << 20) + b"CUDA out of memory\n")
    assert len(text) <= 4_000 and text.startswith("begin") and text.endswith("CUDA out of memory")


@pytest.mark.parametrize(
    ("path", "node", "rank", "attempt"),
    [
        ("logs/attempt-1/n2/rank3.log", "n2", 3, 1),
        ("n2.log", "n2", None, None),
        ("gpu-07.example.org.log", "gpu-07.example.org", None, None),
        ("rank_5.txt", "", 5, None),
        ("dmesg-n2.txt", "n2", None, None),
        ("n2/stderr.log", "n2", None, None),
        ("events/n1.jsonl", "n1", None, None),
        ("train.log", "", None, None),
    ],
)
def test_a_path_tells_whose_words_it_holds(path: str, node: str, rank: int | None, attempt: int | None) -> None:
    found = naming.source(f"/data/{path}", 2026, "/data")
    assert (found.node, found.rank, found.attempt, found.name) == (node, rank, attempt, path)


def blocks(text: str) -> list[list[str]]:
    """The error lines of each traceback in a text."""
    reader, found = tracebacks.Tracebacks(), []
    for number, row in enumerate(text.splitlines(), 1):
        block, begun = reader.take(row, Quote(f"x:{number}", row))
        if block is not None and begun:
            found.append(block)
    return [[one.text for one in block.errors] for block in found]


CHAINED = """\
Traceback (most recent call last):
  File "/data/train.py", line 9, in main
    save()
OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/data/train.py", line 11, in main
    clean()
RuntimeError: cleaning failed
step 4
Traceback (most recent call last):
  File "/data/other.py", line 1, in <module>
KeyError: 'x'
"""


def test_what_is_chained_is_one_and_what_is_not_is_another() -> None:
    assert blocks(CHAINED) == [
        ["OSError: [Errno 28] No space left on device", "RuntimeError: cleaning failed"],
        ["KeyError: 'x'"],
    ]


def test_a_workers_own_traceback_belongs_to_the_one_around_it() -> None:
    text = (
        'Traceback (most recent call last):\n  File "/d/t.py", line 1, in main\n'
        "ValueError: Caught ValueError in DataLoader worker process 0.\n"
        'Original Traceback (most recent call last):\n  File "/d/data.py", line 7, in load\n'
        "ValueError: bad picture\n"
    )
    assert blocks(text) == [
        ["ValueError: Caught ValueError in DataLoader worker process 0.", "ValueError: bad picture"]
    ]
