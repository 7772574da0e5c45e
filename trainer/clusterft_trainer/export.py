"""The finished model on disk: one safetensors file that ComfyUI and A1111 read, a diffusers folder, a LoRA file.

Owns number format, header and the atomic write; `layout` owns the names. Tensors are cast and written one by one,
so that an export costs no second copy of the model in memory. Refuses to leave a file with a weight that is not
finite in the chosen format.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.errors import RunError, storing
from clusterft_trainer.model import architecture, layout, stored, tokenizers
from clusterft_trainer.model.folder import FOLDERS
from clusterft_trainer.model.parts import FORMATS, MODULES, Diffusion, Parts
from clusterft_trainer.model.stored import Leaf

Tensors = Mapping[str, torch.Tensor]
# What CLIP training ends with, ln 100. Diffusers folders do not keep the value; nothing that makes pictures reads
# it, but strict loaders miss the key.
_LOGIT_SCALE = math.log(100.0)
_MARKERS = ("v_pred", "ztsnr")
_PART_NAMES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "vae": ("diffusers", "AutoencoderKL"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
}
_ADDED = re.compile(r"(unet|text_encoder_1|text_encoder_2)\.(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_LORA_PREFIX = {"unet": "lora_unet_", "text_encoder_1": "lora_te1_", "text_encoder_2": "lora_te2_"}


def header(config: TrainConfig, at: float, prediction: str) -> dict[str, str]:
    """What the file says about itself (the modelspec fields; all values are strings)."""
    side, output = config.data.resolution, config.output
    said = {"author": output.author, "license": output.license, "description": output.description}
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": output.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)),
        "modelspec.prediction_type": prediction,
    } | {f"modelspec.{key}": value for key, value in said.items() if value is not None}


def single_file(parts: Parts, trained: Tensors, config: TrainConfig, path: Path) -> None:
    """Write the whole model; `trained` are full weights by name (`unet.…`, `text_encoder_1.…`)."""
    dtype, diffusion = FORMATS[config.output.dtype], parts.diffusion.under(config.objective)
    leaves: dict[str, Leaf] = {}
    for part in MODULES:
        weights = parts.weights(part, trained)
        places = layout.places(part, weights)
        for key, names in layout.pieces(places).items():
            tensors, form = [weights[n] for n in names], places[names[0]].form
            shape = layout.put([torch.empty(t.shape, device="meta") for t in tensors], form).shape
            leaves[key] = Leaf(tuple(shape), dtype, partial(_put, tensors, form, dtype))
    shapes = {
        part: {key[len(prefix) :]: leaf.shape for key, leaf in leaves.items() if key.startswith(prefix)}
        for part, prefix in layout.PREFIX.items()
    }
    for name, tensor in _extras(parts, diffusion).items():
        inside = name.startswith(tuple(layout.PREFIX.values())) and tensor.is_floating_point()
        leaves[name] = Leaf(tuple(tensor.shape), dtype if inside else tensor.dtype, partial(_same, tensor))
    actual = {part: architecture.settings(parts.module(part)) for part in MODULES}
    metadata = header(config, time.time(), diffusion.prediction)
    stated = architecture.unstated(actual, shapes)
    write(path, leaves, metadata if stated is None else metadata | {architecture.STATED: stated}, config)


def write(path: Path, leaves: Mapping[str, Leaf], metadata: Mapping[str, str], config: TrainConfig) -> None:
    """Cast, check and write; a kill in the middle leaves no file of the final name."""
    draft = path.with_name(path.name + ".new")
    with storing("The export", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(draft, leaves, metadata, config)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _flush(path.parent)


def diffusers_folder(parts: Parts, trained: Tensors, config: TrainConfig, path: Path) -> None:
    """Write the model as a folder that `from_pretrained` reads; the folder appears when it is complete."""
    draft, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    with storing("The export", path):
        for leftover in (draft, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        draft.mkdir(parents=True)
        try:
            for part, name in FOLDERS.items():
                _write_part(part, parts, trained, config, draft / name)
            for tokenizer, name in zip(parts.tokenizers, ("tokenizer", "tokenizer_2"), strict=True):
                tokenizers.save(tokenizer, draft / name)
            _write_scheduler(draft / "scheduler", parts.diffusion.under(config.objective))
            index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", **_PART_NAMES}
            text = json.dumps(index | {"force_zeros_for_empty_prompt": True}, indent=2) + "\n"
            (draft / "model_index.json").write_text(text, encoding="utf-8")
            for file in sorted(draft.rglob("*")):
                _flush(file)
            if path.exists():
                path.rename(old)
            draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        _flush(path.parent)


def lora_file(parts: Parts, weights: Tensors, alpha: float, config: TrainConfig, path: Path) -> None:
    """Write low-rank additions, given under peft's names, as kohya names them: what ComfyUI and A1111 read."""
    dtype, leaves, ranks = FORMATS[config.output.dtype], {}, set()
    for name, (module, side, tensor) in _additions(parts, weights).items():
        leaf = Leaf(tuple(tensor.shape), dtype, partial(_same, tensor))
        leaves[f"{module}.lora_{side}.weight"] = leaf
        leaves[f"{module}.alpha"] = Leaf((), dtype, partial(torch.tensor, alpha))
        if side == "down":
            ranks.add(tensor.shape[0])
        elif f"{module}.lora_down.weight" not in leaves and name.replace("lora_B", "lora_A") not in weights:
            raise ValueError(f"{name} has no lora_A beside it")
    metadata = header(config, time.time(), parts.diffusion.under(config.objective).prediction)
    metadata["modelspec.architecture"] += "/lora"
    metadata |= {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": "sdxl_base_v1-0",
    }
    write(path, leaves, metadata, config)


