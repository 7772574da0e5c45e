"""A run directory as a cluster would leave it, made with the real record types: three nodes, four cards each, two
restarts, a hang, a node out of reach. What is drawn is the same each time.
"""

from __future__ import annotations

import json
import math
import random
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clusterft_trainer import progress, stream

BEGAN = 1_795_100_000.0
RUN = "astolfo-xl-20261120-1432-7f3a"
NODES = ("gpu0", "gpu1", "gpu2")
CARDS = 4
STEPS = 3_118
PROMPTS = (
    "1girl, astolfo (fate), pink braid, smile, city street at night",
    "a red circle on white",
    'portrait, <b>bold</b> & "quoted" words',
    "landscape, mountain lake, morning fog",
)
BATCH = 48
EVERY = 4.5  # seconds a step
_USAGE = 30.0  # seconds between two lines of how busy a node is
_GB = 10**9


@dataclass
class Making:
    """What is being written."""

    folder: Path
    end: str = "failed"
    lines: dict[str, list[stream.Line]] = field(default_factory=lambda: {node: [] for node in NODES})
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = BEGAN
    metrics: dict[int, progress.Step] = field(default_factory=dict)

    def say(self, node: str, line: stream.Line) -> None:
        """One line of a node."""
        self.lines[node].append(line)

    def tell(self, record: progress.Record) -> None:
        """One record of rank 0."""
        self.say(NODES[0], stream.Progress(0, record))


def write(folder: Path, end: str = "failed") -> Path:
    """The whole directory; `end` is ok or failed."""
    folder.mkdir(parents=True, exist_ok=True)
    making = Making(folder, end)
    for node in NODES:
        making.say(node, stream.Started(4_000, making.now, 0))
    making.say(NODES[0], _finding(making.now + 3))
    _attempt(making, 0, (1, 1_290))
    _hang(making)
    _attempt(making, 1, (1_201, 2_400))
    _out_of_memory(making)
    _attempt(making, 2, (2_301, STEPS))
    _finish(making)
    _documents(making)
    return folder


def _finding(at: float) -> stream.Found:
    return stream.Found(
        "gpu.display",
        "warn",
        ("gpu2",),
        "a screen holds 310 MB on card 0",
        "gnome-shell 210 MB, Xorg 100 MB",
        "The run is estimated at 22.9 of 23.7 GB.",
        ("sudo systemctl set-default multi-user.target",),
        at,
    )


def _attempt(making: Making, number: int, steps: tuple[int, int]) -> None:
    for rank, node in enumerate(NODES):
        begun = stream.Attempt(number, 3, rank, rank * CARDS, 3 * CARDS, "10.0.0.10", 29_500 + number, making.now)
        making.say(node, begun)
        making.say(node, stream.Log(rank * CARDS, "loading checkpoint shards: 100%|####| 3/3", making.now + 4))
    for phase, seconds in (("imports", 14), ("data", 25), ("model", 48), ("train", 20)):
        making.tell(progress.Phase(phase, making.now))
        _usage(making, making.now + seconds, busy=0.03)
    if number == 0:
        notice = "12 pictures are smaller than their bucket and were left out (data/kohya_finetune/IMG_<0231>.png)"
        making.tell(progress.Notice(notice, making.now))
    for step in range(steps[0], steps[1] + 1):
        _step(making, step)


def _step(making: Making, step: int) -> None:
    dice = making.dice
    seconds = EVERY * (1.25 if dice.random() < 0.02 else 1.0) * dice.uniform(0.97, 1.03)
    _usage(making, making.now + seconds, busy=0.97)
    loss = (
        (0.085 + 0.06 * math.exp(-step / 500))
        * math.exp(dice.gauss(0, 0.18))
        * (1 if dice.random() > 0.002 else 6)
    )
    record = progress.Step(
        step,
        15_560,
        1 + step // 1_556,
        loss,
        4e-7 * min(1.0, step / 200) * (0.5 + 0.5 * math.cos(math.pi * step / 15_560)),
        0.35 * math.exp(dice.gauss(0, 0.25)),
        BATCH / seconds,
        max(0.0, dice.gauss(0.012, 0.006)),
        making.now,
        max(0.0, dice.gauss(0.03, 0.012)),
        min(0.6, max(0.1, dice.gauss(0.24 if step < 2_000 else 0.31, 0.015))),
        0.31 * EVERY / seconds,
        22.9e9,
        0,
    )
    making.tell(record)
    making.metrics[step] = record
    if step % 100 == 0:
        making.tell(
            progress.Saved("checkpoint", f"/mnt/out/{RUN}/checkpoints/step-{step:08d}", step, 21.4, making.now)
        )
    if step % 250 == 0:
        making.tell(progress.HeldOut(step, 0.092 + 0.05 * math.exp(-step / 600), 31.0, making.now))


