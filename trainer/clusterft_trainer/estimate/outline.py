"""A model in a few numbers: what of it is trained, where no torch is at hand to count.

Owns the counts of the published SDXL and of the tiny model; `predict` counts the real modules, and a test holds
the two against each other. A model of another size is told by how many weights each part has, which the head of
its file says. Good for what lies on a disk and no more: it knows sums, and which part of them are convolutions.
Refuses to be exact about blocks that are named one by one, and about parts of a model of another size: those may
be the whole at most, and it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clusterft_trainer.config import Learn, TrainConfig
from clusterft_trainer.config.tree import TINY
from clusterft_trainer.estimate.arithmetic import Inventory, Weight

_ROW = 1280  # a usual width of SDXL's layers: what is made of rows and columns comes out as of its own
_SAME = 0.01  # files hold a few numbers beside the weights
_UNET, _FIRST, _SECOND, _VAE = "unet", "text_encoder_1", "text_encoder_2", "vae"


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of one model."""

    whole: dict[str, int]  # part -> weights
    moving: dict[str, int]  # preset of the UNet, or text encoder -> weights that training moves
    layers: dict[str, int]  # part -> inputs and outputs of the layers that LoRA is added to
    kernels: dict[
        str, int
    ]  # preset of the UNet -> weights in 3 x 3 convolutions, which factored states hardly cut


_SDXL = _Counts(
    whole={_UNET: 2_567_463_684, _FIRST: 123_060_480, _SECOND: 694_659_840, _VAE: 83_653_863},
    moving={
        "all": 2_567_463_684,
        "unet-71": 1_827_058_244,
        "unet-68": 1_764_781_124,
        _FIRST: 115_971_072,  # nothing reads its last layer
        _SECOND: 694_659_840,
    },
    layers={_UNET: 2_616_320, _FIRST: 152_064, _SECOND: 737_280},
    kernels={"all": 319_818_240, "unet-71": 283_875_840, "unet-68": 224_893_440},
)
_TINY = _Counts(
    whole={_UNET: 3_133_060, _FIRST: 37_248, _SECOND: 143_808, _VAE: 131_847},
    moving={
        "all": 3_133_060,
        "unet-71": 2_489_572,
        "unet-68": 2_324_836,
        _FIRST: 28_640,
        _SECOND: 143_808,
    },
    layers={_UNET: 33_728, _FIRST: 448, _SECOND: 2_688},
    kernels={"all": 1_320_192, "unet-71": 1_071_360, "unet-68": 923_904},
)


@dataclass(frozen=True, slots=True)
class Outline:
    """The weights of a run's model, as far as settings tell of them."""

    inventory: Inventory
    at_most: bool = False  # fewer may be trained
    assumed: bool = False  # the model is a file that nobody has looked at, and taken for a full-size one


def of(config: TrainConfig, found: Mapping[str, int] | None = None) -> Outline:
    """By the settings, and by how many weights each part of the model was found to have."""
    tiny, learn = config.model == TINY, config.learn
    known = _TINY if tiny else _resized(found) if found else _SDXL
    weights: list[Weight] = []
    for part, whole in known.whole.items():
        moving = _moving(known, learn, part)
        kernels = 0 if learn.lora or part != _UNET or not moving else known.kernels[_preset(learn) or "all"]
        beside = whole if learn.lora else whole - moving  # what LoRA trains is added to the whole
        weights += _lumps(part, moving - kernels, trained=True)
        weights += _lumps(part, beside, trained=False)
        weights += [Weight(part, (kernels // 9, 1, 3, 3), trained=True)] if kernels else []
    chosen = None if learn.lora or learn.unet is None else _preset(learn)
    resized = known is not _SDXL and not tiny
    vague = resized and (learn.lora or chosen not in (None, "all") or _FIRST in learn.trained)
    return Outline(
        Inventory(tuple(weights), 0, 0), at_most=bool(chosen == "" or vague), assumed=not (tiny or found)
    )


def _resized(whole: Mapping[str, int]) -> _Counts:
    """SDXL with parts of these sizes; what is trained of one that differs may be all of it."""
    if all(abs(whole.get(part, 0) / count - 1) < _SAME for part, count in _SDXL.whole.items()):
        return _SDXL
    share = {part: whole.get(part, 0) / count for part, count in _SDXL.whole.items()}
    presets = {name for name in _SDXL.moving if name not in _SDXL.whole}
    return _Counts(
        whole={part: whole.get(part, 0) for part in _SDXL.whole},
        moving={name: whole.get(_UNET if name in presets else name, 0) for name in _SDXL.moving},
        layers={part: round(count * max(1.0, share[part])) for part, count in _SDXL.layers.items()},
        kernels={name: round(count // 9 * share[_UNET]) * 9 for name, count in _SDXL.kernels.items()},
    )


def _preset(learn: Learn) -> str:
    """The preset of the UNet's parts; empty where blocks are named."""
    parts = "all" if learn.unet is None else learn.unet.parts
    one = parts if isinstance(parts, str) else parts[0] if len(parts) == 1 else ""
    return one if one in _SDXL.moving else ""


def _moving(known: _Counts, learn: Learn, part: str) -> int:
    if part not in learn.trained:
        return 0
    if learn.lora is not None:
        return learn.lora.rank * known.layers[part]
    return known.moving[(_preset(learn) or "all") if part == _UNET else part]


def _lumps(part: str, count: int, *, trained: bool) -> list[Weight]:
    """So many weights, as one matrix and what is left over."""
    rows, rest = divmod(count, _ROW)
    return [Weight(part, shape, trained) for shape in ((rows, _ROW), (rest,)) if 0 not in shape]
