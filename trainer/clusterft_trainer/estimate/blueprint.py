"""SDXL's four modules without storage, from the settings of a model on disk or from the published ones.

Owns where the configurations come from and the meta device's copies, those of live modules included. Which weights
are trained is decided where training decides it. Refuses a file that is no SDXL model: an estimate for another one
would be worse than none.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from clusterft_trainer import builtin
from clusterft_trainer.config import Learn
from clusterft_trainer.errors import DataError
from clusterft_trainer.model import architecture, layout, lora, selection, stored, text

NAMES = ("unet", "text_encoder_1", "text_encoder_2", "vae")
_FOLDERS = ("unet", "text_encoder", "text_encoder_2", "vae")
Settings = dict[str, Any]
_PREFIXES = {
    "unet": layout.UNET,
    "text_encoder_1": layout.TEXT_1,
    "text_encoder_2": layout.TEXT_2,
    "vae": layout.VAE,
}
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
# SDXL base 1.0 as it was published.
PUBLISHED: tuple[Settings, Settings, Settings, Settings] = (
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
    _CLIP
    | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"hidden_act": "quick_gelu", "projection_dim": 768},
    _CLIP
    | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"hidden_act": "gelu", "projection_dim": 1280},
    {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    },
)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What the modules are built from, and where that was read."""

    settings: tuple[Settings, Settings, Settings, Settings]  # in the order of NAMES
    origin: str
    assumed: str | None = None  # why this is not known but taken for granted


@dataclass(slots=True)
class Modules:
    """The model on the meta device; requires_grad tells what is trained."""

    unet: Any
    text_encoder_1: Any
    text_encoder_2: Any
    vae: Any

    def each(self) -> dict[str, Any]:
        """The modules that are there, by name."""
        found = {name: getattr(self, name) for name in NAMES}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def factor(self) -> int:
        """Pixels for one latent; SDXL's where there is no VAE to ask."""
        return 8 if self.vae is None else int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def grid(self) -> int:
        """Pixels that a side must be a multiple of, so that no level of the UNet is padded."""
        return self.factor * int(2 ** (len(self.unet.config.block_out_channels) - 1))


def find(model: str) -> Blueprint:
    """The configurations of a model, as far as this machine can see it."""
    if model == builtin.MODEL:
        return Blueprint(_tiny(), "builtin:tiny")
    path = Path(model)
    if path.is_dir():
        return Blueprint(_folder(path), f"the configurations in {path}")
    if path.is_file():
        return _single(path)
    why = f"model: {model} is not on this machine, so full-size SDXL is assumed"
    return Blueprint(PUBLISHED, "SDXL base 1.0", why)


def build(blueprint: Blueprint) -> Modules:
    """All modules, none of them trained, in training mode."""
    unet, first, second, vae = blueprint.settings
    with torch.device("meta"):
        modules = Modules(
            UNet2DConditionModel.from_config(unet),
            CLIPTextModel(CLIPTextConfig(**first)),
            CLIPTextModelWithProjection(CLIPTextConfig(**second)),
            AutoencoderKL.from_config(vae),
        )
    for module in modules.each().values():
        module.requires_grad_(False).train()
    return modules


def choose(modules: Modules, learn: Learn) -> None:
    """Mark what these settings train, as training itself does."""
    for name in learn.trained:
        module = getattr(modules, name)
        if learn.lora is not None:
            lora.add(module, name, learn.lora, seed=0)
            setattr(modules, name, copied(module))  # peft makes its additions in memory
        elif name == "unet" and learn.unet is not None:
            weights = dict(module.named_parameters())
            for chosen in selection.selected(weights, learn.unet.parts):
                weights[chosen].requires_grad_(True)
        else:
            module.requires_grad_(True)
    if "text_encoder_1" in learn.trained and learn.lora is None:
        for idle in text.unused(modules.text_encoder_1):
            idle.requires_grad_(False)


def copied(module: nn.Module) -> Any:
    """A live module on the meta device; no byte of its weights is read or moved. Before an engine wraps it."""
    stand: dict[int, Any] = {}
    for weight in module.parameters():
        empty = torch.empty_like(weight, device="meta")
        stand[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    for buffer in module.buffers():
        stand[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, stand)


def _folder(folder: Path) -> tuple[Settings, Settings, Settings, Settings]:
    unet, first, second, vae = (_read(folder / name / "config.json") for name in _FOLDERS)
    return unet, first, second, vae


def _read(path: Path) -> Settings:
    try:
        body: Settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "Give a whole diffusers folder, or a single .safetensors file."
        ) from error
    return body


def _tiny() -> tuple[Settings, Settings, Settings, Settings]:
    """Made anew beside the run: a cache would need a place that an estimate has no business to write to."""
    with tempfile.TemporaryDirectory() as folder:
        return _folder(builtin.materialise("tiny", 0, Path(folder)))


def _single(path: Path) -> Blueprint:
    """A single file says only shapes; what they leave open, model loading knows."""
    header = stored.header(path)
    shapes = {name: header.under(prefix) for name, prefix in _PREFIXES.items()}
    try:
        found = architecture.configs(shapes, header.metadata.get(architecture.STATED))
    except ValueError as error:
        raise DataError(
            f"{path} is no SDXL model: {error}.",
            "Give a single file with UNet, text encoders and VAE, or a diffusers folder.",
        ) from error
    return Blueprint((found["unet"], found["text_encoder_1"], found["text_encoder_2"], found["vae"]), f"{path}")
