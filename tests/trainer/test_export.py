"""Proves what leaves a run: round trips, headers, folders, LoRA files, and that other programs read them alike."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from clusterft_trainer import builtin, export  # noqa: E402
from clusterft_trainer.config import TrainConfig  # noqa: E402
from clusterft_trainer.errors import RunError  # noqa: E402
from clusterft_trainer.model import architecture, files, layout, proof  # noqa: E402
from clusterft_trainer.model.parts import FORMATS, Parts  # noqa: E402

pytestmark = pytest.mark.trainer


def settings(dtype: str = "fp32", **changes: Any) -> TrainConfig:
    body: dict[str, Any] = {
        "model": "builtin:tiny",
        "output": {"name": "out", "dtype": dtype},
        "data": {"sources": [{"builtin": "shapes"}]},
        "learn": {"unet": {"rate": 1e-3}},
        "steps": 1,
    }
    return TrainConfig.model_validate(body | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.materialise("tiny", 0, tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return files.load(str(folder), None, None)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one
    )


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_single_file_survives_loading_and_export_tensor_for_tensor(
    dtype: str, folder: Path, parts: Parts, tmp_path: Path
) -> None:
    export.single_file(parts, {}, settings(dtype), tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    assert {t.dtype for t in tensors.values()} == {FORMATS[dtype]}
    # what other programs put into such a file must come back as well
    position = layout.TEXT_1 + "embeddings.position_ids"
    tensors |= {
        position: torch.arange(77)[None],
        layout.LOGIT_SCALE: torch.tensor(4.5, dtype=FORMATS[dtype]),
        "denoiser.sigmas": torch.rand(1000),
        "v_pred": torch.empty(0),
        "ztsnr": torch.empty(0),
    }
    save_file(tensors, tmp_path / "two.safetensors", metadata(tmp_path / "one.safetensors"))
    loaded = files.load(str(tmp_path / "two.safetensors"), str(folder), None)
    assert next(loaded.unet.parameters()).dtype == torch.float32
    assert (loaded.diffusion.prediction, loaded.diffusion.zero_terminal_snr) == ("v", True)
    export.single_file(loaded, {}, settings(dtype), tmp_path / "three.safetensors")
    again = load_file(tmp_path / "three.safetensors")
    assert same(again, tensors) and again[position].dtype == torch.int64
    assert metadata(tmp_path / "three.safetensors")["modelspec.prediction_type"] == "v"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}.safetensors" for n in ("one", "three", "two")]


def test_a_diffusers_folder_and_a_single_file_hold_the_same_model(
    folder: Path, parts: Parts, tmp_path: Path
) -> None:
    export.single_file(parts, {}, settings(), tmp_path / "one.safetensors")
    loaded = files.load(str(tmp_path / "one.safetensors"), str(folder), None)
    for name in ("unet", "text_encoder_1", "text_encoder_2", "vae"):
        assert same(parts.module(name).state_dict(), loaded.module(name).state_dict())
        assert not [n for n, t in loaded.module(name).named_buffers() if t.is_meta]
    export.diffusers_folder(loaded, {}, settings(), tmp_path / "again")
    back = files.load(str(tmp_path / "again"), None, None)
    for name in ("unet", "text_encoder_1", "text_encoder_2", "vae"):
        assert same(parts.module(name).state_dict(), back.module(name).state_dict())
    told = json.loads((folder / "unet" / "config.json").read_text())
    kept = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())
    assert {k: v for k, v in told.items() if kept.get(k) != v and not k.startswith("_")} == {}


def test_trained_weights_replace_their_own_and_compile_prefixes_never_leave(parts: Parts, tmp_path: Path) -> None:
    trained = {
        "unet._orig_mod.conv_in.bias": torch.full((32,), 2.0),
        "text_encoder_1.encoder.layers.0.mlp.fc1.bias": torch.full((64,), 3.0),
        "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj.bias": torch.full((64,), 4.0),
    }
    path = tmp_path / "x.safetensors"
    export.single_file(parts, trained, settings(), path)
    tensors = load_file(path)
    assert torch.equal(tensors[layout.UNET + "input_blocks.0.0.bias"], torch.full((32,), 2.0))
    assert torch.equal(tensors[layout.TEXT_1 + "encoder.layers.0.mlp.fc1.bias"], torch.full((64,), 3.0))
    fused = tensors[layout.TEXT_2 + "transformer.resblocks.1.attn.in_proj_bias"]
    assert torch.equal(fused[64:128], torch.full((64,), 4.0)) and not (fused[:64] == 4).any()
    assert not [n for n in tensors if "_orig_mod" in n or "text_model.text_model" in n]
    with pytest.raises(ValueError, match="no weight named"):
        export.single_file(parts, {"unet.nothing": torch.zeros(1)}, settings(), path)


def test_a_piece_of_a_weight_is_never_exported(folder: Path, tmp_path: Path) -> None:
    parts = files.load(str(folder), None, None)
    weight = parts.unet.conv_in.weight
    whole = weight.detach().clone()
    weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    with pytest.raises(ValueError, match=r"piece of conv_in\.weight"):
        export.single_file(parts, {}, settings(), tmp_path / "x.safetensors")
    export.single_file(parts, {"unet.conv_in.weight": whole}, settings(), tmp_path / "x.safetensors")
    half = {"unet.conv_in.weight": whole, "unet.conv_out.weight": parts.unet.conv_out.weight[:2]}
    with pytest.raises(ValueError, match="another shape"):
        export.single_file(parts, half, settings(), tmp_path / "x.safetensors")


def test_the_header_says_who_made_it_and_what_shapes_do_not_show(parts: Parts, tmp_path: Path) -> None:
    output = {"name": "out", "dtype": "fp16", "author": "A", "license": "L", "description": "D"}
    export.single_file(parts, {}, settings(output=output), tmp_path / "x.safetensors")
    said = metadata(tmp_path / "x.safetensors")
    assert (said["modelspec.author"], said["modelspec.license"], said["modelspec.description"]) == ("A", "L", "D")
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert said["modelspec.prediction_type"] == "epsilon" and said["modelspec.resolution"] == "1024x1024"
    stated = json.loads(said[architecture.STATED])
    assert stated["unet"] == {"attention_head_dim": [2, 4, 4], "norm_num_groups": 16, "sample_size": 16}
    assert stated["vae"]["scaling_factor"] == 1.8


def test_markers_follow_what_is_trained(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    v = settings(objective={"prediction": "v", "zero_terminal_snr": True})
    export.single_file(parts, {}, v, path)
    assert {"v_pred", "ztsnr"} <= load_file(path).keys()
    parts.extras["v_pred"] = torch.empty(0)
    try:
        export.single_file(parts, {}, settings(objective={"prediction": "epsilon"}), path)
    finally:
        del parts.extras["v_pred"]
    assert not {"v_pred", "ztsnr"} & load_file(path).keys()
    export.diffusers_folder(parts, {}, v, tmp_path / "folder")
    schedule = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["prediction_type"], schedule["rescale_betas_zero_snr"]) == ("v_prediction", True)
    loaded = files.load(str(tmp_path / "folder"), None, None)
    assert (loaded.diffusion.prediction, loaded.diffusion.zero_terminal_snr) == ("v", True)


def test_a_weight_that_is_not_finite_leaves_the_older_file_alone(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"older")
    weights = {"unet.conv_in.bias": torch.full((32,), 1e6)}
    with pytest.raises(RunError, match=r"1 weights are not finite as fp16, .*input_blocks\.0\.0\.bias"):
        export.single_file(parts, weights, settings("fp16"), path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunError, match="not finite"):
        export.diffusers_folder(parts, weights, settings("fp16"), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_older_file_and_nothing_half_written(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "x.safetensors", tmp_path / "folder"
    export.single_file(parts, {}, settings(), path)
    export.diffusers_folder(parts, {}, settings(), folder)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write, place in ((export.single_file, path), (export.diffusers_folder, folder)):
        with pytest.raises(RunError) as caught:
            write(parts, {}, settings("fp16"), place)
        assert caught.value.failure == "disk-full" and str(place) in str(caught.value)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.safetensors"]
    files.check(str(folder), None, None)


def test_diffusers_draws_the_same_from_the_file_and_from_the_folder(folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    original = files.load(str(folder), None, None)
    trained = {"text_encoder_2.text_projection.weight": torch.randn(48, 64, generator=torch.manual_seed(5)) / 8}
    export.single_file(original, trained, settings("fp32"), tmp_path / "x.safetensors")
    export.diffusers_folder(original, trained, settings("fp32"), tmp_path / "folder")
    single = StableDiffusionXLPipeline.from_single_file(
        str(tmp_path / "x.safetensors"), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    whole = StableDiffusionXLPipeline.from_pretrained(str(tmp_path / "folder"), local_files_only=True)
    pictures = []
    for pipeline in (single, whole):
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline("a red circle", num_inference_steps=2, height=64, width=64, output_type="pt",
                         generator=torch.manual_seed(0))  # fmt: skip
        pictures.append(drawn.images)
    assert torch.equal(*pictures)
    weight = single.text_encoder_2.text_projection.weight
    assert torch.equal(weight, trained["text_encoder_2.text_projection.weight"])
    for name, part in (("unet", "unet"), ("text_encoder", "text_encoder_1"), ("vae", "vae")):
        assert same(getattr(single, name).state_dict(), original.module(part).state_dict())
    names = load_file(tmp_path / "folder" / "text_encoder" / "model.safetensors").keys()
    assert all(n.startswith("text_model.") for n in names)


@pytest.mark.parametrize("dtype", [pytest.param("fp16", marks=pytest.mark.long), "bf16"])
def test_the_proof_finds_no_difference_in_a_true_export(dtype: str, parts: Parts, tmp_path: Path) -> None:
    trained = {"unet.conv_out.weight": torch.randn(4, 32, 3, 3, generator=torch.manual_seed(1))}
    path = tmp_path / "x.safetensors"
    export.single_file(parts, trained, settings(dtype), path)
    found = proof.prove(path, parts, trained)
    assert found.worst < 1e-5
    assert next(parts.unet.parameters()).dtype == torch.float32, "the live model is left as it was"
    with pytest.raises(RunError, match="UNet's output"):
        proof.prove(path, parts, {})  # the same file, said to be made of other weights


@pytest.mark.parametrize(
    ("key", "damage", "told"),
    [
        (layout.TEXT_2 + "transformer.resblocks.0.attn.in_proj_bias", lambda t: t.roll(64), "text states"),
        (layout.TEXT_2 + "text_projection", lambda t: t.flip(0), "pooled"),
        (layout.TEXT_1 + "encoder.layers.0.mlp.fc1.weight", lambda t: t * 1.5, "text states"),
        (layout.UNET + "input_blocks.4.0.emb_layers.1.weight", lambda t: t * 1.5, "UNet's output"),
        (layout.VAE + "decoder.conv_in.weight", lambda t: t * 1.5, "pixels"),
        (layout.UNET + "out.2.weight", lambda t: t * float("nan"), "nan"),
        (layout.UNET + "out.2.weight", None, "cannot be read back"),
    ],
)
def test_the_proof_refuses_a_file_with_one_wrong_tensor(
    key: str, damage: Any, told: str, parts: Parts, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    # biases are zero in a fresh encoder: mixing up thirds of zeros would change nothing
    trained = {
        f"text_encoder_2.text_model.encoder.layers.0.self_attn.{p}_proj.bias": torch.full((64,), value)
        for p, value in (("q", 0.5), ("k", -1.0), ("v", 2.0))
    }
    export.single_file(parts, trained, settings("fp32"), path)
    tensors = load_file(path)
    tensors = {n: t.clone() for n, t in tensors.items()}
    if damage is None:
        del tensors[key]
    else:
        tensors[key] = damage(tensors[key]).contiguous()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(RunError, match=told):
        proof.prove(path, parts, trained)


def lora(parts: Parts) -> dict[str, Any]:
    """Low-rank additions under peft's names, for layers of each part."""
    torch.manual_seed(3)
    layers = {
        "unet": ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                 "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
                 "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0"],
        "text_encoder_1": ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj"],
        "text_encoder_2": ["text_model.encoder.layers.2.mlp.fc2",
                           "text_model.encoder.layers.2.self_attn.out_proj"],
    }  # fmt: skip
    weights = {}
    for part, names in layers.items():
        for name in names:
            layer = parts.module(part).get_submodule(name)
            weights[f"{part}.{name}.lora_A.default.weight"] = torch.randn(4, layer.in_features)
            weights[f"{part}.{name}.lora_B.default.weight"] = torch.randn(layer.out_features, 4)
    return weights


