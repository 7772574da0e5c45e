"""Proves that the exported names and shapes are those of the original SDXL file.

The full-size key list is derived from SDXL's published architecture on the meta device; values are
checked against diffusers' and transformers' own readers of the single-file format.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from clusterft_trainer import builtin  # noqa: E402
from clusterft_trainer.model import architecture, layout  # noqa: E402

pytestmark = pytest.mark.trainer
# The configs of stabilityai/stable-diffusion-xl-base-1.0, as far as shapes depend on them.
FULL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
    "text_encoder_1": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
    },
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    },
}


@pytest.fixture(scope="module")
def full() -> dict[str, dict[str, Any]]:
    """Names and shapes of the real model's parts, without their memory."""
    return {part: dict(architecture.build(part, config).state_dict()) for part, config in FULL.items()}


@pytest.fixture(scope="module")
def full_unet(full: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return full["unet"]


def bare(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """One part under its names in the file, without the part's prefix."""
    return {n.removeprefix(layout.PREFIX[part]): t for n, t in layout.stored(part, tensors).items()}


def test_the_full_model_has_the_keys_of_the_published_file(full: dict[str, dict[str, Any]]) -> None:
    stored = {part: bare(part, tensors) for part, tensors in full.items()}
    # logit_scale is the 390th of the second text encoder, and belongs to no module
    counts = {part: len(tensors) for part, tensors in stored.items()}
    assert counts == {"unet": 1680, "text_encoder_1": 196, "text_encoder_2": 389, "vae": 248}
    assert sum(t.numel() for t in stored["unet"].values()) == 2_567_463_684
    expected = {
        ("text_encoder_1", "embeddings.token_embedding.weight"): (49408, 768),
        ("text_encoder_1", "embeddings.position_embedding.weight"): (77, 768),
        ("text_encoder_1", "encoder.layers.11.mlp.fc2.weight"): (768, 3072),
        ("text_encoder_2", "positional_embedding"): (77, 1280),
        ("text_encoder_2", "token_embedding.weight"): (49408, 1280),
        ("text_encoder_2", "text_projection"): (1280, 1280),
        ("text_encoder_2", "ln_final.weight"): (1280,),
        ("text_encoder_2", "transformer.resblocks.31.attn.in_proj_weight"): (3840, 1280),
        ("text_encoder_2", "transformer.resblocks.31.attn.in_proj_bias"): (3840,),
        ("text_encoder_2", "transformer.resblocks.0.mlp.c_fc.weight"): (5120, 1280),
        ("vae", "encoder.mid.attn_1.q.weight"): (512, 512, 1, 1),
        ("vae", "encoder.down.1.block.0.nin_shortcut.weight"): (256, 128, 1, 1),
        ("vae", "encoder.conv_out.weight"): (8, 512, 3, 3),
        ("vae", "decoder.up.3.upsample.conv.weight"): (512, 512, 3, 3),
        ("vae", "decoder.up.0.block.2.conv2.weight"): (128, 128, 3, 3),
        ("vae", "quant_conv.weight"): (8, 8, 1, 1),
        ("vae", "post_quant_conv.bias"): (4,),
    }
    assert {(p, n): tuple(stored[p][n].shape) for p, n in expected} == expected


def test_the_full_model_is_told_from_its_shapes_alone(full: dict[str, dict[str, Any]]) -> None:
    shapes = {p: {n: tuple(t.shape) for n, t in bare(p, tensors).items()} for p, tensors in full.items()}
    found = architecture.configs(shapes, None)
    for part, config in FULL.items():
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        assert {k: found[part][k] for k in told} == told
        assert architecture.build(part, found[part]).state_dict().keys() == full[part].keys()
    assert architecture.unstated(found, shapes) is None, "SDXL's own header needs nothing of ours"


def test_the_full_unet_has_the_1680_keys_of_the_original(full_unet: dict[str, Any]) -> None:
    keys = bare("unet", full_unet)
    assert len(keys) == len(full_unet) == 1680
    counts: dict[str, int] = {}
    for name in keys:
        block = re.match(r"(?:input_blocks|output_blocks)\.\d+|[a-z_]+", name)
        assert block is not None
        counts[block[0]] = counts.get(block[0], 0) + 1
    assert {n for n in counts if "input" in n} == {f"input_blocks.{i}" for i in range(9)}
    assert {n for n in counts if "output" in n} == {f"output_blocks.{i}" for i in range(9)}
    expected = {
        "input_blocks.1.0.in_layers.0.weight": (320,),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.4.1.proj_in.weight": (640, 640),
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        "middle_block.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "label_emb.0.0.weight": (1280, 2816),
        "time_embed.2.bias": (1280,),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {n: tuple(keys[n].shape) for n in expected} == expected


def test_diffusers_reads_the_full_unet_back(full_unet: dict[str, Any]) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    stored = layout.stored("unet", full_unet)
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": "text_time"}
    back = convert_ldm_unet_checkpoint(stored, config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in full_unet.items()}
    # tensors are passed on as they are, so identity proves that each went to its own place
    assert all(back[n] is full_unet[n] for n in full_unet)


def test_the_vae_has_248_keys_and_reads_back() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=4,
    )
    original = vae.state_dict()
    stored = bare("vae", original)
    assert len(stored) == len(original) == 248
    assert stored["decoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    config = {"down_block_types": [1] * 4, "up_block_types": [1] * 4}
    back = convert_ldm_vae_checkpoint({layout.VAE + n: t for n, t in stored.items()}, config)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[n], original[n]) for n in original)


def tiny_text(kind: str) -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    sizes = builtin.TEXT_1 if kind == "first" else builtin.TEXT_2
    config = CLIPTextConfig(vocab_size=99, num_attention_heads=2, projection_dim=48, eos_token_id=98, **sizes)
    return (CLIPTextModel if kind == "first" else CLIPTextModelWithProjection)(config).eval()


def test_the_first_text_encoder_keeps_the_prefix_that_uis_look_for() -> None:
    state = tiny_text("first").state_dict()
    assert not any("text_model." in n for n in state), "transformers dropped the prefix in 5.6; has it come back?"
    for given in (state, {f"text_model.{n.removeprefix('text_model.')}": t for n, t in state.items()}):
        stored = bare("text_encoder_1", given)
        names = {layout.TEXT_1 + n for n in stored}
        wanted = "conditioner.embedders.0.transformer.text_model."
        assert wanted + "encoder.layers.0.self_attn.q_proj.weight" in names
        assert wanted + "final_layer_norm.bias" in names
        assert not any("text_model.text_model" in n or "position_ids" in n for n in names)
        assert len(stored) == 4 + 16 * builtin.TEXT_1["num_hidden_layers"]


def test_the_second_text_encoder_is_open_clip_with_the_projection_transposed() -> None:
    model = tiny_text("second")
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("position_ids")}
    stored = bare("text_encoder_2", state)
    width, out = builtin.TEXT_2["hidden_size"], 48
    assert stored["text_projection"].shape == (width, out)
    assert torch.equal(stored["text_projection"], state["text_projection.weight"].T)
    fused = stored["transformer.resblocks.2.attn.in_proj_weight"]
    assert fused.shape == (3 * width, width)
    for part, name in zip(fused.chunk(3), ("q", "k", "v"), strict=True):
        layer = f"text_model.encoder.layers.2.self_attn.{name}_proj.weight"
        assert torch.equal(part, state[layer])
    # open_clip's tower without logit_scale: 4 embeddings and norms, 12 per layer, the projection
    assert len(stored) == 5 + 12 * builtin.TEXT_2["num_hidden_layers"]