def _additions(parts: Parts, weights: Tensors) -> dict[str, tuple[str, str, torch.Tensor]]:
    """Under each of peft's names: kohya's name of the layer, 'down' or 'up', and the tensor."""
    found = {}
    for name, tensor in weights.items():
        match = _ADDED.fullmatch(name.replace("_orig_mod.", ""))
        if match is None:
            raise ValueError(f"{name} is no low-rank addition")
        found[name] = (match[1], layout.plain(match[2]), "down" if match[3] == "A" else "up", tensor)
    # numbers of blocks are counted from all of the UNet's layers, which peft wraps where it adds to them
    layers = {n.replace(".base_layer.", ".") for n in parts.unet.state_dict() if ".lora_" not in n}
    unet = {layout.plain(name): place for name, place in layout.places("unet", layers).items()}
    out = {}
    for name, (part, module, side, tensor) in found.items():
        if part == "unet":
            inner = unet[f"{module}.weight"].key.removeprefix(layout.UNET).removesuffix(".weight")
        else:
            inner = f"text_model.{module}"
        out[name] = (_LORA_PREFIX[part] + inner.replace(".", "_"), side, tensor)
    return out


def _extras(parts: Parts, diffusion: Diffusion) -> dict[str, torch.Tensor]:
    """Tensors of no module: as they were read, but markers and noise levels follow what was trained."""
    inside = tuple(layout.PREFIX.values())
    kept = {n: t for n, t in parts.extras.items() if n.startswith(inside) or diffusion == parts.diffusion}
    kept = {n: t for n, t in kept.items() if n not in _MARKERS}
    for name, wanted in zip(_MARKERS, (diffusion.prediction == "v", diffusion.zero_terminal_snr), strict=True):
        if wanted:
            kept[name] = parts.extras.get(name, torch.empty(0))
    return {layout.LOGIT_SCALE: torch.tensor(_LOGIT_SCALE)} | kept


def _put(tensors: list[torch.Tensor], form: str, dtype: torch.dtype) -> torch.Tensor:
    """Cast before joining: half the memory, and nothing moves off a device in full width."""
    return layout.put([t.detach().to(dtype).to("cpu") for t in tensors], form)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _write(path: Path, leaves: Mapping[str, Leaf], metadata: Mapping[str, str], config: TrainConfig) -> None:
    with path.open("wb") as file:
        broken = stored.write(file, leaves, metadata)
        file.flush()
        os.fsync(file.fileno())
    if broken:
        raise RunError(
            "export",
            f"{len(broken)} weights are not finite as {config.output.dtype}, {broken[0]} first.",
            "Set output.dtype to bf16 or fp32; the checkpoint holds the weights in full.",
        )


def _write_part(part: str, parts: Parts, trained: Tensors, config: TrainConfig, folder: Path) -> None:
    """One module's config and weights; CLIP's names get the prefix that every version of transformers reads."""
    folder.mkdir()
    module, dtype = parts.module(part), FORMATS[config.output.dtype]
    text = part.startswith("text_encoder")
    leaves = {}
    for name, tensor in parts.weights(part, trained).items():
        key = f"text_model.{name}" if text and not name.startswith("text_projection") else name
        leaves[key] = Leaf(tuple(tensor.shape), dtype, partial(_put, [tensor], "same", dtype))
    _write(
        folder / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors"),
        leaves,
        {"format": "pt"},
        config,
    )
    if text:
        own = copy.deepcopy(module.config)
        own.architectures, own.dtype = [_PART_NAMES[FOLDERS[part]][1]], dtype
        own.save_pretrained(str(folder))
    else:
        module.save_config(str(folder))


def _write_scheduler(folder: Path, diffusion: Diffusion) -> None:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    EulerDiscreteScheduler(
        num_train_timesteps=diffusion.steps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if diffusion.prediction == "v" else "epsilon",
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
        # a schedule that ends in pure noise must be entered there; SDXL's own starts a step before
        timestep_spacing="trailing" if diffusion.zero_terminal_snr else "leading",
        steps_offset=0 if diffusion.zero_terminal_snr else 1,
    ).save_config(str(folder))


def _flush(path: Path) -> None:
    """Put a file or a folder's listing on the disk before its name says that it is complete."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
