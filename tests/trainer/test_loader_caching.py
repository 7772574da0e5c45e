"""Proves that a run reads its own cache, trains on the very same latents, and tells of gaps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import specimens  # noqa: E402

from clusterft_trainer import build, builtin, caching, captions, decoding, placing  # noqa: E402
from clusterft_trainer.buckets import Slot  # noqa: E402
from clusterft_trainer.config import Compute, FolderSource, Learn, TrainConfig  # noqa: E402
from clusterft_trainer.corpus import ingest  # noqa: E402
from clusterft_trainer.corpus.index import Index  # noqa: E402
from clusterft_trainer.dataset import Pictures  # noqa: E402
from clusterft_trainer.errors import DataError  # noqa: E402
from clusterft_trainer.latents import shard, writing  # noqa: E402
from clusterft_trainer.latents.key import entry_key, text_keys  # noqa: E402
from clusterft_trainer.model import sdxl, text  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer
COUNT = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin")


@pytest.fixture
def parts(home: Path) -> Parts:
    return specimens.tiny(builtin.materialise("tiny", 0, home))


@pytest.fixture(scope="module")
def found(home: Path) -> Index:
    folder = builtin.materialise("shapes", COUNT, home)
    source = FolderSource(folder=str(folder))
    problems = settings().data.problems
    return ingest.ingest([source], problems, home / "index", processes=1, say=lambda _: None)


def settings(**cache: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "builtin:tiny",
            "data": {"sources": [{"builtin": "shapes", "images": COUNT}], "resolution": 128, "cache": cache},
            "learn": {"unet": {"rate": 1e-3}},
            "steps": 1,
            "output": {"name": "tiny"},
        }
    )


def encoders_of(parts: Parts, take: Any = "mean") -> sdxl.Encoders:
    denoiser = sdxl.build_denoiser(parts, Learn.model_validate({"unet": {"rate": 1e-3}}), Compute())
    return sdxl.Encoders(parts, denoiser, "cpu", formats=sdxl.Formats(take=take))


def a_draw(batch: Any) -> Any:
    noise = torch.randn((len(batch.indices), 4, batch.bucket.height // 8, batch.bucket.width // 8))
    return SimpleNamespace(latent_noise=noise)


def prepare(config: TrainConfig, found: Index, parts: Parts, shared: Path, only: range) -> None:
    """What `prep` does, by hand: the mean of what the VAE says of each picture."""
    cache = config.data.cache
    assert cache is not None
    recipe = caching.latent_recipe(config, cache, parts)
    folder = caching.latents_folder(shared, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    by = placing.rules(config.data.buckets, config.data.resolution)
    for number in only:
        row = found.row(number)
        bucket, fit = placing.place(row.width, row.height, by)
        each = []
        for mirrored in (False, True) if recipe.flip else (False,):
            pixels = torch.from_numpy(decoding.pixels(row, fit, bucket, mirrored)).permute(2, 0, 1)[None]
            with torch.no_grad():
                each.append(parts.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean[0].numpy())
        form = shard.latent_form(recipe, each[0].shape, (bucket.width, bucket.height))
        key = np.frombuffer(entry_key(row.hash, bucket, fit, recipe), np.uint8)[None]
        shard.save(folder, form, key, [shard.payload(form, [np.stack(each) if recipe.flip else each[0]])])


def supplied(config: TrainConfig, found: Index, parts: Parts, shared: Path) -> tuple[Pictures, list[str]]:
    told: list[str] = []
    pictures = Pictures(found, config.data, config.seed)
    caching.supply(config, pictures, parts, shared, told.append)
    return pictures, told


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.long), True])
def test_cached_latents_are_those_that_the_run_would_make(
    found: Index, parts: Parts, tmp_path: Path, flip: bool
) -> None:
    config = settings(flip=flip)
    prepare(config, found, parts, tmp_path, range(COUNT))
    pictures, told = supplied(config, found, parts, tmp_path)
    assert not told
    encoders = encoders_of(parts)
    plain = Pictures(found, config.data, config.seed)
    mirrored = set()
    for sample in range(COUNT):
        for epoch in range(3):
            cached = pictures.batch([Slot(sample, 1)], epoch, lambda _: False)
            made = plain.batch([Slot(sample, 1)], epoch, lambda _: False)
            assert cached.pixels is None and made.latents is None and made.pixels is not None
            both = [encoders.latents(b, a_draw(b)) for b in (cached, made)]
            assert torch.allclose(both[0], both[1], atol=1e-5)
            assert torch.equal(cached.time_ids, made.time_ids) and cached.captions == made.captions
            mirrored.add(cached.keys[0] % 2)
    assert mirrored == ({0, 1} if flip else {0})


def test_a_cache_that_is_not_there_is_told_with_the_command_that_makes_it(
    found: Index, parts: Parts, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"12 of 12 pictures have no latents .*clusterft prep job\.yaml"):
        supplied(settings(), found, parts, tmp_path)
    prepare(settings(), found, parts, tmp_path, range(COUNT))
    supplied(settings(), found, parts, tmp_path)
    with pytest.raises(DataError, match="12 of 12"):
        supplied(settings(take="sample"), found, parts, tmp_path)
    with torch.no_grad():
        next(iter(parts.vae.parameters())).add_(1e-3)
    with pytest.raises(DataError, match="12 of 12"):
        supplied(settings(), found, parts, tmp_path)


def test_a_little_that_is_missing_is_made_by_the_run(
    found: Index, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(settings(), found, parts, tmp_path, range(COUNT - 1))
    monkeypatch.setattr("clusterft_trainer.latents.feed.LITTLE", 0.1)
    pictures, told = supplied(settings(), found, parts, tmp_path)
    assert told == ["1 of 12 pictures have no latents in the cache; each run encodes them by itself."]
    batch = pictures.batch([Slot(COUNT - 1, 1)], 0, lambda _: False)
    assert batch.pixels is not None and batch.latents is None
    assert encoders_of(parts).latents(batch, a_draw(batch)).isfinite().all()


def test_pictures_that_prep_found_broken_are_left_out_if_the_settings_say_so(
    found: Index, parts: Parts, tmp_path: Path
) -> None:
    config = settings()
    prepare(config, found, parts, tmp_path, range(2, COUNT))
    recipe = caching.latent_recipe(config, config.data.cache, parts)  # type: ignore[arg-type]
    lists = caching.latents_folder(tmp_path, recipe) / writing.PROBLEMS
    lists.mkdir()
    by = placing.rules(config.data.buckets, config.data.resolution)
    lines = []
    for number, kind in enumerate(("broken", "unreadable")):
        row = found.row(number)
        key = entry_key(row.hash, *placing.place(row.width, row.height, by), recipe)
        lines.append(json.dumps({"key": key.hex(), "kind": kind, "name": row.name, "file": row.file, "why": "?"}))
    (lists / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="1 of 12 pictures are broken.*problems names them"):
        supplied(config, found, parts, tmp_path)
    data = config.data.model_copy(update={"problems": config.data.problems.model_copy(update={"broken": "skip"})})
    skipping = config.model_copy(update={"data": data})
    pictures = Pictures(found, data, config.seed)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clusterft_trainer.latents.feed.LITTLE", 0.1)
        broken = caching.supply(skipping, pictures, parts, tmp_path, told.append)
    assert broken.tolist() == [0]
    assert told[0].startswith("1 of 12 pictures have no latents")
    assert told[1].startswith("1 of 12 pictures are broken")
    rest = build._without(skipping, pictures, broken)
    assert [rest.row(n) for n in range(len(rest))] == list(range(1, COUNT)) and rest.latents is pictures.latents


def test_without_a_cache_setting_nothing_is_looked_for(found: Index, parts: Parts, tmp_path: Path) -> None:
    config = settings()
    bare = config.model_copy(update={"data": config.data.model_copy(update={"cache": None})})
    pictures, told = supplied(bare, found, parts, tmp_path)
    assert pictures.latents is None and not told and not list(tmp_path.iterdir())


def test_cached_text_states_are_those_that_the_encoders_would_give(
    found: Index, parts: Parts, tmp_path: Path
) -> None:
    config = settings(text=True)
    cache = config.data.cache
    assert cache is not None
    prepare(config, found, parts, tmp_path, range(COUNT))
    encoders = encoders_of(parts)
    recipe = caching.text_recipe(config, cache, parts)
    told = sorted({captions.settle(found.caption(n), config.data.captions, 0) for n in range(COUNT)})
    given = encoders.condition(told, torch.zeros((len(told), 6)))
    assert given.hidden_1 is not None and given.hidden_2 is not None and given.pooled is not None
    columns = [t.numpy() for t in (given.hidden_1, given.hidden_2, given.pooled)]
    form = shard.text_form(recipe, tuple(c.shape[-1] for c in columns))  # type: ignore[arg-type]
    payloads = [shard.payload(form, [c[n] for c in columns]) for n in range(len(told))]
    folder = caching.text_folder(tmp_path, recipe)
    folder.mkdir(parents=True)
    shard.save(folder, form, text_keys(told, recipe), payloads)
    pictures, _ = supplied(config, found, parts, tmp_path)
    batch = pictures.batch([Slot(n, 1) for n in (0, 0)], 0, lambda _: False)
    assert batch.states is not None
    stored, made = encoders.told(batch), encoders.condition(batch.captions, batch.time_ids)
    for name in ("hidden_1", "hidden_2", "pooled"):
        assert torch.equal(getattr(stored, name), getattr(made, name))


def test_a_modules_identity_follows_its_weights_and_formats_and_not_its_file(home: Path, parts: Parts) -> None:
    again = specimens.tiny(builtin.materialise("tiny", 0, home))
    one = sdxl.identity([parts.vae], "fp32")
    assert one == sdxl.identity([again.vae], "fp32")
    assert one != sdxl.identity([again.vae], "bf16")
    assert one != sdxl.identity([again.vae], "fp32", text.rules(again.tokenizers))
    with torch.no_grad():
        list(again.vae.parameters())[-1].view(-1)[0] += 1e-6
    assert one != sdxl.identity([again.vae], "fp32")
