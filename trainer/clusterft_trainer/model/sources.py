"""From which bytes of which files each tensor of a model will be read: decided from headers, before any weight is.

Owns the comparison of what a module needs with what is there, the same for single files and folders. Refuses
missing tensors, other shapes and numbers that were quantised; does not look at the values, so a NaN passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer.errors import DataError
from clusterft_trainer.model import layout, stored
from clusterft_trainer.model.layout import Place
from clusterft_trainer.model.parts import Diffusion
from clusterft_trainer.model.stored import Entry

TITLES = {
    "unet": "UNet",
    "text_encoder_1": "first text encoder",
    "text_encoder_2": "second text encoder",
    "vae": "VAE",
}
_SHOWN = 3  # names in a message; a damaged file may lack a thousand
_COMPLETE = "Give a complete SDXL model; if this was one, copy or download it again."


@dataclass(frozen=True, slots=True)
class Source:
    """Where one tensor of a module lies, and in which form."""

    entry: Entry
    place: Place

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor as the module holds it."""
        return layout.take(stored.read(self.entry, self.place.third), self.place.form).to(dtype)


@dataclass(frozen=True, slots=True)
class Filling:
    """A module without memory, and what will fill it."""

    module: Any
    sources: Mapping[str, Source]

    def fill(self, dtype: torch.dtype, device: str) -> Any:
        """The module with its weights, read one by one and put where they shall be.

        So several ranks of a node do not hold a whole model each in the host's memory on the way to their cards.
        """
        tensors = {name: source.read(dtype).to(device) for name, source in self.sources.items()}
        self.module.load_state_dict(tensors, strict=True, assign=True)
        return self.module.eval()


@dataclass(frozen=True, slots=True)
class Found:
    """A model that is complete, as far as headers tell."""

    origin: Path
    fillings: Mapping[str, Filling]
    diffusion: Diffusion
    extras: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def join(
    part: str, module: Any, places: Mapping[str, Place], entries: Mapping[str, Entry], origin: Path
) -> Filling:
    """Pair a module's tensors with those in files."""
    state = module.state_dict()
    keys = layout.pieces(places)
    missing = sorted(keys.keys() - entries.keys())
    if missing:
        raise DataError(
            f"{origin} lacks {len(missing)} of the {len(keys)} tensors of its {TITLES[part]}: {shown(missing)}.",
            _COMPLETE,
        )
    for key, names in keys.items():
        form = places[names[0]].form
        wanted = tuple(layout.put([state[n] for n in names], form).shape)
        entry = entries[key]
        # the VAE's attention is a matrix in some files, and a convolution of width 1 in most
        fits = {wanted, wanted[:2]} if form == "convolution" else {wanted}
        if entry.shape not in fits:
            raise DataError(
                f"{origin}: {key} has the shape {_sides(entry.shape)}, where the {TITLES[part]} of this "
                f"architecture has {_sides(wanted)}.",
                "Give an SDXL model of the usual architecture, or the config that belongs to these weights.",
            )
        if not entry.dtype.is_floating_point:
            raise DataError(
                f"{origin}: {key} is stored as {entry.kind}: the model was quantised.",
                "Give its fp16, bf16 or fp32 file.",
            )
    return Filling(module, {name: Source(entries[place.key], place) for name, place in places.items()})


def shown(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
