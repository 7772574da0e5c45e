"""Rules for how it is computed and on what: precision, engine, batch, launcher, environment.

Owns which of kohya's and accelerate's settings wins over the other. Refuses to write addresses: nodes are in the
hostfile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clusterft_trainer.migrate.case import Case, positive
from clusterft_trainer.migrate.found import LAUNCH, SECRET, Flag
from clusterft_trainer.migrate.known import FSDP
from clusterft_trainer.migrate.sheet import Sheet

_PRECISIONS = {"no": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "false": "fp32"}
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[\x20-\x7e\u00a0-\u2027\u202a-\ud7ff]*")
# The launcher sets these from its plan, or from the hostfile.
_PLANNED = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES".split()
)
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535


def batch(sheet: Sheet, case: Case) -> None:
    """Samples of a step, on each card."""
    per_slot = positive(sheet, "train_batch_size")
    say = "" if per_slot or not case.kohya else "kohya's default"
    sheet.put("train.batch.per_slot", per_slot or 1, "train_batch_size", say=say)
    theirs = LAUNCH + "gradient_accumulation_steps"
    own, other = positive(sheet, "gradient_accumulation_steps"), sheet.text(theirs)
    launched = int(other) if other is not None and other.isdigit() and other != "0" else None
    if own is None and launched and not case.kohya:
        sheet.put("train.batch.accumulate", launched, theirs)
        return
    if launched and launched != (own or 1):
        sheet.leave(theirs, "overruled", f"kohya's own gradient_accumulation_steps is {own or 1}")
    elif other is not None and launched is None:
        sheet.leave(theirs, "not needed", "batch.accumulate is 1 unless it is written")
    sheet.put("train.batch.accumulate", own or 1, "gradient_accumulation_steps")


def precision(sheet: Sheet, case: Case) -> None:
    """What it computes in, and how the weights are held."""
    theirs = LAUNCH + "mixed_precision"
    own, other = sheet.text("mixed_precision"), sheet.text(theirs)
    asked = own if case.kohya else other
    name = "mixed_precision" if case.kohya else theirs
    value = _PRECISIONS.get((asked or "no").lower())
    if value is None:
        sheet.leave(name, "not possible", "fp32, fp16 and bf16 are what there is; bf16 is written")
        value = "bf16"
    if case.kohya and other is not None and _PRECISIONS.get(other.lower()) != value:
        sheet.leave(theirs, "overruled", f"kohya's own mixed_precision is {own or 'no'}")
    if sheet.switch("full_fp16"):
        sheet.leave("full_fp16", "not possible", "weights are held in fp32, or in bf16 with stochastic rounding")
    full = sheet.switch("full_bf16")
    if full and value != "bf16":
        sheet.note(f"precision: bf16, for full_bf16 goes with nothing else; kohya refuses it under {own or 'no'}")
        value = "bf16"
    say = "kohya's default" if case.kohya and own is None and not full else ""
    sheet.put("train.precision", value, name, say=say)
    weights = "bf16" if full else "fp32"
    say = "rounded stochastically; kohya rounds to the nearest, which loses small updates" if full else ""
    sheet.put("train.weights", weights, "full_bf16", say=say)


def engine(sheet: Sheet, case: Case) -> None:
    """DDP, ZeRO or FSDP, as kohya's flags or accelerate's settings have it."""
    kind = (sheet.text(LAUNCH + "distributed_type") or "").upper()
    zero = sheet.switch(LAUNCH + "use_deepspeed") or kind == "DEEPSPEED" or sheet.given(LAUNCH + "zero_stage")
    sharded = any(name.removeprefix(LAUNCH) in FSDP for name in sheet.names())
    fsdp = sheet.switch(LAUNCH + "use_fsdp") or kind == "FSDP" or sharded
    sheet.given(LAUNCH + "fsdp_version")
    if sheet.switch("deepspeed"):
        for name in ("zero_stage", "offload_optimizer_device"):
            if sheet.given(LAUNCH + name):
                _compare(sheet, name)
        _zero(sheet, "")
        return
    for name in ("zero_stage", "offload_optimizer_device"):
        if sheet.given(name):
            sheet.leave(name, "not needed", "kohya heeds it with deepspeed only")
    if zero:
        _zero(sheet, LAUNCH)
        return
    sheet.text(LAUNCH + "offload_optimizer_device")
    if fsdp:
        sheet.put("train.engine", {"kind": "fsdp"}, LAUNCH + "use_fsdp", LAUNCH + "distributed_type")
        if case.kohya:
            sheet.note("engine: fsdp as accelerate was told; kohya itself does not know of it")
        return
    sheet.put("train.engine", {"kind": "ddp"}, say="as kohya without deepspeed" if case.kohya else "")


def _compare(sheet: Sheet, name: str) -> None:
    theirs, own = sheet.text(LAUNCH + name), sheet.text(name)
    default = "2" if name == "zero_stage" else "none"
    if (theirs or default).lower() != (own or default).lower():
        sheet.leave(LAUNCH + name, "overruled", f"kohya's own {name} is {own or default}")


def _zero(sheet: Sheet, prefix: str) -> None:
    stage = sheet.whole(prefix + "zero_stage")
    device = (sheet.text(prefix + "offload_optimizer_device") or "none").lower()
    if stage == 0:
        sheet.put("train.engine", {"kind": "ddp"}, prefix + "zero_stage", say="ZeRO stage 0 splits nothing")
        return
    if stage not in (None, 1, 2, 3):
        sheet.leave(prefix + "zero_stage", "unknown", "stages are 0 to 3; 2 is written")
        stage = None
    chosen: dict[str, object] = {"kind": "zero", "stage": stage or 2}
    if device == "cpu":
        chosen["offload"] = "optimizer"
    elif device not in ("none", ""):
        sheet.leave(
            prefix + "offload_optimizer_device", "not possible", "the host's memory is the one place to offload to"
        )
    sheet.put("train.engine", chosen, prefix + "zero_stage", prefix + "offload_optimizer_device")


def compute(sheet: Sheet, case: Case) -> None:
    """Kernels, compilation, and the VAE's precision."""
    if sheet.switch("xformers"):
        sheet.note(
            "compute.attention: torch's own kernels for xformers; write attention: xformers where the image has it"
        )
    elif sheet.switch("sdpa"):
        sheet.put("train.compute.attention", "sdpa", "sdpa")
    sheet.switch("sdpa")
    _compile(sheet, case)
    if sheet.switch("no_half_vae"):
        sheet.put("train.compute.vae_dtype", "fp32", "no_half_vae")
    elif case.kohya and sheet.get("train.precision") != "fp32":
        sheet.put("train.compute.vae_dtype", "fp32", say="as with no_half_vae: half precision costs detail")


