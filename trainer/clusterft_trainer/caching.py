"""Which cache belongs to a run: recipes from settings and weights, and what the loader reads from it.

Owns the names of the cache's folders in the shared directory, so that `prep` writes where a run reads. A cache of
another VAE, another number format or another way of sampling has another recipe, so another folder: it cannot be
trained on by mistake. Refuses a run whose cache lacks more than a little.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from clusterft_trainer import captions, placing
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.config.data import Cache
from clusterft_trainer.dataset import Pictures
from clusterft_trainer.errors import DataError, storing
from clusterft_trainer.latents import feed, writing
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.feed import Feed, Texts
from clusterft_trainer.latents.key import Recipe, TextRecipe
from clusterft_trainer.latents.through import Near, Room
from clusterft_trainer.model.parts import Parts
from clusterft_trainer.model.sdxl import identity
from clusterft_trainer.model.text import rules

Tell = Callable[[str], None]
_NONE: np.ndarray = np.empty(0, np.int64)


def latent_recipe(config: TrainConfig, cache: Cache, parts: Parts) -> Recipe:
    """What decides the bytes of latents beside the pictures."""
    return Recipe(
        vae=identity([parts.vae], config.compute.vae_dtype),
        dtype=cache.dtype,
        take=cache.take,
        flip=cache.flip,
        seed=config.seed if cache.take == "sample" else 0,
    )


def text_recipe(config: TrainConfig, cache: Cache, parts: Parts) -> TextRecipe:
    """What decides the bytes of text states beside the captions."""
    return TextRecipe(
        text=identity(
            [parts.text_encoder_1, parts.text_encoder_2], config.compute.text_dtype, rules(parts.tokenizers)
        ),
        dtype=cache.dtype,
        tokens=config.data.captions.tokens,
    )


def latents_folder(shared: Path, recipe: Recipe) -> Path:
    """Where shards of latents lie."""
    return shared / "latents" / recipe.digest()


def text_folder(shared: Path, recipe: TextRecipe) -> Path:
    """Where shards of text states lie."""
    return shared / "text" / recipe.digest()


def supply(config: TrainConfig, pictures: Pictures, parts: Parts, shared: Path, tell: Tell) -> np.ndarray:
    """Give the pictures what is cached of them; rows that `prep` found broken, if the settings leave such out."""
    cache = config.data.cache
    if cache is None:
        return _NONE
    recipe = latent_recipe(config, cache, parts)
    folder = latents_folder(shared, recipe)
    by = placing.rules(config.data.buckets, config.data.resolution)
    there = _opened(folder, recipe.to_json(), cache, tell)
    positions = feed.located(there, pictures.index, by, recipe)
    if cache.npz:
        feed.look_at_npz(positions, pictures.index, by, flip=cache.flip)
        if cache.take == "mean" and (count := int((positions == feed.NPZ).sum())):
            tell(f"{count} of {len(positions)} latents are kohya's: samples, where take: mean makes means.")
    else:
        positions[positions == feed.NPZ] = feed.ABSENT
    absent, broken = positions == feed.ABSENT, _NONE
    if absent.any():
        listed = writing.hopeless(writing.problems(folder))
        broken = np.flatnonzero(absent & feed.rows_among(listed, pictures.index, by, recipe))
    if len(broken) and config.data.problems.broken != "skip":
        raise DataError(
            f"{len(broken)} of {len(positions)} pictures are broken; {folder / writing.PROBLEMS} names them.",
            "Replace or remove them and prepare again, or set data.problems.broken: skip.",
        )
    missing, total = int(absent.sum()) - len(broken), len(positions)
    feed.refuse_absent(missing, total, str(folder))
    if missing:
        tell(f"{missing} of {total} pictures have no latents in the cache; each run encodes them by itself.")
    if len(broken):
        tell(f"{len(broken)} of {total} pictures are broken and left out; {folder / writing.PROBLEMS} names them.")
    pictures.latents = Feed(there, positions, pictures.index)
    if cache.text:
        pictures.texts = _texts(config, cache, pictures, text_recipe(config, cache, parts), shared, tell)
    return broken


def _texts(
    config: TrainConfig, cache: Cache, pictures: Pictures, recipe: TextRecipe, shared: Path, tell: Tell
) -> Texts:
    folder = text_folder(shared, recipe)
    there = _opened(folder, recipe.to_json(), cache, tell)
    total = len(pictures.index)
    missing = feed.untold(there, pictures.index, captions.still(config.data.captions), recipe)
    feed.refuse_absent(missing, total, str(folder), "text states of these encoders")
    if missing:
        tell(
            f"{missing} of {total} captions have no text states in the cache; their batches are encoded each time."
        )
    return Texts(there, recipe)


def _opened(folder: Path, recipe: str, cache: Cache, tell: Tell) -> Catalogue:
    """A folder's catalogue; an empty one where there is no folder."""
    with storing("The cache", folder):
        folder.mkdir(parents=True, exist_ok=True)
    if cache.local is None:
        return Catalogue.open(folder, recipe)
    return Near.to(folder, recipe, Room(Path(cache.local), cache.local_gigabytes << 30), tell)