def _usage(making: Making, until: float, busy: float) -> None:
    dice = making.dice
    before, making.now = making.now, until
    if int(before / _USAGE) == int(until / _USAGE):
        return
    for number, node in enumerate(NODES):
        slow = 0.82 if node == "gpu1" and until - BEGAN > 9_000 else 1.0
        cards = tuple(
            stream.Card(
                index,
                min(1.0, max(0.0, busy * slow * dice.uniform(0.95, 1.03))),
                int((22.6 + 0.1 * index) * _GB if busy > 0.5 else 4 * _GB),
                int(23.7 * _GB),
                44 + 26 * busy + 3 * index + dice.uniform(-1, 1) + number,
                60 + 225 * busy * slow * dice.uniform(0.97, 1.03),
            )
            for index in range(CARDS)
        )
        net = 1.08e9 * busy * dice.uniform(0.9, 1.05)
        cpu = 0.04 + 0.2 * busy * dice.uniform(0.8, 1.2)
        memory = int((31 + 6 * busy + number) * _GB)
        making.say(node, stream.Usage(until, cpu, memory, 128 * _GB, net, net * 1.01, cards))


def _over(making: Making, number: int, decided: stream.Decided, pause: float) -> None:
    for node in NODES:
        making.say(node, stream.AttemptEnded(number, "failed", -15, making.now, f"asked by {decided.node}"))
    making.say(NODES[0], decided)
    making.now += pause


def _hang(making: Making) -> None:
    making.now += 600
    making.say(NODES[0], stream.Hang(0, 600.0, "stacks/attempt-0", making.now))
    why = "a hang may be the network's: tried again from step 1200"
    decided = stream.Decided(0, True, "hang", "no step for 10 min", "gpu2", 9, why, 1, 3, making.now + 8)
    making.now += 8
    _over(making, 0, decided, 2)
    making.say(NODES[0], stream.Waiting(("gpu2",), making.now + 300, making.now))
    making.now += 170
    making.say(NODES[0], stream.Waiting((), making.now, making.now))


def _out_of_memory(making: Making) -> None:
    making.say("gpu1", stream.RankDied(6, -9, 48_122, making.now))
    cause = "out of host memory: the kernel killed python (pid 48122, 61.2 GB)"
    why = "killed once: tried again from step 2300"
    _over(making, 1, stream.Decided(1, True, "killed", cause, "gpu1", 6, why, 2, 3, making.now), 12)


def _finish(making: Making) -> None:
    if making.end == "ok":
        making.tell(progress.Phase("export", making.now))
        making.now += 40
        path = f"/mnt/out/{RUN}/export/astolfo-xl-r1.safetensors"
        making.tell(progress.Saved("export", path, STEPS, 38.0, making.now))
        making.tell(progress.Done(STEPS, 0.15, 0.087, making.now))
    else:
        message = "Memory ran out: CUDA out of memory. Tried to allocate 2.5 GiB."
        remedy = "Lower batch.per_slot (raise batch.accumulate instead) or data.resolution."
        making.say("gpu1", stream.Log(6, "Traceback (most recent call last):", making.now))
        making.say(
            "gpu1", stream.Log(6, "torch.OutOfMemoryError: \x1b[31mCUDA out of memory\x1b[0m <script>", making.now)
        )
        making.say("gpu1", stream.Progress(6, progress.Failed("oom", message, remedy, making.now)))
        why = "the same step ended the same way twice"
        making.say(NODES[0], stream.Decided(2, False, "oom", message, "gpu1", 6, why, 2, 3, making.now))
    code = 0 if making.end == "ok" else 5
    for node in NODES:
        making.say(node, stream.AttemptEnded(2, making.end, code, making.now))  # type: ignore[arg-type]
        making.say(node, stream.Ended(making.end, code, making.now))  # type: ignore[arg-type]


def _documents(making: Making) -> None:
    folder = making.folder
    for name in ("events", "checkpoints", "samples", "export"):
        (folder / name).mkdir(exist_ok=True)
    for node, lines in making.lines.items():
        text = "".join(stream.encode(line) + "\n" for line in lines)
        (folder / "events" / f"{node}.jsonl").write_text(text, encoding="utf-8")
    steps = (json.dumps(asdict(making.metrics[step])) + "\n" for step in sorted(making.metrics))
    (folder / "metrics.jsonl").write_text("".join(steps), encoding="utf-8")
    _json(folder / "run.json", _record(making))
    _json(folder / "outcome.json", _outcome(making))
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    for step, roles in ((2_300, ["kept"]), (2_750, ["best"]), (3_100, ["rolling", "kept"])):
        _checkpoint(folder / "checkpoints" / f"step-{step:08d}", step, roles)
    for step in range(250, STEPS, 250):
        (folder / "samples" / f"step-{step:08d}.png").write_bytes(sheet(64, step))
    if making.end == "ok":
        (folder / "export" / "astolfo-xl-r1.safetensors").write_bytes(bytes(6_940))


