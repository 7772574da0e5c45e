"""What the tests of model files share: damaged copies, full-size headers without data, and what a refusal says."""

from __future__ import annotations

import importlib.metadata
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clusterft_trainer.config import TrainConfig
from clusterft_trainer.errors import ConfigError, DataError
from clusterft_trainer.model import architecture, files, layout, stored

Tensors = dict[str, Any]
CONFIG = TrainConfig.model_validate(
    {
        "model": "builtin:tiny",
        "output": {"name": "out", "dtype": "fp16"},
        "data": {"sources": [{"builtin": "shapes"}]},
        "learn": {"unet": {"rate": 1e-3}},
        "steps": 1,
    }
)


def packaged() -> bool:
    try:
        return importlib.metadata.distribution("open_clip_torch") is not None
    except importlib.metadata.PackageNotFoundError:
        return False


needs_vocabulary = pytest.mark.skipif(not packaged(), reason="open_clip_torch, which brings CLIP's vocabulary")


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
