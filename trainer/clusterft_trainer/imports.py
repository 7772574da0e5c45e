"""How the heavy libraries come in: together, without what is never used of them, and with the collector at rest.

Owns what diffusers and transformers see of other packages while they are imported: both import whatever they could
quantise or adapt a model with if it is merely installed, which takes a second and prints complaints about kernels
that nobody asked for. Refuses to touch what somebody has imported already, and to hide anything for longer: whoever
trains with bitsandbytes, torchao or peft imports it afterwards as ever.
"""

from __future__ import annotations

import gc
import importlib
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


def classes() -> None:
    """Import the modules of an SDXL model's classes; quick where nothing of those libraries is there yet."""
    # Whoever has looked for a package once relies on it.
    late = any(library in sys.modules for library in ("diffusers", "transformers"))
    with unseen(*(() if late else UNUSED)), collector_at_rest():
        for name in CLASSES:
            importlib.import_module(name)


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
    """Without searches for cyclic garbage, of which imports leave next to none: they are a third of an import's time.

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
