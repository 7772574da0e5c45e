"""What a file is that was given as an SDXL model and is none: a LoRA, another model, or a part of one.

Pure: names and shapes in, a sentence out. Refuses by name what people mistake for a model, so that the message is
not a list of a thousand missing tensors. Does not judge whether an SDXL model is complete: `sources` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clusterft_trainer.model import layout

Shapes = Mapping[str, tuple[int, ...]]
_BASE = "Give the SDXL base model, or a full model that was trained from it."
_ADDITION = ("lora_", ".lora.", "hada_w1", "lokr_w1", "oft_blocks", "oft_diag", ".dora_scale")
_EPSILON_OR_V = "Only models that predict noise (epsilon) or v can be trained."


def foreign(shapes: Shapes) -> tuple[str, str] | None:
    """What the file is instead of an SDXL model ("is ..."), and what to do; None for one."""
    for matches, what, remedy in _KINDS:
        if matches(shapes):
            return what, remedy
    return None


def _any(*signs: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(sign in name for name in shapes for sign in signs)


def _starts(*prefixes: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.startswith(prefixes) for name in shapes)


def _inputs(*channels: int) -> Callable[[Shapes], bool]:
    return lambda shapes: (
        shapes.get(layout.UNET + "input_blocks.0.0.weight", (0, 4))[1:2] in [(n,) for n in channels]
    )


def _only(*prefixes: str) -> Callable[[Shapes], bool]:
    return lambda shapes: bool(shapes) and all(name.startswith(prefixes) for name in shapes)


def _lacks(prefix: str) -> Callable[[Shapes], bool]:
    return lambda shapes: not any(name.startswith(prefix) for name in shapes)


_VAE_ALONE = (layout.VAE, "encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.")
# In this order: the first that matches is told.
_KINDS: tuple[tuple[Callable[[Shapes], bool], str, str], ...] = (
    (_any(*_ADDITION), "is a LoRA or a like addition to a model, not a model", _BASE),
    (_any("_orig_mod."), "holds names that torch.compile made (_orig_mod.)", "Export it again without them."),
    (_starts("cond_stage_model.transformer."), "is a Stable Diffusion 1.x model, not SDXL", _BASE),
    (_starts("cond_stage_model."), "is a Stable Diffusion 2.x model, not SDXL", _BASE),
    (_starts("conditioner.embedders.0.model."), "is the SDXL refiner, not the base model", _BASE),
    (_any("joint_blocks.", "double_blocks."), "is a Stable Diffusion 3 or Flux model, not SDXL", _BASE),
    (_starts("control_model.", "controlnet_", "input_hint_block."), "is a ControlNet, not a model", _BASE),
    (
        _only(*_VAE_ALONE),
        "is a VAE alone, not a model",
        "Set model: to a full SDXL model, and vae: to this file if its VAE shall be used.",
    ),
    (_only("emb_params", "clip_g", "clip_l"), "is an embedding (textual inversion), not a model", _BASE),
    (
        _starts("down_blocks.", "time_embedding."),
        "is a UNet alone, in diffusers' names",
        "Set model: to the diffusers folder that holds unet/, vae/ and the text encoders.",
    ),
    (_lacks(layout.UNET), "holds no UNet in the names of an SDXL file", _BASE),
    (_inputs(8, 9), "is an inpainting or editing model, whose UNet sees more than the noisy picture", _BASE),
    (_starts("edm_mean", "edm_vpred."), "was trained with EDM's noise levels", _EPSILON_OR_V),
    (_any("scaled_fp8", ".scale_weight"), "is rounded to 8 bits for making pictures", "Give its fp16 file."),
    (
        _only(layout.UNET),
        "is a UNet alone",
        "Give a full model: UNet, both text encoders and VAE in one file.",
    ),
)
