"""The SDXL model: frozen encoders outside, one trained module inside.

Owns loading a diffusers folder, the text path (penultimate states of both encoders, pooled output
of the second), the VAE path, and Denoiser, which holds everything that is trained because an engine
takes exactly one module. The VAE and untrained encoders stay float32 and outside of the engine,
which would cast them. Refuses v-prediction, single-file checkpoints and pickled weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# The classes by their own modules: diffusers' SDXL pipeline would cost four more seconds.
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from clusterft_trainer import objective
from clusterft_trainer.config import Learn
from clusterft_trainer.dataset import Batch
from clusterft_trainer.errors import ConfigError, DataError

_FOLDERS = (
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
)
_CACHE_BYTES = 2 << 30  # latents and text states that a rank keeps in memory


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet is told: text states, or tokens when the text encoders are trained too."""

    time_ids: torch.Tensor  # (B, 6) float32: bfloat16 would turn 1100 into 1104
    hidden: torch.Tensor | None = None  # (B, 77, width 1 + width 2)
    pooled: torch.Tensor | None = None
    tokens: tuple[torch.Tensor, torch.Tensor] | None = None  # (B, 77) int64 for each encoder


class TextEncoders(nn.Module):
    """Both CLIP text encoders as SDXL reads them."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, tokens_1: torch.Tensor, tokens_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Penultimate states without the final norm, side by side; projected pooled state."""
        one = self.first(tokens_1, output_hidden_states=True)
        two = self.second(tokens_2, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


class Denoiser(nn.Module):
    """All that is trained: the UNet, and the text encoders if they are."""

    def __init__(self, unet: Any, text: TextEncoders | None) -> None:
        super().__init__()
        self.unet = unet
        self.text = text

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        """The predicted noise."""
        hidden, pooled = given.hidden, given.pooled
        if self.text is not None and given.tokens is not None:
            hidden, pooled = self.text(*given.tokens)
        if hidden is None or pooled is None:
            raise ValueError("Denoiser needs text states, or tokens and its own text encoders")
        kind = self.unet.dtype
        extra = {"text_embeds": pooled.to(kind), "time_ids": given.time_ids}
        output = self.unet(noisy.to(kind), timesteps, hidden.to(kind), added_cond_kwargs=extra, return_dict=False)
        prediction: torch.Tensor = output[0]
        return prediction


@dataclass(slots=True)
class Parts:
    """A loaded model folder, all float32 on the CPU."""

    unet: Any
    vae: Any
    text: TextEncoders
    tokenizers: tuple[Any, Any]
    schedule: objective.Schedule


def check_folder(model: str) -> Path:
    """The model folder, or what is wrong with it; reads no weights."""
    folder = Path(model)
    if folder.suffix == ".safetensors":
        raise ConfigError(
            f"model: {model} is a single file, which this version cannot read yet.",
            "Convert it to a diffusers folder first and give that.",
        )
    if not folder.is_dir():
        raise DataError(
            f"The model folder {model} does not exist on this node.",
            "Put the diffusers folder there on every node, or set model: to where it is.",
        )
    missing = [name for name in _FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{model} is no diffusers folder of an SDXL model: it lacks {', '.join(missing)}.",
            "Give the folder that holds model_index.json.",
        )
    return folder


def load(folder: Path) -> Parts:
    """Read every part from disk, never from the network."""
    schedule = read_schedule(folder / "scheduler" / "scheduler_config.json")
    try:
        return Parts(
            unet=_weights(UNet2DConditionModel, folder / "unet"),
            vae=_weights(AutoencoderKL, folder / "vae"),
            text=TextEncoders(
                _weights(CLIPTextModel, folder / "text_encoder"),
                _weights(CLIPTextModelWithProjection, folder / "text_encoder_2"),
            ),
            tokenizers=(
                CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
                CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            ),
            schedule=schedule,
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The model in {folder} cannot be loaded: {error}",
            "Check that the folder is complete and holds safetensors, not pickled weights.",
        ) from error


def read_schedule(path: Path) -> objective.Schedule:
    """The noise schedule of a model folder; another objective than epsilon is refused."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Restore it.") from error
    kind, shape = body.get("prediction_type", "epsilon"), body.get("beta_schedule")
    if kind != "epsilon" or shape != "scaled_linear" or body.get("rescale_betas_zero_snr"):
        raise ConfigError(
            f"{path} asks for prediction_type {kind}, beta_schedule {shape}"
            f"{', zero terminal SNR' if body.get('rescale_betas_zero_snr') else ''}.",
            "This version trains epsilon prediction on the scaled_linear schedule only.",
        )
    return objective.scaled_linear(
        int(body["num_train_timesteps"]), float(body["beta_start"]), float(body["beta_end"])
    )


def build_denoiser(parts: Parts, learn: Learn) -> Denoiser:
    """Join what is trained and freeze the rest."""
    parts.unet.train().requires_grad_(learn.unet is not None)
    parts.text.requires_grad_(bool(learn.trained.keys() - {"unet"}))
    if bool(learn.trained.keys() - {"unet"}):
        # Only the state before it is used: without a gradient, data parallelism would wait for one.
        first = getattr(parts.text.first, "text_model", parts.text.first)
        first.encoder.layers[-1].requires_grad_(False)
        first.final_layer_norm.requires_grad_(False)
        return Denoiser(parts.unet, parts.text.train())
    parts.text.eval()
    return Denoiser(parts.unet, None)


class Encoders:
    """The frozen part of the model, with a memory of what it has encoded."""

    def __init__(self, parts: Parts, denoiser: Denoiser, device: str) -> None:
        self.vae = parts.vae.to(device).eval().requires_grad_(False)
        self.text = None if denoiser.text is not None else parts.text.to(device)
        self.schedule = parts.schedule
        self._tokenizers = parts.tokenizers
        self._device = device
        self._moments: dict[int, torch.Tensor] = {}
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._free = _CACHE_BYTES

    def known(self, index: int) -> bool:
        """Whether a sample's latents are in memory, so that its picture need not be decoded."""
        return index in self._moments

    @property
    def factor(self) -> int:
        """Pixels for one latent, 8 for SDXL."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def latents(self, batch: Batch, draw: objective.Draw) -> torch.Tensor:
        """Scaled latents of a batch, sampled with the draw's own noise."""
        if batch.pixels is None:
            moments = torch.stack([self._moments[i] for i in batch.indices]).to(self._device)
        else:
            pixels = batch.pixels.to(self._device).float() / 127.5 - 1
            moments = self.vae.encode(pixels).latent_dist.parameters
            for index, row in zip(batch.indices, moments.cpu(), strict=True):
                if index not in self._moments and self._reserve(row):
                    self._moments[index] = row.clone()
        mean, log_variance = moments.chunk(2, 1)
        spread = torch.exp(0.5 * log_variance.clamp(-30, 20))
        sampled = mean + spread * draw.latent_noise.to(self._device)
        return sampled * float(self.vae.config.scaling_factor)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one sample's latents."""
        channels = int(self.vae.config.latent_channels)
        return channels, height // self.factor, width // self.factor

    def tokens(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids for both encoders, padded with each one's own padding, on the device."""
        one, two = (
            t(
                captions,
                padding="max_length",
                max_length=t.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self._device)
            for t in self._tokenizers
        )
        return one, two

    @torch.no_grad()
    def condition(self, captions: list[str], time_ids: torch.Tensor) -> Conditioning:
        """Everything that the UNet is told about a batch."""
        ids = time_ids.to(self._device)
        if self.text is None:
            return Conditioning(ids, tokens=self.tokens(captions))
        new = [c for c in dict.fromkeys(captions) if c not in self._texts]
        fresh: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if new:
            hidden, pooled = self.text(*self.tokens(new))
            for caption, states, pool in zip(new, hidden, pooled, strict=True):
                fresh[caption] = (states.clone(), pool.clone())
                if self._reserve(states):
                    self._texts[caption] = (states.cpu().clone(), pool.cpu().clone())
        found = [fresh[c] if c in fresh else self._texts[c] for c in captions]
        return Conditioning(
            ids,
            hidden=torch.stack([f[0].to(self._device) for f in found]),
            pooled=torch.stack([f[1].to(self._device) for f in found]),
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 255], uint8 (B, H, W, 3), on the CPU."""
        pictures = self.vae.decode(latents.float() / float(self.vae.config.scaling_factor)).sample
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()

    def _reserve(self, tensor: torch.Tensor) -> bool:
        size = tensor.numel() * tensor.element_size()
        if size > self._free:
            return False
        self._free -= size
        return True


def _weights(kind: Any, folder: Path) -> Any:
    """One part in float32; a folder that holds only half precision files is read from those."""
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    names = [p.name for p in folder.glob("*.safetensors*")]
    if names and all(".fp16." in name for name in names):
        options["variant"] = "fp16"
    model = kind.from_pretrained(folder, **options)
    return model.to(torch.float32)