def test_diffusers_reads_the_second_text_encoder_back() -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    model = tiny_text("second")
    state = model.state_dict()
    prefix = layout.TEXT_2
    stored = {prefix + n: t for n, t in bare("text_encoder_2", state).items()}
    # diffusers takes the width of q, k and v from the projection's rows
    back = convert_open_clip_checkpoint(model, stored, prefix=prefix)
    expected = {n: t for n, t in state.items() if not n.endswith("position_ids")}
    missing = expected.keys() - back.keys()
    assert not missing
    assert all(torch.equal(back[n], expected[n]) for n in expected)


def test_a_tensor_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for UNet tensor"):
        layout.places("unet", ["down_blocks.0.resnets.0.norm1.weight", "new.weight"])


@pytest.mark.parametrize("part", ["unet", "text_encoder_1", "text_encoder_2", "vae"])
def test_what_is_put_into_the_file_is_what_is_taken_out(part: str, full: dict[str, dict[str, Any]]) -> None:
    places = layout.places(part, full[part])
    for key, names in layout.pieces(places).items():
        form = places[names[0]].form
        whole = layout.put([full[part][n] for n in names], form)
        rows = [whole] if len(names) == 1 else whole.chunk(3)
        assert [places[n].third for n in names] == ([None] if len(names) == 1 else [0, 1, 2]), key
        for name, piece in zip(names, rows, strict=True):
            assert layout.take(piece, form).shape == full[part][name].shape
    assert len({(p.key, p.third) for p in places.values()}) == len(full[part]), "no two tensors share a place"


def test_wrappers_leave_no_trace_in_names() -> None:
    wrapped = {"_orig_mod.down_blocks.0.resnets.0._orig_mod.norm1.weight": torch.zeros(1)}
    assert list(layout.stored("unet", wrapped)) == [layout.UNET + "input_blocks.1.0.in_layers.0.weight"]
