"""The model named in the settings, from disk into memory: a single safetensors file or a diffusers folder.

Owns which of the two it is, the VAE that may replace its own, and the order: everything is judged from headers
before the first weight is read, and weights are read one by one. Never asks a hub.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.model import folder, single_file, stored, tokenizers
from clusterft_trainer.model.parts import Parts
from clusterft_trainer.model.sources import Filling, Found
from clusterft_trainer.model.stored import Entry

_VAE_REMEDY = "Set vae: to an SDXL VAE: a .safetensors file, or a diffusers folder with its config.json."
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def check(model: str, tokenizer_folder: str | None, vae: str | None) -> None:
    """Raise what is wrong with the model; reads headers alone, in a second or two."""
    found = _find(Path(model), vae)
    tokenizers.load(_where(found), tokenizer_folder, _vocabulary(found))


def check_vae(vae: str) -> None:
    """The same of a VAE by itself."""
    _find_vae(Path(vae))


def load(
    model: str,
    tokenizer_folder: str | None,
    vae: str | None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Parts:
    """Read every part; `dtype` is for conversions, which need no float32 in memory. Training does."""
    found = _find(Path(model), vae)
    pair = tokenizers.load(_where(found), tokenizer_folder, _vocabulary(found))
    modules = {part: filling.fill(dtype, device) for part, filling in found.fillings.items()}
    return Parts(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder_1=modules["text_encoder_1"],
        text_encoder_2=modules["text_encoder_2"],
        tokenizers=pair,
        diffusion=found.diffusion,
        extras={name: _extra(name, entry) for name, entry in found.extras.items()},
        metadata=found.metadata,
        origin=found.origin,
    )


def _find(path: Path, vae: str | None) -> Found:
    if path.is_dir():
        found = folder.find(path)
    elif path.is_file() or path.suffix == ".safetensors":
        found = single_file.find(path)
    elif path.suffix in _PICKLED:
        raise DataError(
            f"{path} does not exist, and a pickled model would be refused.", "Give a .safetensors file."
        )
    else:
        raise DataError(
            f"The model {path} does not exist on this node.",
            "Put the .safetensors file or diffusers folder there on every node, or set model: to where it is.",
        )
    if vae is None:
        return found
    filling = _find_vae(Path(vae))
    _refuse_other_latents(found.fillings["vae"], filling, vae)
    return replace(found, fillings={**found.fillings, "vae": filling})


def _find_vae(path: Path) -> Filling:
    if path.is_dir():
        return folder.find_vae(path)
    if not path.is_file():
        raise DataError(f"The VAE {path} does not exist on this node.", _VAE_REMEDY)
    names = stored.header(path).entries
    if any(name.startswith("encoder.down_blocks.") for name in names):
        if not (path.parent / "config.json").is_file():
            raise DataError(f"{path} has diffusers' names, but no config.json lies beside it.", _VAE_REMEDY)
        return folder.find_part("vae", path.parent)
    return single_file.find_vae(path)


def _refuse_other_latents(own: Filling, other: Filling, vae: str) -> None:
    """A VAE of another family fits by shape and would teach the UNet other latents."""
    for setting in ("latent_channels", "scaling_factor", "block_out_channels"):
        mine, theirs = own.module.config[setting], other.module.config[setting]
        if setting == "block_out_channels":  # only how often pictures are halved matters
            mine, theirs = len(mine), len(theirs)
        if mine != theirs:
            raise ConfigError(
                f"vae: {vae} belongs to another kind of model: its {setting} is {theirs}, the model's own {mine}.",
                _VAE_REMEDY,
            )


def _where(found: Found) -> Path:
    return found.origin if found.origin.is_dir() else found.origin.parent


def _vocabulary(found: Found) -> tuple[int, int]:
    one, two = (found.fillings[part].module.config.vocab_size for part in ("text_encoder_1", "text_encoder_2"))
    return int(one), int(two)


def _extra(name: str, entry: Entry) -> torch.Tensor:
    """A tensor of no module; some tools cast position_ids with the weights, which strict loaders refuse."""
    tensor = stored.read(entry)
    return tensor.to(torch.int64) if name.endswith("position_ids") else tensor
