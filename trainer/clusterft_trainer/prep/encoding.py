"""The stages that need torch: latents by the VAE, text states by both text encoders, on this worker's device.

Owns which weights are loaded: those of the encoders, never the UNet. What decides an entry's bytes is `caching`'s
to say, as a run reads what is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from clusterft_trainer import build, caching, captions, placing
from clusterft_trainer.config.base import Dtype
from clusterft_trainer.config.data import Cache
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.latents import making, needs
from clusterft_trainer.latents.encode import Encoder
from clusterft_trainer.latents.feeding import Captions, Feeder, Pictures
from clusterft_trainer.latents.key import Recipe, TextRecipe
from clusterft_trainer.latents.making import Made, Order
from clusterft_trainer.latents.session import Session
from clusterft_trainer.model.parts import Parts
from clusterft_trainer.prep import loading
from clusterft_trainer.prep.loading import Desk
from clusterft_trainer.prep.stages import Asked, Stage
from clusterft_trainer.prep.status import Standing
from clusterft_trainer.prep.telling import Voice
from clusterft_trainer.prep.text import Speaker
from clusterft_trainer.prep.vae import Painter


@dataclass(frozen=True, slots=True)
class Equipment:
    """What this worker encodes with."""

    place: Place
    cache: Cache
    parts: Parts


def equip(given: Asked, session: Session, place: Place) -> Equipment:
    """Load the encoders that the wanted stages need."""
    cache = given.config.data.cache
    if cache is None:
        raise ConfigError("There is nothing to encode for: data.cache is not set.", "Set data.cache.")
    _take_device(place)
    home = given.home / "builtin"
    if given.config.model.startswith("builtin:"):
        session.once("builtin-model", lambda _number: _made(given, home))
    where = build.model_path(given.config, home)
    names = [name for name, stage in NEEDS if given.wants(stage)]
    return Equipment(place, cache, loading.parts(given.config, where, names, place.device))


NEEDS: tuple[tuple[str, Stage], ...] = (("vae", "latents"), ("text_encoder_1", "text"), ("text_encoder_2", "text"))


def _take_device(place: Place) -> None:
    if place.device == "cpu":
        return
    if place.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"Slot {place.local_rank} has no GPU: torch sees {torch.cuda.device_count()}.",
            "Lower slots in the hostfile, or check which GPUs the container was given.",
        )
    torch.cuda.set_device(place.local_rank)


def _made(given: Asked, home: Path) -> None:
    build.model_path(given.config, home)


def latents(given: Asked, session: Session, index: Index, has: Equipment, voice: Voice) -> Made:
    """All latents that are missing."""
    voice.phase("latents")
    order = latents_order(given, index, has.cache, has.parts)
    recipe = Recipe.from_json(order.recipe)  # before the weights are cast, which would make them others
    encoder = Painter(has.parts.vae, recipe, _desk(session, has, given.config.compute.vae_dtype))

    def feeder() -> Feeder:
        return Pictures(index, given.threads)

    return _make(session, order, feeder, encoder, voice)


def latents_order(given: Asked, index: Index, cache: Cache, parts: Parts) -> Order:
    """What there must be of latents."""
    recipe = caching.latent_recipe(given.config, cache, parts)
    by = placing.rules(given.config.data.buckets, given.config.data.resolution)
    return needs.latents(index, by, recipe, caching.latents_folder(given.home, recipe), npz=cache.npz)


def texts(given: Asked, session: Session, index: Index, has: Equipment, voice: Voice) -> Made:
    """All text states that are missing."""
    voice.phase("text")
    settle = captions.still(given.config.data.captions)
    order = texts_order(given, index, has.cache, has.parts)
    recipe = TextRecipe.from_json(order.recipe)
    encoder = Speaker(has.parts, recipe, _desk(session, has, given.config.compute.text_dtype))
    return _make(session, order, lambda: Captions(index, settle), encoder, voice)


def texts_order(given: Asked, index: Index, cache: Cache, parts: Parts) -> Order:
    """What there must be of text states."""
    recipe = caching.text_recipe(given.config, cache, parts)
    folder = caching.text_folder(given.home, recipe)
    return needs.texts(
        index,
        captions.still(given.config.data.captions),
        recipe,
        folder,
        sum(loading.numbers(parts, recipe.tokens)),
    )


def _desk(session: Session, has: Equipment, kind: Dtype) -> Desk:
    return Desk(has.place.device, kind, has.cache.codec, session.stop)


def _make(session: Session, order: Order, feeder: Callable[[], Feeder], encoder: Encoder, voice: Voice) -> Made:
    standing = Standing(session.root)
    with voice.watching(lambda: standing.sentence(order.kind)):
        return making.make(session, order, feeder, lambda: encoder)
