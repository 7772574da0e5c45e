"""Proves which weights of the UNet a selection trains: the presets' exact sizes, blocks, patterns and refusals."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import specimens  # noqa: E402

from clusterft_trainer.errors import ConfigError  # noqa: E402
from clusterft_trainer.model.selection import selected  # noqa: E402

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """How many numbers each weight of the full-size UNet has."""
    return {name: weight.numel() for name, weight in specimens.full_unet().named_parameters()}


def count(sizes: dict[str, int], *parts: str) -> int:
    return sum(sizes[name] for name in selected(sizes, parts))


def test_the_presets_train_as_many_weights_as_published(sizes: dict[str, int]) -> None:
    assert sum(sizes.values()) == specimens.FULL_WEIGHTS
    assert count(sizes, "all") == 2_567_463_684
    assert count(sizes, "unet-71") == 1_827_058_244
    assert count(sizes, "unet-68") == 1_764_781_124, "68.7%"
    assert selected(sizes, "unet-71") == selected(sizes, ("unet-71",)), "alone in a list it is the same"


def test_unet_71_leaves_exactly_the_named_blocks_as_they_are(sizes: dict[str, int]) -> None:
    trained = selected(sizes, "unet-71")
    frozen = {name.rpartition(".")[0] for name in set(sizes) - trained}
    inner = {f"{side}_blocks.{b}.{kind}" for side, b, kind in (("down", 0, "resnets"), ("up", 2, "resnets"))}
    whole = {"down_blocks.0.downsamplers", "down_blocks.1.downsamplers", "down_blocks.2.attentions.1"}
    whole |= {"up_blocks.0.attentions.0", "up_blocks.0.upsamplers", "up_blocks.1.upsamplers", *inner}
    assert all(any(name.startswith(block) for block in whole) for name in frozen)
    assert all(any(name.startswith(block) for name in frozen) for block in whole)
    also = set(sizes) - selected(sizes, "unet-68") - (set(sizes) - trained)
    assert {name.split(".")[1] for name in also} == {"resnets"} and all(n.startswith("mid_") for n in also)


def test_blocks_and_patterns_add_up(sizes: dict[str, int]) -> None:
    block = selected(sizes, ("input_blocks.4",))
    assert {tuple(n.split(".")[:4]) for n in block} == {
        ("down_blocks", "1", "resnets", "0"),
        ("down_blocks", "1", "attentions", "0"),
    }
    attention = selected(sizes, ("input_blocks.4.1",))
    assert attention == {n for n in sizes if n.startswith("down_blocks.1.attentions.0.")}
    cross = selected(sizes, ("*.attn2.*",))
    assert cross == {n for n in sizes if ".attn2." in n} and cross
    assert selected(sizes, ("input_blocks.4", "*.attn2.*")) == block | cross
    for name, start in (
        ("out", "conv_"),
        ("time_embed", "time_"),
        ("label_emb", "add_"),
        ("middle_block", "mid_"),
    ):
        assert all(n.startswith(start) for n in selected(sizes, (name,)))
    assert "conv_in.weight" not in selected(sizes, ("out",)), "out is no beginning of output_blocks"
    assert len(selected(sizes, ("input_blocks.1",))) < len(sizes) / 20, "input_blocks.1 is not input_blocks.10 too"
    assert selected(sizes, ("conv_out.bias",)) == selected(sizes, ("out.2.bias",)) == {"conv_out.bias"}


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (("input_blocks.9",), "Nearest: input_blocks"),
        (("middel_block",), "Nearest: middle_block"),
        (("unet-70",), "Nearest: unet-71"),
        (("mid_block",), r"write it as a pattern, mid_block\.\*"),
        (("input_blocks.4", "unet-71"), "preset, which stands alone"),
        (("*.attn3.*",), r"output_blocks\.8, .*time_embed|time_embed.*output_blocks\.8"),
        (("input_blocks.4", "in"), "patterns over diffusers' names"),
    ],
)
def test_a_name_that_selects_nothing_is_refused_with_what_there_is(
    sizes: dict[str, int], parts: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(ConfigError, match="names no weight of this UNet") as error:
        selected(sizes, parts)
    assert error.match(remedy)
