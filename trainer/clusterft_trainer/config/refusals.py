"""Combinations that cannot work, each with the reason, so that none is found out on a GPU.

Pure: settings in, sentences out. A sentence begins with the setting that has to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterft_trainer.config.learn import FUSABLE, NO_BETAS, NO_EPS, ROUNDS_ITSELF, SHARDED
from clusterft_trainer.config.run import Ddp, Fsdp, Zero

if TYPE_CHECKING:
    from clusterft_trainer.config.tree import TrainConfig


def refusals(config: TrainConfig) -> list[str]:
    """Why these settings cannot be trained with; empty if they can."""
    parts = (_sharding, _optimizer, _fused, _numbers, _cached, _rest)
    return [sentence for part in parts for sentence in part(config)]


def without_gpu(config: TrainConfig) -> list[str]:
    """What of these settings needs a GPU, for slots that are CPUs."""
    found, kernel = [], config.compute.attention
    if config.precision == "fp16" and isinstance(config.engine, Zero):
        found.append(
            "precision: fp16 and engine zero: DeepSpeed scales no losses on CPUs; use bf16 or fp32, or engine: "
            "{kind: ddp}"
        )
    if config.learn.optimizer.name == "paged-adamw-8bit":
        found.append(
            "learn.optimizer: paged-adamw-8bit moves its state between a GPU and the host, and slots are CPUs; "
            "use adamw-8bit"
        )
    if kernel in ("flash", "xformers"):
        found.append(f"compute.attention: {kernel} needs an NVIDIA GPU, and slots are CPUs; use auto")
    return found


def _sharding(config: TrainConfig) -> list[str]:
    engine, name = config.engine, config.learn.optimizer.name
    found = []
    if not isinstance(engine, Ddp) and name not in SHARDED:
        found.append(
            f"learn.optimizer: {name} looks at whole tensors, which engine {engine.kind} cuts into pieces: "
            f"use one of {', '.join(sorted(SHARDED))}, or engine: {{kind: ddp}}"
        )
    if isinstance(engine, Zero) and engine.offload == "optimizer" and name != "adamw":
        found.append("engine.offload: optimizer works with learn.optimizer: adamw only (DeepSpeed's CPUAdam)")
    return found


def _optimizer(config: TrainConfig) -> list[str]:
    learn = config.learn
    chosen, rates = learn.optimizer, {part.rate for part in learn.trained.values()}
    found = []
    if chosen.betas is not None and chosen.name in NO_BETAS:
        found.append(f"learn.optimizer.betas: {chosen.name} has no pair of them; leave it out")
    if chosen.eps is not None and chosen.name in NO_EPS:
        found.append(f"learn.optimizer.eps: {chosen.name} has none to be set; leave it out")
    if chosen.name == "prodigy" and (len(rates) > 1 or min(rates) < 0.1):
        found.append(
            "learn.optimizer: prodigy finds the rate itself, one for all weights, and takes learn's rates as a "
            "factor of it: give every part the same, near 1"
        )
    if chosen.name == "schedule-free-adamw":
        if learn.schedule != "constant":
            found.append("learn.schedule: schedule-free-adamw brings its own; set schedule: constant")
        if learn.ema is not None:
            found.append("learn.ema: schedule-free-adamw keeps a running mean itself; leave ema out")
    return found


def _fused(config: TrainConfig) -> list[str]:
    if not config.learn.optimizer.fused_backward:
        return []
    found, name = [], config.learn.optimizer.name
    if not isinstance(config.engine, Ddp):
        found.append("learn.optimizer.fused_backward needs engine: {kind: ddp}: the others step by themselves")
    if config.batch.accumulate > 1:
        found.append(
            "learn.optimizer.fused_backward and batch.accumulate: a gradient that is forgotten at once "
            "cannot be added up; set accumulate: 1 and raise per_slot"
        )
    if config.learn.clip is not None:
        found.append(
            "learn.optimizer.fused_backward and learn.clip: the norm of all gradients is known only when the "
            "first are gone; set clip: null"
        )
    if name not in FUSABLE:
        found.append(
            f"learn.optimizer.fused_backward: {name} steps all tensors together; use one of "
            + ", ".join(sorted(FUSABLE))
        )
    if config.precision == "fp16":
        found.append(
            "learn.optimizer.fused_backward and precision: fp16: loss scaling must see all gradients first"
        )
    return found


def _numbers(config: TrainConfig) -> list[str]:
    found, name = [], config.learn.optimizer.name
    if config.weights == "bf16":
        if not isinstance(config.engine, Ddp):
            found.append(
                f"weights: bf16 needs engine: {{kind: ddp}}; {config.engine.kind} keeps full copies in pieces"
            )
        if config.precision != "bf16":
            found.append(f"weights: bf16 needs precision: bf16, not {config.precision}")
        if name not in FUSABLE | ROUNDS_ITSELF:
            found.append(
                f"weights: bf16 and learn.optimizer: {name}: its updates cannot be rounded stochastically"
            )
    if config.precision == "fp16" and isinstance(config.engine, Fsdp):
        found.append("precision: fp16 and engine fsdp: no loss scaling across shards; use bf16")
    if config.learn.lora is not None and config.weights == "bf16":
        found.append("weights: bf16 and learn.lora: the additions are small; keep weights: fp32")
    return found


def _cached(config: TrainConfig) -> list[str]:
    cache, trained = config.data.cache, config.learn.trained.keys() & {"text_encoder_1", "text_encoder_2"}
    if cache is None or not cache.text or not trained:
        return []
    names = " and ".join(sorted(trained))
    return [
        f"data.cache.text and learn of {names}: states in a cache are those of encoders that stay as they are, so "
        "nothing would be learned there; set text: false, or leave the text encoders out of learn"
    ]


def _rest(config: TrainConfig) -> list[str]:
    found = _useless(config)
    if config.compute.compile and isinstance(config.engine, Zero) and config.engine.stage == 3:
        found.append("compute.compile and engine zero stage 3: its hooks break each block in two; use fsdp")
    if config.compute.attention == "flash" and config.precision == "fp32":
        found.append("compute.attention: flash computes in half precision only; set precision: bf16, or sdpa")
    if config.checkpoints.best is not None and config.held_out is None:
        found.append("checkpoints.best: held_out needs a held_out: section")
    if config.learn.lora is not None and config.output.diffusers:
        found.append("output.diffusers and learn.lora: additions are exported as one LoRA file")
    if config.learn.lora is not None and config.learn.unet is not None and config.learn.unet.parts != "all":
        found.append("learn.lora and learn.unet.parts: additions are made to all attention layers")
    return found


def _useless(config: TrainConfig) -> list[str]:
    """Settings that would be ignored."""
    found, learned = [], config.objective
    if learned.zero_terminal_snr and learned.prediction == "epsilon":
        found.append(
            "objective.zero_terminal_snr and objective.prediction: the last timestep is then pure noise, which is "
            "all that epsilon asks for; set prediction: v, or zero_terminal_snr: false"
        )
    if learned.snr_of == "plain" and learned.min_snr is None and not learned.debiased:
        found.append("objective.snr_of: plain has no meaning without min_snr or debiased")
    if config.compute.text_dtype != "fp32" and {"text_encoder_1", "text_encoder_2"} <= config.learn.trained.keys():
        found.append("compute.text_dtype has no meaning where both text encoders are trained")
    return found
