"""Model 'builtin:tiny' and picture set 'shapes': everything a run needs, made on the spot.

The model has SDXL's real architecture (block types, both text encoders, micro-conditioning) with
small widths and seeded random weights, but for the VAE: its weights are set by hand to average 8x8
pixels and to interpolate back, so that samples show what the UNet learned instead of noise. Every
tensor outside that path is random, hence no converter can mix two up unnoticed.

Owns making them and putting them on disk under a digest of their recipe: written under a temporary
name, flushed, renamed. A run killed meanwhile leaves only a temporary folder, removed next time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusterft_trainer import imports, shapes
from clusterft_trainer.config.tree import TINY
from clusterft_trainer.disk import flush

MODEL = TINY
_TEXT_LENGTH = 77
_STALE_SECONDS = 600  # a younger temporary folder may belong to another run that is writing it
_WORDS = ("a", "on", *shapes.COLOURS, *shapes.SHAPES, *shapes.GROUNDS)
UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),  # the number of heads, under diffusers' historic name
    "cross_attention_dim": 96,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48 + 6 * 16,
    "use_linear_projection": True,
    "norm_num_groups": 16,
}
# Two widths that differ, and a projection that is not square: a wrong transpose cannot pass.
TEXT_1 = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT_2 = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}


def materialise(kind: str, count: int, home: Path) -> Path:
    """The folder of the tiny model ('tiny') or of `count` shapes ('shapes'), made if missing."""
    # The code is the recipe: a folder that an older version made is never taken for this one's.
    recipe = hashlib.sha256(f"{kind}:{count}".encode())
    for source in (__file__, shapes.__file__):
        recipe.update(Path(source).read_bytes())
    final = home / f"{kind}-{recipe.hexdigest()[:16]}"
    if final.is_dir():
        return final
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob(".new-*"):
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover)
    draft = Path(tempfile.mkdtemp(prefix=f".new-{final.name}-", dir=home))
    draft.chmod(0o755)  # mkdtemp makes it private, but other users' runs may share the folder
    write: Callable[[Path], None] = write_model if kind == "tiny" else _shape_writer(count)
    write(draft)
    for path in sorted(draft.rglob("*")):
        flush(path)
    flush(draft)
    try:
        draft.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(draft)  # another run was faster, with the same recipe
    flush(home)
    return final


def write_model(folder: Path) -> None:
    """Save the tiny model as a diffusers folder."""
    imports.classes()
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, merges = _vocabulary()
    common = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": _TEXT_LENGTH,
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "projection_dim": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(20)
        unet = UNet2DConditionModel(**UNET)
        first = CLIPTextConfig(num_attention_heads=2, hidden_act="quick_gelu", pad_token_id=1, **TEXT_1, **common)
        second = CLIPTextConfig(num_attention_heads=4, hidden_act="gelu", pad_token_id=0, **TEXT_2, **common)
        text_1, text_2 = CLIPTextModel(first), CLIPTextModelWithProjection(second)
        for text in (text_1, text_2):
            _make_words_count(text)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 16, 16),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=128,
            scaling_factor=1.8,
        )
        _set_vae_by_hand(vae)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_1.save_pretrained(folder / "text_encoder")
    text_2.save_pretrained(folder / "text_encoder_2")
    _write_tokenizer(folder / "tokenizer", vocabulary, merges, "<|endoftext|>")
    _write_tokenizer(folder / "tokenizer_2", vocabulary, merges, "!")
    _write_index(folder)


def _shape_writer(count: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number in range(count):
            image, caption = shapes.draw(number)
            image.save(folder / f"{number:05d}.png")
            (folder / f"{number:05d}.txt").write_text(caption + "\n", encoding="utf-8")

    return write


def _make_words_count(text: Any) -> None:
    """Let random encoders tell captions apart, as trained ones do.

    The usual initialisation is so small that attention moves nothing and the pooled end token looks
    the same after any words.
    """
    import torch

    with torch.no_grad():
        for name, weight in text.named_parameters():
            if name.endswith("token_embedding.weight"):
                weight.normal_(0.0, 1.0)
            elif weight.ndim == 2 and "embedding" not in name:
                weight.normal_(0.0, 1.5 / weight.shape[1] ** 0.5)


def _set_vae_by_hand(vae: Any) -> None:
    """Turn a random AutoencoderKL into block averaging and smooth interpolation.

    Each colour lives in a group of four channels (x, -x, K, -K). The large constant K makes the
    group's variance the same for every picture, so group normalisation merely scales; a bias of 8
    behind it lifts the values to where SiLU is the identity. Residual branches end in zero.
    """
    import torch

    big, lift = 100.0, 8.0
    # Values are stored relative to a light ground: the zero padding of convolutions is then light.
    ground = torch.tensor([0.9, 0.9, 0.9, 0.0])
    mix = torch.eye(4)  # pictures have three colours; the fourth latent is their mean
    mix[3] = torch.tensor([1.0, 1.0, 1.0, 0.0]) / 3
    with torch.no_grad():
        for module in vae.modules():
            if hasattr(module, "conv2") and hasattr(module, "norm2"):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
            if hasattr(module, "to_out"):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()
        _spread(vae.encoder.conv_in, mix[:, :3], -(mix @ ground), big)
        for block in vae.encoder.down_blocks[:-1]:
            _diagonal(block.downsamplers[0].conv, torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]]))
        _collect(vae.encoder, torch.eye(4), torch.zeros(4), big, lift)
        quant = vae.quant_conv
        quant.weight.zero_()
        quant.weight[:4, :4, 0, 0] = torch.eye(4)
        quant.bias.zero_()
        quant.bias[4:] = -8.0  # log variance: next to no sampling noise
        vae.post_quant_conv.weight.zero_()
        vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(4)
        vae.post_quant_conv.bias.zero_()
        _spread(vae.decoder.conv_in, torch.eye(4), torch.zeros(4), big)
        tent = torch.tensor([1.0, 2.0, 1.0]) / 4
        for block in vae.decoder.up_blocks[:-1]:
            _diagonal(block.upsamplers[0].conv, tent[:, None] * tent[None, :], keep_constant=True)
        # each colour, corrected a little by how far the mean latent is from the colours' mean
        back = torch.cat([torch.eye(3) - 0.1 / 3, torch.full((3, 1), 0.1)], 1)
        _collect(vae.decoder, back, ground[:3], big, lift)


def _spread(conv: Any, mix: Any, offset: Any, big: float) -> None:
    """Write values into (x, -x, K, -K) groups of channels."""
    conv.weight.zero_()
    conv.bias.zero_()
    for group in range(4):
        conv.weight[4 * group, :, 1, 1] = mix[group]
        conv.weight[4 * group + 1, :, 1, 1] = -mix[group]
        conv.bias[4 * group] = offset[group]
        conv.bias[4 * group + 1] = -offset[group]
        conv.bias[4 * group + 2] = big
        conv.bias[4 * group + 3] = -big


def _diagonal(conv: Any, kernel: Any, keep_constant: bool = False) -> None:
    """Filter every channel by itself; constants must not dim at the border, where padding is zero."""
    conv.weight.zero_()
    conv.bias.zero_()
    for channel in range(conv.weight.shape[0]):
        if keep_constant and channel % 4 >= 2:
            conv.weight[channel, channel, 1, 1] = 1.0
        else:
            conv.weight[channel, channel] = kernel


def _collect(half: Any, mix: Any, offset: Any, big: float, lift: float) -> None:
    """Undo the normalisation's scale, pass SiLU where it is straight, and read the groups out."""
    half.conv_norm_out.weight.fill_(big / 2**0.5)
    half.conv_norm_out.bias.fill_(lift)
    conv = half.conv_out
    conv.weight.zero_()
    conv.bias.zero_()
    for row in range(mix.shape[0]):
        for group in range(4):
            conv.weight[row, 4 * group, 1, 1] = mix[row, group]
        # the lift of every group is taken off again; at the border conv padding is not involved,
        # since only the middle tap is used
        conv.bias[row] = offset[row] - lift * mix[row].sum()


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's scheme in small: 256 byte symbols, the same ending a word, merges, two specials."""
    symbols = _byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces[:2] = ["".join(pair)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _byte_symbols() -> list[str]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others are moved up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str) -> None:
    folder.mkdir()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(folder / "vocab.json", vocabulary)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": _TEXT_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_index(folder: Path) -> None:
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
