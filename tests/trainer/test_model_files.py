"""Proves that one file is read as a model, or told for what it is: which file, what is wrong, what to do."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from modelfiles import CONFIG, Tensors, changed, full_shapes, needs_vocabulary, refused, sparse  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from clusterft_trainer import builtin, export  # noqa: E402
from clusterft_trainer.errors import ConfigError  # noqa: E402
from clusterft_trainer.model import files, layout, single_file, stored  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.materialise("tiny", 0, tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return files.load(str(folder), None, None)


@pytest.fixture(scope="module")
def single(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    export.single_file(parts, {}, CONFIG, path)
    return path


# Kinds of files that people take for a model


def test_a_truncated_file_is_told_with_both_sizes(single: Path, folder: Path, tmp_path: Path) -> None:
    whole, path = single.read_bytes(), tmp_path / "cut.safetensors"
    for size in (len(whole) // 2, len(whole) - 1, 5000):
        path.write_bytes(whole[:size])
        said = refused(path, folder)
        assert (
            f"{path} is cut off" in said and f"the file has {size}" in said and "Copy or download it again" in said
        )
    path.write_bytes(whole[:-1])
    assert f"take {len(whole)} bytes" in refused(path, folder)
    path.write_bytes(whole + b"x")
    assert "is damaged" in refused(path, folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "pickled checkpoint"),
        (b"\x80\x02}q\x00" + bytes(100), "pickled checkpoint"),
        (b"<!DOCTYPE html><html>not found</html>", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6938040682\n", "Git LFS pointer"),
        (struct.pack("<Q", 4) + b"[1]{" + bytes(64), "header cannot be read"),
        (struct.pack("<Q", 25) + b'{"a":{"dtype":"F32","x":}' + bytes(64), "header cannot be read"),
        (
            struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}       ' + bytes(4),
            "damaged",
        ),
    ],
)
def test_what_is_no_safetensors_file_is_told_as_what_it_is(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    said = refused(path)
    assert told in said and str(path) in said


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"], "is a LoRA"),
        (["unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"], "is a LoRA"),
        (["lora_te1_x.hada_w1_a"], "is a LoRA"),
        ([layout.UNET + "input_blocks.0.0.weight", "cond_stage_model.transformer.x"], "Stable Diffusion 1.x"),
        (
            [layout.UNET + "input_blocks.0.0.weight", "cond_stage_model.model.ln_final.bias"],
            "Stable Diffusion 2.x",
        ),
        ([layout.UNET + "input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.bias"], "refiner"),
        (["first_stage_model.encoder.conv_in.weight", "first_stage_model.quant_conv.bias"], "is a VAE alone"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.bias"], "is a VAE alone"),
        ([layout.UNET + "input_blocks.0.0.weight"], "is a UNet alone"),
        (["down_blocks.0.resnets.0.norm1.weight"], "is a UNet alone, in diffusers' names"),
        ([layout.UNET + "joint_blocks.0.x"], "Stable Diffusion 3 or Flux"),
        (["model.diffusion_model.double_blocks.0.x"], "Stable Diffusion 3 or Flux"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["clip_g", "clip_l"], "textual inversion"),
        (["transformer.wte.weight"], "holds no UNet"),
        (["model._orig_mod.diffusion_model.input_blocks.0.0.weight"], "torch.compile"),
    ],
)
def test_other_kinds_of_files_are_named(names: list[str], told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({n: torch.zeros(1) for n in names}, path)
    said = refused(path)
    assert told in said and str(path) in said


def test_models_that_look_like_sdxl_and_train_otherwise_are_refused(
    single: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    wide = {layout.UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3, dtype=torch.float16)}
    assert "inpainting" in refused(changed(single, path, lambda t: t | wide), folder)
    assert "EDM" in refused(changed(single, path, lambda t: t | {"edm_mean": torch.zeros(4)}), folder)
    rounded = {n: t.to(torch.float8_e4m3fn) for n, t in load_file(single).items()}
    assert "format F8_E4M3" in refused(changed(single, path, lambda t: rounded), folder)
    counted = {layout.UNET + "out.0.bias": torch.zeros(32, dtype=torch.int8)}
    assert "was quantised" in refused(changed(single, path, lambda t: t | counted), folder)
    unknown = {layout.UNET + "input_blocks.4.1.extra.weight": torch.zeros(3)}
    assert "1 tensors that SDXL has no place for" in refused(changed(single, path, lambda t: t | unknown), folder)


def test_missing_tensors_are_counted_and_the_first_named(single: Path, folder: Path, tmp_path: Path) -> None:
    lost = [n for n in load_file(single) if ".resblocks.1.mlp." in n]
    path = changed(single, tmp_path / "x.safetensors", lambda t: {n: v for n, v in t.items() if n not in lost})
    said = refused(path, folder)
    assert f"lacks 4 of the {5 + 12 * 3} tensors of its second text encoder: {lost[0]}" in said
    assert "and 1 more" in said
    for prefix, title in ((layout.VAE, "has no VAE"), (layout.TEXT_1, "has no first text encoder")):
        cut = changed(single, path, lambda t, p=prefix: {n: v for n, v in t.items() if not n.startswith(p)})
        assert title in refused(cut, folder)
    key = layout.UNET + "label_emb.0.0.weight"
    assert "label_emb.0.0.weight" in refused(
        changed(single, path, lambda t: {n: t[n] for n in t if n != key}), folder
    )


def test_another_shape_is_told_with_both_shapes(single: Path, folder: Path, tmp_path: Path) -> None:
    key = layout.UNET + "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    path = changed(single, tmp_path / "x.safetensors", lambda t: t | {key: t[key][:32]})
    assert f"{key} has the shape 32x64, where the UNet of this architecture has 64x64" in refused(path, folder)


def test_heads_that_no_header_states_are_not_guessed(single: Path, folder: Path, tmp_path: Path) -> None:
    save_file(load_file(single), tmp_path / "x.safetensors")
    assert "do not show how many heads" in refused(tmp_path / "x.safetensors", folder)


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "does not exist on this node" in refused(tmp_path / "nothing")
    assert "cannot be read: No such file" in refused(tmp_path / "x.safetensors")
    assert "pickled" in refused(tmp_path / "x.ckpt")


# Full-size files, of which nothing but the header exists


@needs_vocabulary
def test_a_full_size_file_is_judged_by_its_header(tmp_path: Path) -> None:
    shapes = full_shapes()
    path = sparse(tmp_path / "full.safetensors", shapes)
    assert len(shapes) == 2514 and path.stat().st_size > 6_900_000_000
    files.check(str(path), None, None)
    # a file without its last layers must not pass for a shallower model
    cut = {n: s for n, s in shapes.items() if ".resblocks.31." not in n}
    said = refused(sparse(path, cut))
    assert "lacks 12 of the 389 tensors of its second text encoder" in said and "resblocks.31" in said
    cut = {n: s for n, s in shapes.items() if ".transformer_blocks.9." not in n}
    assert "tensors of its UNet" in refused(sparse(path, cut))


# Prediction types


def test_the_prediction_is_read_from_markers_and_headers(single: Path, tmp_path: Path) -> None:
    def told(tensors: Tensors, **metadata: str) -> tuple[str, bool]:
        path = tmp_path / "x.safetensors"
        said = {f"modelspec.{k}": v for k, v in metadata.items()}
        save_file({"a": torch.zeros(1)} | tensors, path, said or None)
        found = single_file.diffusion(stored.header(path))
        return found.prediction, found.zero_terminal_snr

    empty = torch.empty(0)
    assert told({}) == ("epsilon", False)
    assert told({"v_pred": empty}) == ("v", False)
    assert told({"v_pred": empty, "ztsnr": empty}, prediction_type="epsilon") == ("v", True)
    assert told({}, prediction_type="v") == told({}, predict_key="v") == ("v", False)
    with pytest.raises(ConfigError, match="predicts 'flow'"):
        told({}, prediction_type="flow")


# Another VAE


def test_another_vae_is_taken_from_a_file_or_a_folder(folder: Path, single: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder / "vae", tmp_path / "vae"))
    path = other / "diffusion_pytorch_model.safetensors"
    tensors = {n: t * 2 for n, t in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    for given in (other, path):  # diffusers' names: the config lies beside them
        loaded = files.load(str(folder), None, str(given))
        assert torch.equal(loaded.vae.state_dict()["decoder.conv_in.weight"], tensors["decoder.conv_in.weight"])
    # tell its scaling apart: a VAE of another family would fit by shape
    (other / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.18215}))
    assert "its scaling_factor is 0.18215" in refused(folder, None, other)
    (other / "config.json").unlink()
    assert "no config.json lies beside it" in refused(folder, None, path)
    assert "does not exist on this node" in refused(folder, None, tmp_path / "nothing.safetensors")
    assert "is no VAE" in refused(folder, None, changed(single, tmp_path / "u.safetensors", without_vae))


def without_vae(tensors: Tensors) -> Tensors:
    return {n: t for n, t in tensors.items() if not n.startswith(layout.VAE)}


def test_a_full_size_vae_file_is_understood_with_and_without_its_prefix(tmp_path: Path) -> None:
    shapes = {n: s for n, s in full_shapes().items() if n.startswith(layout.VAE)}
    bare = {n.removeprefix(layout.VAE): s for n, s in shapes.items()}
    matrix = bare | {"encoder.mid.attn_1.q.weight": (512, 512)}  # as some files keep it
    for given in (shapes, bare, matrix):
        found = single_file.find_vae(sparse(tmp_path / "vae.safetensors", given))
        assert len(found.sources) == 248
        assert found.module.config.scaling_factor == 0.13025
