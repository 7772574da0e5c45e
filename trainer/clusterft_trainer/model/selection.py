"""Which weights of the UNet are trained: presets, blocks by their single-file names, patterns over weight names.

Pure: names in, names out; `sdxl` freezes the rest. Refuses a name that selects nothing, which would otherwise
train less than was meant without a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from clusterft_trainer.errors import ConfigError
from clusterft_trainer.model import layout

_SETTING = "learn.unet.parts"
_FROZEN_71 = (
    "input_blocks.1",
    "input_blocks.2",
    "input_blocks.3",
    "input_blocks.6",
    "input_blocks.8.1",
    "output_blocks.0.1",
    "output_blocks.2.2",
    "output_blocks.5.2",
    "output_blocks.6",
    "output_blocks.7",
    "output_blocks.8",
)
# What each preset leaves as it is; the numbers are the whole percents of SDXL's weights that are trained.
FROZEN: dict[str, tuple[str, ...]] = {
    "all": (),
    "unet-71": _FROZEN_71,
    "unet-68": (*_FROZEN_71, "middle_block.0", "middle_block.2"),
}
_BLOCK = re.compile(r"(?:input|output)_blocks\.\d+|[a-z_]+")
_PIECE = re.compile(r"(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+")


def selected(weights: Iterable[str], parts: str | tuple[str, ...]) -> frozenset[str]:
    """Names of the trained weights, out of the diffusers names of all of a UNet's weights."""
    names = {name: place.key.removeprefix(layout.UNET) for name, place in layout.places("unet", weights).items()}
    wanted = (parts,) if isinstance(parts, str) else parts
    if len(wanted) == 1 and wanted[0] in FROZEN:
        frozen = frozenset[str]().union(*(_named(names, block) for block in FROZEN[wanted[0]]))
        return frozenset(names) - frozen
    return frozenset[str]().union(*(_named(names, part) for part in wanted))


def _named(names: Mapping[str, str], part: str) -> frozenset[str]:
    """The weights of one block, or those that one pattern fits."""
    found = frozenset(
        name for name, single in names.items() if f"{single}.".startswith(f"{part}.") or fnmatchcase(name, part)
    )
    if not found:
        raise ConfigError(f"{_SETTING}: {part} names no weight of this UNet.", _remedy(names, part))
    return found


def _remedy(names: Mapping[str, str], part: str) -> str:
    if part in FROZEN:
        return f"It is a preset, which stands alone: parts: {part}"
    if any(name.startswith(f"{part}.") for name in names):
        return f"That is a diffusers name: write it as a pattern, {part}.*"
    blocks = _first_matches(_BLOCK, names.values())
    pieces = _first_matches(_PIECE, names.values())
    near = difflib.get_close_matches(part, [*FROZEN, *blocks, *pieces, *names], n=3, cutoff=0.7)
    nearest = f"Nearest: {', '.join(near)}. " if near else ""
    return (
        f"{nearest}There are the blocks {', '.join(blocks)}; what blocks consist of, as {pieces[-1]}; "
        "patterns over diffusers' names of weights, as *.attn2.*; and as the only entry a preset, "
        f"{', '.join(FROZEN)}."
    )


def _first_matches(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    """What the pattern finds at the beginning of the names, each once, in the order of the model."""
    return list(dict.fromkeys(match[0] for name in names if (match := pattern.match(name))))
