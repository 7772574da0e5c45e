"""An SDXL model, or a VAE, as a diffusers folder: what is in it, told from its configs and its files' headers.

Owns the choice of files (full precision before the fp16 and bf16 variants; whole or in shards) and older names of
some tensors. Refuses pickled weights, other pipelines, schedules that are not SDXL's, and incomplete parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.model import architecture, layout, sources, stored
from clusterft_trainer.model.layout import Place
from clusterft_trainer.model.parts import Diffusion
from clusterft_trainer.model.sources import Filling, Found
from clusterft_trainer.model.stored import Entry

FOLDERS = {
    "unet": "unet",
    "text_encoder_1": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "vae": "vae",
}
_STEMS = ("diffusion_pytorch_model", "model")
_VARIANTS = ("", ".fp16", ".bf16")
# diffusers' names of the VAE's attention before 0.17
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")


def find(folder: Path) -> Found:
    """Everything that is needed to load the folder, or why it is no SDXL model."""
    missing = [name for name in (*FOLDERS.values(), "scheduler") if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder} is no diffusers folder of an SDXL model: it lacks {', '.join(missing)}.",
            "Give the folder that holds model_index.json.",
        )
    fillings = {part: find_part(part, folder / name) for part, name in FOLDERS.items()}
    unet, widths = fillings["unet"].module.config, 0
    for part in ("text_encoder_1", "text_encoder_2"):
        widths += int(fillings[part].module.config.hidden_size)
    if unet.addition_embed_type != "text_time" or unet.cross_attention_dim != widths or unet.in_channels != 4:
        raise DataError(
            f"{folder / 'unet'} is not the UNet of an SDXL base model: it takes text states of "
            f"{unet.cross_attention_dim} numbers and {unet.in_channels} channels, "
            f"and the text encoders beside it make {widths} numbers.",
            "Give a diffusers folder of the SDXL base model, or of a model that was trained from it.",
        )
    return Found(folder, fillings, diffusion(folder / "scheduler" / "scheduler_config.json"))


def find_vae(folder: Path) -> Filling:
    """The autoencoder in a folder of its own, or in that of a whole model."""
    return find_part("vae", folder / "vae" if (folder / "vae").is_dir() else folder)


def find_part(part: str, folder: Path) -> Filling:
    """One module from its config.json and the weights beside it."""
    config = _json(folder / "config.json")
    entries = {_name(part, name): entry for name, entry in _entries(folder).items()}
    try:
        module = architecture.build(part, config)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'config.json'} describes no {sources.TITLES[part]}: {error}", "Restore it."
        ) from error
    places = {name: Place(layout.plain(name)) for name in module.state_dict()}
    filling = sources.join(part, module, places, entries, folder)
    left = sorted(entries.keys() - {p.key for p in places.values()})
    left = [name for name in left if not name.endswith("position_ids")]
    if left:
        raise DataError(
            f"{folder} holds {len(left)} tensors that its config.json has no place for: {sources.shown(left)}.",
            "Restore the config.json that belongs to these weights.",
        )
    return filling


def diffusion(path: Path) -> Diffusion:
    """The noise schedule of a model folder."""
    body = _json(path)
    kind, shape = body.get("prediction_type", "epsilon"), body.get("beta_schedule")
    predictions: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
    if kind not in predictions or shape != "scaled_linear":
        raise ConfigError(
            f"{path} asks for prediction_type {kind} and beta_schedule {shape}.",
            "Only epsilon and v_prediction on the scaled_linear schedule can be trained.",
        )
    try:
        return Diffusion(
            steps=int(body["num_train_timesteps"]),
            beta_start=float(body["beta_start"]),
            beta_end=float(body["beta_end"]),
            prediction=predictions[kind],
            zero_terminal_snr=bool(body.get("rescale_betas_zero_snr", False)),
        )
    except KeyError as error:
        raise DataError(f"{path} has no {error.args[0]}.", "Restore it.") from error


def _entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the weights in a folder, from one file or from all shards."""
    for stem in _STEMS:
        for variant in _VARIANTS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.is_file():
                return dict(stored.header(whole).entries)
            for index in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
                if (folder / index).is_file():
                    return _sharded(folder / index)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth"))
    if pickled:
        raise DataError(
            f"{folder} holds pickled weights only ({pickled[0]}), which can run any code when they are opened.",
            "Save the model with safe_serialization=True, or download its .safetensors files.",
        )
    raise DataError(
        f"{folder} holds no weights: neither {_STEMS[0]}.safetensors nor {_STEMS[1]}.safetensors, "
        "nor an fp16 or bf16 variant of them.",
        "Copy the folder again, with all its files.",
    )


def _sharded(index: Path) -> dict[str, Entry]:
    names: Mapping[str, str] = _json(index).get("weight_map", {})
    heads = {shard: stored.header(index.parent / shard) for shard in sorted(set(names.values()))}
    lost = sorted(name for name, shard in names.items() if name not in heads[shard].entries)
    if lost:
        raise DataError(
            f"{index} names {len(lost)} tensors that are not in their shards: {sources.shown(lost)}.",
            "Copy the folder again: index and shards belong to different versions.",
        )
    return {name: heads[shard].entries[name] for name, shard in names.items()}


def _name(part: str, name: str) -> str:
    bare = layout.plain(name)
    if part != "vae":
        return bare
    return _OLD.sub(lambda m: f".{_OLD_ATTENTION[m[1]]}.{m[2]}", bare)


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.", "Copy the folder again, with all its files."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", "Restore it.") from error
    if not isinstance(body, dict):
        raise DataError(f"{path} does not hold settings by name.", "Restore it.")
    return body
