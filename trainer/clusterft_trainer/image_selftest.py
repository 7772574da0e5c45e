"""What an image can do, told as one line of JSON; the controller judges it. Runs in a fresh container, offline.

Standard library only until it tries the others, one by one; the last line on stderr names what was being tried
when the process died, as code compiled for another CPU makes it do. Changes nothing.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
STACK = (
    "pydantic yaml numpy PIL safetensors torch accelerate deepspeed diffusers transformers tensorboard "
    "xxhash bitsandbytes peft pytorch_optimizer torchao"
).split()
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# Not imported: of this package the trainer reads CLIP's vocabulary, which models in a single file come without.
VOCABULARY = ("open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz")
PROGRAMS = ("sshd", "ssh", "gcc", "ibv_devinfo")


def main() -> None:
    """Try everything, print what came of it."""
    said = os.dup(1)
    os.dup2(2, 1)  # libraries greet on stdout; the answer must stand alone there
    modules = {name: _module(name) for name in STACK if _present(name)}
    working = {name for name, one in modules.items() if not one["error"]}
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    answer = {
        "schema": SCHEMA,
        "trainer": _version("clusterft-trainer"),
        "python": platform.python_version(),
        "arch": platform.machine(),
        "modules": modules,
        "torch": _torch() if "torch" in working else None,
        "vocabulary": _vocabulary(),
        "ops": _ops() if {"torch", "deepspeed"} <= working else {},
        "programs": {name: shutil.which(name, path=path) for name in PROGRAMS},
        "host_keys": sorted(glob.glob("/etc/ssh/ssh_host_*_key")),
    }
    os.write(said, json.dumps(answer).encode() + b"\n")
    # No tidy exit: what a library does on its way out is no part of the answer.
    os._exit(0)


def _present(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _trying(what: str) -> None:
    sys.stderr.write(f"trying {what}\n")
    sys.stderr.flush()


def _module(name: str) -> dict[str, str]:
    _trying(f"import {name}")
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything, and that is the answer
        return {"version": "", "error": _words(error)}
    return {"version": _version(DISTRIBUTIONS.get(name, name)) or "", "error": ""}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _vocabulary() -> str | None:
    """The version of the package whose file is really there."""
    package, name = VOCABULARY
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    there = any(file.as_posix() == name and Path(str(file.locate())).is_file() for file in files)
    return _version(package) if there else None


def _torch() -> dict[str, Any]:
    import torch

    if not torch.version.cuda:
        return {"cuda": None, "nccl": None, "cards": []}
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    # get_arch_list() says nothing where there is no card, as here.
    return {"cuda": torch.version.cuda, "nccl": nccl, "cards": torch._C._cuda_getArchFlags().split()}


def _ops() -> dict[str, str]:
    """DeepSpeed's kernels that the image brings compiled -> why one does not work, or nothing."""
    import deepspeed

    # By file, not by DeepSpeed's own list: that knows only the kernels of the accelerator that is here now, and an
    # image for cards is tried on a machine without one.
    root = Path(deepspeed.__file__).parent
    found = {path.name.partition(".")[0]: path for path in sorted(root.glob("ops/**/*_op.*.so"))}
    modules = {
        name: ".".join((root.name, *path.parent.relative_to(root).parts, name)) for name, path in found.items()
    }
    return {name.removesuffix("_op"): _op(name, module) for name, module in modules.items()}


def _op(name: str, module: str) -> str:
    from deepspeed import git_version_info

    _trying(f"DeepSpeed's {name}")
    try:
        importlib.import_module(module)
        if name == "cpu_adam_op" and git_version_info.accelerator_name == "cpu":
            _step()
    except Exception as error:  # noqa: BLE001 - compiled code may fail in any way, and that is the answer
        return _words(error)
    return ""


def _step() -> None:
    """One real step: code for another CPU is loaded without complaint and dies when it runs."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    weights = torch.nn.Parameter(torch.ones(1024))
    weights.grad = torch.ones(1024)
    DeepSpeedCPUAdam([weights], lr=0.1).step()
    if not bool(torch.all(weights < 1)):
        raise ArithmeticError("a step of cpu_adam changed nothing")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


if __name__ == "__main__":
    main()