def test_a_lora_file_has_the_names_that_kohya_gave(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    weights = lora(parts)
    export.lora_file(parts, weights, 2.0, settings("fp32"), path)
    tensors = load_file(path)
    assert {n.removesuffix(".alpha") for n in tensors if n.endswith(".alpha")} == {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_1_ff_net_0_proj",
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te2_text_model_encoder_layers_2_mlp_fc2",
        "lora_te2_text_model_encoder_layers_2_self_attn_out_proj",
    }
    assert tensors["lora_te2_text_model_encoder_layers_2_mlp_fc2.lora_down.weight"].shape == (4, 128)
    assert tensors["lora_te2_text_model_encoder_layers_2_mlp_fc2.lora_up.weight"].shape == (64, 4)
    assert all(t == 2.0 for n, t in tensors.items() if n.endswith(".alpha"))
    said = metadata(path)
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2.0")
    # without the adapter's name, as `lora.additions` gives them
    export.lora_file(
        parts, {n.replace(".default", ""): t for n, t in weights.items()}, 2.0, settings("fp32"), path
    )
    assert same(load_file(path), tensors)


FUSED = """
import sys, torch
from diffusers import StableDiffusionXLPipeline
folder, out = sys.argv[1:]
pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
own = {"unet": pipeline.unet, "text_encoder_1": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
def keep(name):
    torch.save({part: dict(module.state_dict()) for part, module in own.items()}, f"{out}/{name}.pt")
keep("before")
pipeline.load_lora_weights(out, weight_name="lora.safetensors", local_files_only=True)
pipeline.fuse_lora()
pipeline.unload_lora_weights()
keep("after")
"""


def test_diffusers_applies_the_lora_as_it_was_trained(folder: Path, parts: Parts, tmp_path: Path) -> None:
    weights = lora(parts)
    export.lora_file(parts, weights, 2.0, settings("fp32"), tmp_path / "lora.safetensors")
    # In a process of its own: here diffusers may have been imported by the trainer, which hides peft from it.
    argv = [sys.executable, "-c", FUSED, str(folder), str(tmp_path)]
    subprocess.run(argv, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=240)
    before, after = (torch.load(tmp_path / f"{name}.pt") for name in ("before", "after"))
    changed = 0
    for part, module in after.items():
        for name, tensor in module.items():
            layer = f"{part}.{name.removesuffix('.weight')}"
            if f"{layer}.lora_A.default.weight" in weights:
                a, b = (weights[f"{layer}.lora_{side}.default.weight"] for side in "AB")
                torch.testing.assert_close(tensor, before[part][name] + (2.0 / 4) * b @ a)
                changed += 1
            else:
                assert torch.equal(tensor, before[part][name])
    assert changed == len(weights) // 2