def _compile(sheet: Sheet, case: Case) -> None:
    backend, theirs = sheet.text("dynamo_backend"), sheet.text(LAUNCH + "dynamo_backend")
    compiles = sheet.switch("torch_compile")
    if backend is not None and compiles and backend.lower() != "inductor":
        sheet.leave("dynamo_backend", "not possible", "inductor is the one backend")
    elif backend is not None and not compiles:
        if backend.lower() != "no":
            sheet.leave("dynamo_backend", "not needed", "kohya heeds it with torch_compile only")
    wanted = theirs is not None and theirs.lower() not in ("no", "false", "none")
    if wanted and case.kohya and not compiles:
        sheet.leave(LAUNCH + "dynamo_backend", "overruled", "kohya compiles with torch_compile only")
    elif wanted and theirs is not None and theirs.lower() != "inductor":
        sheet.leave(LAUNCH + "dynamo_backend", "not possible", "inductor is the one backend")
    elif compiles or wanted:
        sheet.put("train.compute.compile", True, "torch_compile", LAUNCH + "dynamo_backend")
    if compiles:
        sheet.put("train.compute.compile", True, "torch_compile")


def place(sheet: Sheet, case: Case) -> None:
    """Where runs are written, and which nodes take part."""
    sheet.put("hosts", "hostfile", say=f"FILL IN: {_hosts(sheet, case)}")
    sheet.blanks.append(f"hosts: {_hosts(sheet, case)}")
    directory = sheet.text("output_dir")
    why = "the same directory on every node; runs are written into it"
    if directory is not None and directory.startswith("/"):
        sheet.blank("shared", directory, f"must be {why}")
    else:
        sheet.blank("shared", "/mnt/out", why)
        if directory is not None:
            sheet.leave("output_dir", "not possible", "shared is a whole path on the nodes: write it there")
    if case.launcher == "torchrun":
        sheet.put("launcher", "torchrun")
    if sheet.switch(LAUNCH + "use_cpu") or sheet.switch(LAUNCH + "cpu"):
        sheet.put("resources.device", "cpu", LAUNCH + "use_cpu", LAUNCH + "cpu")
    threads = positive(sheet, LAUNCH + "num_cpu_threads_per_process")
    if threads is not None:
        sheet.put("resources.threads", threads, LAUNCH + "num_cpu_threads_per_process")
    _port(sheet)


