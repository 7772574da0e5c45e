"""Proves the model path: builtin parts, text states, gradients, precision, pixels and the export."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from clusterft_trainer import buckets, builtin, dataset, export, objective  # noqa: E402
from clusterft_trainer.config import Data, Learn, TrainConfig  # noqa: E402
from clusterft_trainer.errors import ConfigError, DataError, RunError  # noqa: E402
from clusterft_trainer.model import layout, sdxl  # noqa: E402
from clusterft_trainer.records import Record, scan  # noqa: E402

pytestmark = pytest.mark.trainer
BOTH = Learn.model_validate({"unet": {"rate": 1e-3}, "text_encoders": {"rate": 1e-4}})
UNET_ONLY = Learn.model_validate({"unet": {"rate": 1e-3}})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin")


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    return builtin.materialise("tiny", 0, home)


def given(batch: int, **changes: Any) -> sdxl.Conditioning:
    ids = torch.tensor([[1100.0, 2893.0, 0.0, 64.0, 128.0, 128.0]] * batch)
    return sdxl.Conditioning(ids, **changes)


def test_builtin_parts_are_made_once_and_survive_a_kill(home: Path, folder: Path) -> None:
    leftover = home / ".new-tiny-killed"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x")
    young = home / ".new-tiny-at-work"
    young.mkdir()
    long_ago = time.time() - 3600
    os.utime(leftover, (long_ago, long_ago))
    stamp = (folder / "unet" / "config.json").stat().st_mtime_ns
    assert builtin.materialise("tiny", 0, home) == folder
    assert (folder / "unet" / "config.json").stat().st_mtime_ns == stamp
    pictures = builtin.materialise("shapes", 5, home)
    assert len(scan(pictures)) == 5
    assert young.exists() and not leftover.exists()
    young.rmdir()


def test_the_builtin_vae_gives_pictures_back(home: Path, folder: Path) -> None:
    parts = sdxl.load(folder)
    records = scan(builtin.materialise("shapes", 5, home))
    pictures = dataset.Pictures(records, Data.model_validate(DATA), seed=0)
    encoders = sdxl.Encoders(parts, sdxl.build_denoiser(parts, UNET_ONLY), "cpu")
    for index in range(5):
        batch = pictures.batch([buckets.Slot(index, 1)], 0, lambda _: False)
        shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
        drawn = objective.draw([index], shape, encoders.schedule)
        latents = encoders.latents(batch, drawn)
        assert latents.shape[1:] == shape
        again = pictures.batch([buckets.Slot(index, 1)], 0, encoders.known)
        assert again.pixels is None and torch.equal(encoders.latents(again, drawn), latents)
        back = encoders.decode(latents).float()
        assert batch.pixels is not None
        difference = (back - batch.pixels.permute(0, 2, 3, 1).float()).abs().mean()
        assert difference < 12, "of 255: edges are soft, colours are right"


DATA = {"sources": [{"builtin": "shapes"}], "resolution": 128}


def test_text_states_are_the_penultimate_ones(folder: Path) -> None:
    parts = sdxl.load(folder)
    encoders = sdxl.Encoders(parts, sdxl.build_denoiser(parts, UNET_ONLY), "cpu")
    captions = ["a red circle on white", "a blue square on grey", ""]
    found = encoders.condition(captions, torch.zeros((3, 6)))
    one, two = encoders.tokens(captions)
    assert one.shape == two.shape == (3, 77)
    eos, start = one[0, 76], one[0, 0]
    assert one[2].tolist() == [start] + [eos] * 76, "the first encoder pads with its end token"
    assert two[2].tolist() == [start, eos] + [0] * 75, "the second pads with id 0"
    first, second = parts.text.first, parts.text.second
    with torch.no_grad():
        inner = second.text_model(two, output_hidden_states=True)
        pooled = second.text_projection(inner.last_hidden_state[torch.arange(3), (two == eos).int().argmax(1)])
        states = first(one, output_hidden_states=True).hidden_states
        layers = len(getattr(first, "text_model", first).encoder.layers)
    assert found.hidden is not None and found.pooled is not None
    assert torch.allclose(found.hidden, torch.cat([states[layers - 1], inner.hidden_states[-2]], -1))
    assert torch.allclose(found.pooled, pooled, atol=1e-6)
    assert not torch.allclose(found.pooled[0], found.pooled[1], atol=0.1), "captions look alike"
    again = encoders.condition(captions[:1], torch.zeros((1, 6)))
    assert again.hidden is not None and torch.equal(again.hidden[0], found.hidden[0])


def test_every_trained_weight_gets_a_gradient(folder: Path) -> None:
    parts = sdxl.load(folder)
    denoiser = sdxl.build_denoiser(parts, BOTH)
    encoders = sdxl.Encoders(parts, denoiser, "cpu")
    assert encoders.text is None
    conditioning = encoders.condition(["a red circle on white"], torch.zeros((1, 6)))
    noise = torch.randn((1, 4, 16, 16))
    prediction = denoiser(noise, torch.tensor([500]), conditioning)
    objective.sample_losses(prediction, torch.randn_like(noise)).sum().backward()
    without = [n for n, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [n for n, p in denoiser.named_parameters() if not p.requires_grad]
    assert without == []
    assert frozen and all(n.startswith("text.first") for n in frozen)
    assert not any(p.requires_grad for p in parts.vae.parameters())


def test_size_ids_stay_float32_in_a_bfloat16_model(folder: Path) -> None:
    parts = sdxl.load(folder)
    denoiser = sdxl.build_denoiser(parts, UNET_ONLY).to(torch.bfloat16)
    seen: list[Any] = []
    denoiser.unet.add_time_proj.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    text = {"hidden": torch.randn((1, 77, 96)), "pooled": torch.randn((1, 48))}
    out = denoiser(torch.randn((1, 4, 16, 16)), torch.tensor([3]), given(1, **text))
    ((ids, embedded),) = seen
    assert out.dtype == torch.bfloat16
    assert ids.dtype == embedded.dtype == torch.float32
    assert ids.tolist()[:2] == [1100.0, 2893.0]


def test_transparency_lies_on_white_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 100), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (150, 0, 250, 100))
    image.save(tmp_path / "p.png")
    record = Record(str(tmp_path / "p.png"), "p.png", "", 400, 100)
    bucket = buckets.Bucket(64, 64)
    pixels = dataset.decode(record, buckets.fit(400, 100, bucket), bucket)
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2
    wide = buckets.Bucket(128, 32)
    edge = dataset.decode(record, buckets.fit(400, 100, wide), wide)[:, 0]
    assert edge.tolist() == [[255, 255, 255]] * 32


def test_a_cut_picture_is_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(data[: len(data) // 2])
    record = Record(str(tmp_path / "p.png"), "p.png", "", 64, 64)
    with pytest.raises(DataError, match=r"p\.png cannot be decoded"):
        dataset.decode(record, buckets.Fit(64, 64, 0, 0), buckets.Bucket(64, 64))


def test_dropout_empties_the_stated_share_of_captions(home: Path) -> None:
    records = scan(builtin.materialise("shapes", 5, home)) * 200
    data = Data.model_validate(DATA | {"captions": {"dropout": 0.3}})
    pictures = dataset.Pictures(records, data, seed=1)
    captions = [pictures._caption(i, 0) for i in range(1000)]
    assert captions.count("") == pytest.approx(300, abs=60)
    assert captions == [pictures._caption(i, 0) for i in range(1000)]
    assert captions != [pictures._caption(i, 1) for i in range(1000)]


def test_the_exported_file_says_what_it_is_and_holds_every_weight(folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    parts = sdxl.load(folder)
    states = [m.state_dict() for m in (parts.unet, parts.text.first, parts.text.second, parts.vae)]
    body = {
        "model": "builtin:tiny",
        "output": {"name": "x", "dtype": "fp16"},
        "data": DATA,
        "learn": {"unet": {"rate": 1e-3}},
        "steps": 1,
    }
    path = tmp_path / "export" / "x.safetensors"
    export.write(path, layout.single_file(*states), TrainConfig.model_validate(body))
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    with safe_open(path, "pt") as file:
        meta, names = file.metadata(), set(file.keys())
        assert {str(file.get_tensor(n).dtype) for n in names} == {"torch.float16"}
        got = file.get_tensor("model.diffusion_model.out.2.bias")
    assert torch.equal(got, parts.unet.conv_out.bias.half())
    assert meta["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert meta["modelspec.title"] == "x" and meta["modelspec.prediction_type"] == "epsilon"
    fused = 2 * 2 * builtin.TEXT_2["num_hidden_layers"]  # q, k, v in one: two fewer weights and biases
    assert len(names) == sum(len(s) for s in states) - fused + 1


def test_a_weight_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    body = {"model": "m", "output": {"name": "x"}, "data": DATA, "learn": {"unet": {"rate": 0.1}}, "steps": 1}
    with pytest.raises(RunError, match="1 weights are not finite as fp16, w first"):
        export.write(tmp_path / "x.safetensors", {"w": torch.tensor([1e6])}, TrainConfig.model_validate(body))
    assert list(tmp_path.iterdir()) == []


def test_another_objective_is_refused(tmp_path: Path) -> None:
    settings = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="v_prediction"):
        sdxl.read_schedule(tmp_path / "scheduler_config.json")


def test_a_folder_that_is_no_model_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(DataError, match="lacks vae, text_encoder, text_encoder_2"):
        sdxl.check_folder(str(tmp_path))
