"""Proves that a model's size is read from the heads of its files, of either layout, and of nothing else."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from clusterft.facts import model
from clusterft.probing import model as probing
from clusterft.remote.local import LocalRemote


def write(path: Path, shapes: dict[str, tuple[int, ...]], *, kind: str = "F16", wide: int = 2) -> None:
    """A safetensors file as the library lays it out; its data is a hole."""
    body: dict[str, object] = {"__metadata__": {"about": "line\nbreak"}}
    at = 0
    for name, shape in shapes.items():
        size = wide
        for side in shape:
            size *= side
        body[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(body).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + at)


def weights(path: Path) -> Mapping[str, int] | None:
    return probing.weights(LocalRemote(), str(path))


def test_a_single_file_is_counted_by_its_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "a 'model'.safetensors"
    shapes: dict[str, tuple[int, ...]] = {
        "model.diffusion_model.input_blocks.0.0.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.out.2.bias": (4,),
        "conditioner.embedders.0.transformer.a": (768, 10),
        "conditioner.embedders.1.model.a": (1280,),
        "first_stage_model.a": (3, 3),
        "denoiser.sigmas": (1000,),
    }
    write(path, shapes)
    assert weights(path) == {"unet": 1280 * 1280 * 9 + 4, "text_encoder_1": 7680, "text_encoder_2": 1280, "vae": 9}


def test_a_folder_is_counted_once_whatever_its_shards_and_variants(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors", {"a": (5, 5)})
    write(tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors", {"b": (7,)})
    write(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"a": (5, 5), "b": (7,)})
    write(tmp_path / "text_encoder_2" / "model.safetensors", {"c": (3,)})
    assert weights(tmp_path) == {"unet": 32, "text_encoder_1": 0, "text_encoder_2": 3, "vae": 0}


def test_what_is_no_model_is_not_counted(tmp_path: Path) -> None:
    assert weights(tmp_path / "gone.safetensors") is None and weights(tmp_path) is None
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    (tmp_path / "pickled.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    write(tmp_path / "lora.safetensors", {"lora_unet_a": (4, 4)})
    assert all(weights(path) is None for path in tmp_path.iterdir())


def test_what_is_built_in_is_not_looked_for_and_half_an_answer_is_none() -> None:
    assert probing.weights(LocalRemote(), "builtin:tiny") is None
    assert model.parse('head unet\n{"a": {"shape": [2]}}\n') is None
    assert model.parse('head unet\n{"a": {"shape": [2]}}\nend\n') is not None