def _port(sheet: Sheet) -> None:
    name = LAUNCH + "main_process_port"
    port = sheet.whole(name)
    if port is None or port == 0:
        return
    if not _LOWEST_PORT <= port <= _HIGHEST_PORT:
        sheet.leave(name, "not possible", f"ports from {_LOWEST_PORT} to {_HIGHEST_PORT} can be used")
        return
    sheet.put("port", port, name)


def _hosts(sheet: Sheet, case: Case) -> str:
    """What the hostfile has to say, as far as the launcher's flags know."""
    machines = sheet.text(LAUNCH + "num_machines")
    for name in ("machine_rank", "main_process_ip", "deepspeed_hostfile"):
        sheet.given(LAUNCH + name)  # the hostfile's order and names take their place
    cards = (sheet.text(LAUNCH + "gpu_ids") or "").replace(" ", "")
    count = int(machines) if machines is not None and machines.isdigit() and int(machines) > 0 else None
    slots = "N" if case.processes is None else str(case.processes // (count or 1) or 1)
    gpus = (
        f" gpus={cards}"
        if re.fullmatch(r"\d+(,\d+)*", cards) and slots in ("N", str(len(cards.split(","))))
        else ""
    )
    if gpus and slots == "N":
        slots = str(len(cards.split(",")))
    lines = (
        "one line per node" if count is None else "one line" if count == 1 else f"{count} lines, the head first"
    )
    return f"{lines}, such as: NAME slots={slots}{gpus}"


def environment(sheet: Sheet, env: Sequence[Flag]) -> None:
    """Variables that the shell set for the training."""
    for flag in env:
        name, value = flag.name, str(flag.value)
        if name.lower().endswith((*SECRET, "_key")):
            sheet.put("secrets", sorted({*sheet.get("secrets", []), name}))
            sheet.note(
                f"secrets: {name} comes from the environment where clusterft runs; its value is not written"
            )
        elif name in _PLANNED or name.startswith(("CLUSTERFT_", "ACCELERATE_")):
            sheet.note(
                f"env: {name}={value[:40]} is set from the plan; cards are chosen in the hostfile (gpus=0,1)"
            )
        elif flag.variable or not _ENV_NAME.fullmatch(name) or not _PLAIN.fullmatch(value):
            sheet.note(f"env: {name} at {flag.place} cannot be taken as it stands: write its value under env")
        else:
            sheet.job.setdefault("env", {})[name] = value
    for name in sheet.get("secrets", []):
        sheet.job.get("env", {}).pop(name, None)
