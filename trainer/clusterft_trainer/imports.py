"""How the heavy libraries come in: together, without what is never used of them, and with the collector at rest.

Owns what diffusers, transformers, peft and DeepSpeed see of other packages while they are imported: they import
whatever they could quantise or adapt a model with if it is merely installed, which takes seconds and prints
complaints about kernels that nobody asked for. Refuses to touch what somebody has imported already, and to hide
anything for longer: whoever trains with bitsandbytes, torchao or peft imports it afterwards as ever.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

# Quantised models and adapters of those two libraries; nothing here loads one through them.
UNUSED = ("bitsandbytes", "peft", "torchao")
CLASSES = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
_UNCOMPILED = "TORCHDYNAMO_DISABLE"


def classes() -> None:
    """Import the modules of an SDXL model's classes; quick where nothing of those libraries is there yet."""
    # Whoever has looked for a package once relies on it.
    late = any(library in sys.modules for library in ("diffusers", "transformers"))
    with unseen(*(() if late else UNUSED)), collector_at_rest():
        for name in CLASSES:
            importlib.import_module(name)
        # Its bars would be drawn into a rank's log, which is read line by line.
        importlib.import_module("transformers.utils.logging").disable_progress_bar()


@contextmanager
def peft() -> Iterator[Any]:
    """peft, which looks for quantised weights when it makes its first addition, and remembers what it found."""
    with unseen(*(() if "peft" in sys.modules else ("bitsandbytes", "torchao"))):
        with collector_at_rest():
            module = importlib.import_module("peft")
        yield module


def deepspeed() -> Any:
    """DeepSpeed itself.

    With it comes Muon, which DeepSpeed looks up in the first step, whatever the optimizer is. Muon asks to be
    compiled while it is imported, which would bring in torch's whole compiler for nothing.
    """
    with uncompiled(), collector_at_rest():
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
        return importlib.import_module("deepspeed")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Functions that are to be compiled stay as they are; the switch is torch's own."""
    before = os.environ.get(_UNCOMPILED)
    os.environ[_UNCOMPILED] = "1"
    try:
        yield
    finally:
        del os.environ[_UNCOMPILED]
        if before is not None:
            os.environ[_UNCOMPILED] = before


@contextmanager
def unseen(*packages: str) -> Iterator[None]:
    """As if these packages were not installed: None in sys.modules is Python's own sign for that.

    For imports at the start, on the main thread: no other thread may import one of them meanwhile.
    """
    hidden = [name for name in packages if name not in sys.modules]
    modules = cast("dict[str, Any]", sys.modules)
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Without searches for cyclic garbage: imports leave next to none, and spend a third of their time on it.

    Afterwards what is there counts as permanent, so that the searches of a training run need not pass through it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
