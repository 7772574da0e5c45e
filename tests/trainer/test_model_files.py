"""Proves what is read as a model, and that bad input of each kind is told with its file and what to do."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from clusterft_trainer import builtin, export  # noqa: E402
from clusterft_trainer.config import TrainConfig  # noqa: E402
from clusterft_trainer.errors import ConfigError, DataError  # noqa: E402
from clusterft_trainer.model import architecture, files, layout, stored, tokenizers  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer
CONFIG = TrainConfig.model_validate(
    {
        "model": "builtin:tiny",
        "output": {"name": "out", "dtype": "fp16"},
        "data": {"sources": [{"builtin": "shapes"}]},
        "learn": {"unet": {"rate": 1e-3}},
        "steps": 1,
    }
)
Tensors = dict[str, Any]


def packaged() -> bool:
    try:
        return importlib.metadata.distribution("open_clip_torch") is not None
    except importlib.metadata.PackageNotFoundError:
        return False


needs_vocabulary = pytest.mark.skipif(not packaged(), reason="open_clip_torch, which brings CLIP's vocabulary")


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


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A model folder to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refused(path: Path, tokenizer_folder: Path | None = None, vae: Path | None = None) -> str:
    """What `check` says of it."""
    given = [None if p is None else str(p) for p in (tokenizer_folder, vae)]
    with pytest.raises((DataError, ConfigError)) as caught:
        files.check(str(path), given[0], given[1])
    assert caught.value.exit_code == 2 and caught.value.remedy
    return str(caught.value)


def changed(single: Path, path: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The tiny single file with other tensors; its header is kept."""
    head = stored.header(single)
    save_file({n: t.contiguous() for n, t in change(load_file(single)).items()}, path, dict(head.metadata))
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


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with the header of a full model, whose data the disk does not hold."""
    body, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.tensor(shape).prod()) if shape else 2
        body[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(body).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


def full_shapes() -> dict[str, tuple[int, ...]]:
    from test_layout import FULL

    found: dict[str, tuple[int, ...]] = {layout.LOGIT_SCALE: ()}
    for part, config in FULL.items():
        for name, tensor in layout.stored(part, architecture.build(part, config).state_dict()).items():
            found[name] = tuple(tensor.shape)
    return found


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
    from clusterft_trainer.model import single_file

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


# Folders


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
    from clusterft_trainer.model import single_file

    shapes = {n: s for n, s in full_shapes().items() if n.startswith(layout.VAE)}
    bare = {n.removeprefix(layout.VAE): s for n, s in shapes.items()}
    matrix = bare | {"encoder.mid.attn_1.q.weight": (512, 512)}  # as some files keep it
    for given in (shapes, bare, matrix):
        found = single_file.find_vae(sparse(tmp_path / "vae.safetensors", given))
        assert len(found.sources) == 248
        assert found.module.config.scaling_factor == 0.13025


# Tokenizers


@needs_vocabulary
def test_the_packaged_vocabulary_gives_clips_own_ids() -> None:
    one, two = tokenizers.load(Path("/nonexistent"), None, (49408, 49408))
    known = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "a photo of a dog": [320, 1125, 539, 320, 1929],
        "Hello, World!": [3306, 267, 1002, 256],
        "": [],
    }  # "!" too: that it is the second one's padding must not make it special within a caption
    for text, ids in known.items():
        for tokenizer in (one, two):
            assert tokenizer(text).input_ids == [49406, *ids, 49407]
    padded = [t("a", padding="max_length", max_length=77).input_ids for t in (one, two)]
    assert [len(p) for p in padded] == [77, 77]
    assert padded[0][3:] == [49407] * 74 and padded[1][3:] == [0] * 74
    assert (one.model_max_length, two.model_max_length) == (77, 77)


@needs_vocabulary
def test_tokenizers_are_looked_for_in_order(folder: Path, single: Path, tmp_path: Path) -> None:
    beside = tmp_path / "model"
    beside.mkdir()
    shutil.copy(single, beside / "x.safetensors")
    # the packaged vocabulary is there, but this is not its model
    known = tiny_vocabulary(folder)
    assert f"know 49408 tokens, the model's text encoder {known}" in refused(beside / "x.safetensors")
    shutil.copytree(folder / "tokenizer", beside / "tokenizer")
    shutil.copytree(folder / "tokenizer_2", beside / "tokenizer_2")
    files.check(str(beside / "x.safetensors"), None, None)
    one, two = tokenizers.load(Path("/nonexistent"), str(folder / "tokenizer"), (tiny_vocabulary(folder),) * 2)
    assert (one.pad_token, two.pad_token) == ("<|endoftext|>", "!"), "one vocabulary serves both"
    assert "holds neither tokenizer/ nor vocab.json" in refused(beside / "x.safetensors", tmp_path)
    again = tmp_path / "again"
    tokenizers.save(two, again)
    for name in ("vocab.json", "merges.txt", ""):  # from either form, and with both
        read = tokenizers.load(Path("/nonexistent"), str(again), (tiny_vocabulary(folder),) * 2)[1]
        assert read("a red circle!").input_ids == two("a red circle!").input_ids
        if name:
            (again / name).unlink()
    (beside / "tokenizer" / "merges.txt").unlink()
    assert "holds neither vocab.json and merges.txt" in refused(beside / "x.safetensors")


def tiny_vocabulary(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))


def test_tokenizers_come_from_the_hubs_cache_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / "abc"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / name, snapshot / name)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    one, two = tokenizers.load(Path("/nonexistent"), None, (tiny_vocabulary(folder),) * 2)
    assert (one.pad_token, two.pad_token) == ("<|endoftext|>", "!")


def test_missing_tokenizers_name_every_place_that_was_looked_at(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "_PACKAGE", "open_clip_torch_not_installed")
    monkeypatch.setattr(tokenizers, "_from_cache", lambda: None)
    said = refused(single)
    assert str(single.parent / "tokenizer") in said and "openai/clip-vit-large-patch14" in said
    assert "the package" in said and "Set tokenizers:" in said


def test_nothing_is_asked_of_the_network(folder: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    files.load(str(folder), None, None)
    files.load(str(single), str(folder), None)
