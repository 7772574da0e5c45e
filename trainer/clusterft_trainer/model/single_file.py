"""An SDXL model, or a VAE, in one safetensors file: what is in it, told from its header.

Owns the prediction type that such a file declares, and the tensors in it that belong to no module. Refuses files
that are something else, and tensors under a module's prefix that the module has no place for. `model_ema.*`, the
mean of a training that is over, is left out: it would be wrong after the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.model import architecture, layout, recognise, sources, stored
from clusterft_trainer.model.parts import Diffusion
from clusterft_trainer.model.sources import Filling, Found
from clusterft_trainer.model.stored import Entry, Header

_AGAIN = "Give a complete SDXL model; if this was one, copy or download it again."
# Parts of a prefix that pictures do not depend on.
_HARMLESS = (layout.LOGIT_SCALE, layout.TEXT_2 + "attn_mask", layout.VAE + "loss.", layout.VAE + "model_ema.")
_STALE = ("model_ema.",)
_V = {"v", "v_prediction", "v-prediction"}
_EPSILON = {"epsilon", "eps"}


def find(path: Path) -> Found:
    """Everything that is needed to load the file, or why it is no SDXL model."""
    head = stored.header(path)
    foreign = recognise.foreign({name: entry.shape for name, entry in head.entries.items()})
    if foreign is not None:
        raise DataError(f"{path} {foreign[0]}.", foreign[1])
    shapes = {part: head.under(prefix) for part, prefix in layout.PREFIX.items()}
    for part, inside in shapes.items():
        if not inside:
            raise DataError(f"{path} has no {sources.TITLES[part]}.", _AGAIN)
    try:
        configs = architecture.configs(shapes, head.metadata.get(architecture.STATED))
    except ValueError as error:
        raise DataError(f"{path} is damaged, or no SDXL model: {error}.", _AGAIN) from error
    fillings = {}
    for part, config in configs.items():
        module = architecture.build(part, config)
        places = layout.places(part, module.state_dict())
        fillings[part] = sources.join(part, module, places, head.entries, path)
    used = {source.entry for filling in fillings.values() for source in filling.sources.values()}
    left = {n: e for n, e in head.entries.items() if e not in used and not n.startswith(_STALE)}
    _refuse_unknown(path, left)
    return Found(path, fillings, diffusion(head), left, head.metadata)


def find_vae(path: Path) -> Filling:
    """An autoencoder alone, with or without the prefix that it has in a whole model."""
    head = stored.header(path)
    bare = not any(name.startswith(layout.VAE) for name in head.entries)
    if bare and not any(name.startswith("encoder.down.") for name in head.entries):
        raise DataError(
            f"{path} is no VAE in the names of a single file.",
            "Set vae: to an SDXL VAE: a single file, or the diffusers folder with its config.json.",
        )
    entries = {layout.VAE + n: e for n, e in head.entries.items()} if bare else dict(head.entries)
    shapes = {n[len(layout.VAE) :]: e.shape for n, e in entries.items() if n.startswith(layout.VAE)}
    try:
        module = architecture.build("vae", architecture.vae(shapes))
    except ValueError as error:
        raise DataError(f"{path} is damaged, or no VAE of SDXL: {error}.", _AGAIN) from error
    return sources.join("vae", module, layout.places("vae", module.state_dict()), entries, path)


def diffusion(head: Header) -> Diffusion:
    """What the model predicts: by marker tensors as ComfyUI reads them, else by the header, else noise."""
    told = head.metadata.get("modelspec.prediction_type") or head.metadata.get("modelspec.predict_key")
    if told is not None and told.lower() not in _V | _EPSILON:
        raise ConfigError(
            f"{head.path} says that it predicts '{told}'.", "Only epsilon and v prediction can be trained."
        )
    v = "v_pred" in head.entries or (told is not None and told.lower() in _V)
    prediction: Literal["epsilon", "v"] = "v" if v else "epsilon"
    return Diffusion(prediction=prediction, zero_terminal_snr="ztsnr" in head.entries)


def _refuse_unknown(path: Path, left: Mapping[str, Entry]) -> None:
    prefixes = tuple(layout.PREFIX.values())
    unknown = sorted(
        n
        for n in left
        if n.startswith(prefixes) and not n.startswith(_HARMLESS) and not n.endswith("position_ids")
    )
    if unknown:
        raise DataError(
            f"{path} holds {len(unknown)} tensors that SDXL has no place for: {sources.shown(unknown)}.",
            "Give an SDXL model of the usual architecture.",
        )