def _json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=1), encoding="utf-8")


def _outcome(making: Making) -> dict[str, Any]:
    failed = making.end != "ok"
    return {
        "schema": 1,
        "run": RUN,
        "end": making.end,
        "failure": "oom" if failed else "",
        "cause": "Memory ran out: CUDA out of memory. Tried to allocate 2.5 GiB." if failed else "",
        "node": "gpu1" if failed else "",
        "rank": 6 if failed else None,
        "why": "the same step ended the same way twice" if failed else "",
        "attempts": 3,
        "restarts": 2,
        "began": BEGAN,
        "ended": making.now,
    }


def _record(making: Making) -> dict[str, Any]:
    config = {"samples": {"prompts": list(PROMPTS)}, "batch": {"per_slot": 4, "accumulate": 1}}
    nodes = [
        {
            "node": node,
            "machine_rank": rank,
            "transport": "ssh",
            "address": f"10.0.0.1{rank}",
            "interface": "enp65s0",
            "directory": "/run/clusterft",
            "argv": [
                "accelerate",
                "launch",
                "--config_file",
                "@HERE@/accelerate.yaml",
                "-m",
                "clusterft_trainer",
                "train",
            ],
            "env": {"NCCL_SOCKET_IFNAME": "=enp65s0", "OMP_NUM_THREADS": "8", "HF_TOKEN": "hf_should_not_be_seen"},
            "files": {"/run/clusterft/config.json": json.dumps(config)},
            "container": {"name": f"clusterft-{node}-all", "request": {"Image": "clusterft:0.7-cu130"}},
            "slots": CARDS,
        }
        for rank, node in enumerate(NODES)
    ]
    plan = {
        "run": RUN,
        "cluster": "rack",
        "runtime": "docker",
        "job": "unet and text encoders of x215c-AstolfoMix, 10 epochs, ddp, bf16",
        "config_digest": "9f8e7d6c5b4a39281706",
        "launcher": "accelerate",
        "rendezvous": "static",
        "master": {"address": "10.0.0.10", "port": 29_500},
        "world_size": 12,
        "run_dir": f"/mnt/out/{RUN}",
        "secrets": {"WANDB_API_KEY": "***"},
        "nodes": nodes,
    }
    return {
        "schema": 2,
        "clusterft": "0.7.0",
        "controller": "me@laptop",
        "state": "running",
        "began": BEGAN - 9,
        "ended": None,
        "plan": plan,
    }


JOB = """\
name: astolfo-xl
shared: /mnt/out                    # the same directory on every node
restarts: 3
secrets: [WANDB_API_KEY]
env:
  MY_API_KEY: typed-by-hand-0123
train:
  model: /models/x215c-AstolfoMix.safetensors
  output: {name: astolfo-xl-r1, dtype: fp16, every_epochs: 1}
  data:
    sources: [{kohya: /data/meta_lat.json, images: /data/kohya_finetune}]
    captions: {shuffle: true, keep: 1, dropout: 0.05, tokens: 75}
"""


def _checkpoint(folder: Path, step: int, roles: list[str]) -> None:
    folder.mkdir()
    (folder / "rank-00000-of-00012.safetensors").write_bytes(bytes(4_096))
    _json(
        folder / "manifest.json",
        {
            "schema": 2,
            "step": step,
            "roles": roles,
            "held_out": 0.0925 if "best" in roles else None,
            "global_batch": BATCH,
            "config": {},
            "files": {"rank-00000-of-00012.safetensors": {"size": 4_096, "xxh3": "0"}},
            "written": BEGAN + step * EVERY,
        },
    )


def sheet(side: int, step: int) -> bytes:
    """A sheet of four pictures as the sampler lays them out, by hand: the tests of pages need no PIL."""
    width = 2 * (side + 4) + 4
    rows = bytearray()
    for y in range(width):
        rows.append(0)
        for x in range(width):
            inside = (x % (side + 4)) >= 4 and (y % (side + 4)) >= 4
            ring = math.hypot(x % (side + 4) - side / 2, y % (side + 4) - side / 2) < side * (0.15 + step / 12_000)
            number = 2 * (y > side + 4) + (x > side + 4)
            colour = (
                ((222, 78, 60), (58, 120, 200), (60, 160, 96), (228, 176, 64))[number] if ring else (236, 236, 232)
            )
            rows += bytes(colour if inside else (128, 128, 128))
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
