"""Proves the low-rank additions: where they are, that they begin as nothing, alike everywhere, and learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import specimens  # noqa: E402

from clusterft_trainer import builtin  # noqa: E402
from clusterft_trainer.config import Compute, Learn, Lora  # noqa: E402
from clusterft_trainer.errors import DataError  # noqa: E402
from clusterft_trainer.model import lora, sdxl  # noqa: E402

pytestmark = pytest.mark.trainer
EVERY = {"unet": {"rate": 1e-3}, "text_encoders": {"rate": 1e-4}, "lora": {"rank": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.materialise("tiny", 0, tmp_path_factory.mktemp("builtin"))


def built(folder: Path, seed: int = 0, **changes: Any) -> sdxl.Denoiser:
    return sdxl.build_denoiser(specimens.tiny(folder), Learn.model_validate(EVERY | changes), Compute(), seed)


def predicted(denoiser: sdxl.Denoiser, folder: Path) -> torch.Tensor:
    encoders = sdxl.Encoders(specimens.tiny(folder), denoiser, "cpu")
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    given = encoders.condition(["a red circle on white"], torch.zeros((1, 6)))
    found: torch.Tensor = denoiser(noise, torch.tensor([500]), given)
    return found


def test_only_additions_move_and_their_names_are_plain(folder: Path) -> None:
    denoiser = built(folder)
    moving = {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
    added = lora.additions(dict(denoiser.named_parameters()))
    assert len(added) == len(moving) > 0
    assert all(".default" not in n and n.endswith((".lora_A.weight", ".lora_B.weight")) for n in added)
    assert {n.split(".")[0] for n in added} == {"unet", *sdxl.TEXT}
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    assert added[f"{layer}.lora_A.weight"].shape == (3, 96) and added[f"{layer}.lora_B.weight"].shape == (64, 3)
    assert f"{layer}.base_layer.weight" in dict(denoiser.named_parameters())
    first = {n.split(".layers.")[1][0] for n in added if n.startswith("text_encoder_1.")}
    assert first == {"0"}, "the last layer's output is not used"
    assert {part: sum(n.startswith(f"{part}.") for n in moving) for part in ("unet", *sdxl.TEXT)} == {
        "unet": 2 * 10 * (2 * 1 + 2 * 2 + 2 + 3 * 2 + 3 * 1),
        "text_encoder_1": 2 * 6 * 1,
        "text_encoder_2": 2 * 6 * 3,
    }


def test_at_first_the_additions_change_nothing(folder: Path) -> None:
    learn = Learn.model_validate(EVERY | {"lora": None})
    bare = sdxl.build_denoiser(specimens.tiny(folder), learn, Compute())
    with torch.no_grad():
        assert torch.equal(predicted(bare, folder), predicted(built(folder), folder))


def test_every_addition_learns_and_nothing_else_does(folder: Path) -> None:
    denoiser = built(folder, gradient_checkpointing=True)
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            if "lora_B" in name:  # zero at first, which would keep the other factor's gradient zero
                weight.normal_(0.0, 0.1)
    predicted(denoiser, folder).square().mean().backward()
    for name, weight in denoiser.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
        if weight.grad is not None:
            assert weight.grad.abs().max() > 0, name


def test_additions_are_alike_on_every_rank_and_leave_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = lora.additions(built(folder, seed=1).state_dict())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    two, other = (
        lora.additions(built(folder, seed=1).state_dict()),
        lora.additions(built(folder, seed=2).state_dict()),
    )
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_the_scale_is_alpha_over_rank(folder: Path) -> None:
    assert lora.alpha(Lora(rank=8)) == 8 and lora.alpha(Lora(rank=8, alpha=4)) == 4
    layer = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    for settings, scale in (({"rank": 4}, 1.0), ({"rank": 4, "alpha": 2.0}, 0.5)):
        linear = built(folder, lora=settings).get_submodule(layer)
        states = torch.randn((2, 64))
        with torch.no_grad():
            linear.lora_B["default"].weight.normal_()
            up, down = linear.lora_B["default"].weight, linear.lora_A["default"].weight
            expected = linear.base_layer(states) + scale * states @ down.T @ up.T
            assert torch.allclose(linear(states), expected, atol=1e-5)


def test_the_full_unet_gets_ten_additions_in_each_of_its_70_transformer_blocks() -> None:
    names = lora.targets(dict(specimens.full_unet().named_modules()), "unet")
    assert len(names) == 700
    assert {n.split(".transformer_blocks.")[1].partition(".")[2] for n in names} == {
        *(f"attn{k}.{leaf}" for k in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj",
        "ff.net.2",
    }


def test_a_part_without_such_layers_is_refused() -> None:
    with pytest.raises(DataError, match="unet of this model has no attention"):
        lora.targets({"conv_in": None}, "unet")
