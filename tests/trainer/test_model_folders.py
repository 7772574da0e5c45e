"""Proves that a diffusers folder is read as a model, whatever its age and number format, or told what it lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from modelfiles import refused  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from clusterft_trainer import builtin  # noqa: E402
from clusterft_trainer.model import architecture, files  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.materialise("tiny", 0, tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return files.load(str(folder), None, None)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A model folder to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_the_schedule_of_a_folder_is_read_or_refused(copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    found = files.load(str(copy), None, None).diffusion
    assert (found.prediction, found.zero_terminal_snr, found.steps) == ("v", True, 1000)
    for change in ({"prediction_type": "sample"}, {"beta_schedule": "linear"}):
        path.write_text(json.dumps(body | change))
        assert "scaled_linear" in refused(copy)
    path.write_text(json.dumps({k: v for k, v in body.items() if k != "beta_end"}))
    assert "has no beta_end" in refused(copy)
    path.write_text("{")
    assert "is no JSON" in refused(copy)


def halve(copy: Path) -> None:
    """Leave the fp16 variant of each part, as many downloads hold it."""
    for path in copy.glob("*/*.safetensors"):
        half = {n: t.half() for n, t in load_file(path).items()}
        save_file(half, path.with_suffix("").with_suffix(".fp16.safetensors"), {"format": "pt"})
        path.unlink()


def shard(folder: Path, stem: str) -> None:
    """Cut a part's weights into two files with an index."""
    tensors = load_file(folder / f"{stem}.safetensors")
    names = sorted(tensors)
    index = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        name = f"{stem}-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in chosen}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(chosen, name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / f"{stem}.safetensors").unlink()


def test_fp16_variants_and_shards_are_read_as_float32(copy: Path, parts: Parts) -> None:
    halve(copy)
    loaded = files.load(str(copy), None, None)
    weight = loaded.unet.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, parts.unet.conv_in.weight.half().float())


def test_shards_are_read_and_a_missing_one_is_named(copy: Path, parts: Parts) -> None:
    shard(copy / "unet", "diffusion_pytorch_model")
    shard(copy / "text_encoder_2", "model")
    loaded = files.load(str(copy), None, None)
    for part in ("unet", "text_encoder_2"):
        for name, tensor in loaded.module(part).state_dict().items():
            assert torch.equal(tensor, parts.module(part).state_dict()[name])
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert "diffusion_pytorch_model-00002-of-00002.safetensors cannot be read" in refused(copy)


def test_pickled_and_missing_weights_are_told_apart(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    assert "holds pickled weights only (diffusion_pytorch_model.bin)" in refused(copy)
    (copy / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "holds no weights" in refused(copy)
    shutil.rmtree(copy / "vae")
    assert "is no diffusers folder of an SDXL model: it lacks vae" in refused(copy)


def test_a_folder_of_another_model_is_refused(copy: Path) -> None:
    path = copy / "unet" / "config.json"
    body = json.loads(path.read_text())
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    kept = {n: t for n, t in load_file(weights).items() if not n.startswith("add_embedding")}
    path.write_text(json.dumps(body | {"addition_embed_type": None}))
    assert "no place for" in refused(copy)
    save_file(kept, weights, {"format": "pt"})
    assert "is not the UNet of an SDXL base model" in refused(copy)
    path.write_text(json.dumps(body))
    assert "lacks 4 of the" in refused(copy)


def test_the_published_folders_configs_are_understood() -> None:
    """As stabilityai/stable-diffusion-xl-base-1.0 holds them: written by older versions of both libraries."""
    text = architecture.sdxl()["text_encoder_1"] | {
        "_name_or_path": "/tmp/x",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "clip_text_model",
        "projection_dim": 768,
        "torch_dtype": "float16",
        "transformers_version": "4.32.0.dev0",
    }
    module = architecture.build("text_encoder_1", text)
    assert len(module.state_dict()) == 196 and module.config.eos_token_id == 2
    assert {t.dtype for t in module.state_dict().values()} == {torch.float32}
    unet = architecture.sdxl()["unet"] | {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0.dev0",
    }
    unet |= {"class_embeddings_concat": False, "upcast_attention": None, "attention_type": "default"}
    assert len(architecture.build("unet", unet).state_dict()) == 1680


def test_older_names_of_weights_are_understood(copy: Path, parts: Parts) -> None:
    """The first text encoder with transformers' prefix, the VAE's attention as diffusers once named it."""
    for path, new, old in (
        (copy / "text_encoder" / "model.safetensors", "", "text_model."),
        (copy / "vae" / "diffusion_pytorch_model.safetensors", ".to_q.", ".query."),
        (copy / "vae" / "diffusion_pytorch_model.safetensors", ".to_out.0.", ".proj_attn."),
    ):
        tensors = load_file(path)
        renamed = {n.replace(new, old) if new else old + n: t for n, t in tensors.items()}
        assert renamed.keys() != tensors.keys()
        save_file(renamed, path, {"format": "pt"})
    path = copy / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    loaded = files.load(str(copy), None, None)
    for part in ("text_encoder_1", "vae"):
        for name, tensor in loaded.module(part).state_dict().items():
            assert torch.equal(tensor, parts.module(part).state_dict()[name])
