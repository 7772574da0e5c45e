"""Combinations that kohya takes and ours refuses: each is settled by giving up one side, and told.

Owns which side gives way. Refuses to settle silently; what is not here is settled by `Sheet.settle`.
"""

from __future__ import annotations

from clusterft_trainer.config.learn import FUSABLE, ROUNDS_ITSELF, SHARDED
from clusterft_trainer.migrate.case import Case
from clusterft_trainer.migrate.sheet import Sheet

_WHOLE = {
    "adamw-8bit": "adamw",
    "paged-adamw-8bit": "adamw",
    "ao-adamw-8bit": "adamw",
    "ao-adamw-4bit": "adamw",
    "ao-adamw-fp8": "adamw",
    "lion-8bit": "lion",
}
_OPTIMIZER = "train.learn.optimizer.name"
_FUSED = "train.learn.optimizer.fused_backward"


def resolve(sheet: Sheet, case: Case) -> None:
    """Make the combination possible, and say at whose cost."""
    _engine_and_optimizer(sheet)
    _fused(sheet)
    _weights(sheet)
    _lora(sheet, case)
    name = sheet.get(_OPTIMIZER)
    if name == "schedule-free-adamw" and sheet.get("train.learn.schedule") != "constant":
        sheet.put("train.learn.schedule", "constant", "lr_scheduler")
        sheet.drop("train.learn.floor")
        sheet.note("learn.schedule: constant, since schedule-free-adamw brings its own, with kohya as well")


def _engine_and_optimizer(sheet: Sheet) -> None:
    name, engine = sheet.get(_OPTIMIZER), sheet.get("train.engine")
    kind = engine["kind"]
    if kind != "ddp" and name not in SHARDED:
        if name in _WHOLE:
            sheet.put(_OPTIMIZER, _WHOLE[name], "optimizer_type", "use_8bit_adam")
            sheet.note(
                f"learn.optimizer: {_WHOLE[name]} instead of {name}: engine {kind} cuts tensors into pieces, "
                f"which {name} cannot bear, but spreads the state over all cards; engine: {{kind: ddp}} keeps it"
            )
        else:
            sheet.put("train.engine", {"kind": "ddp"}, say=f"{name} cannot be trained with {kind}")
            sheet.note(
                f"engine: ddp instead of {kind}, which would cut the tensors that {name} looks at into pieces"
            )
    engine = sheet.get("train.engine")
    if engine.get("offload") == "optimizer" and sheet.get(_OPTIMIZER) != "adamw":
        sheet.put("train.engine", {key: value for key, value in engine.items() if key != "offload"}, "zero_stage")
        sheet.note("engine.offload: none, since only adamw can step on the host")


def _fused(sheet: Sheet) -> None:
    if not sheet.get(_FUSED):
        return
    checks = (
        (sheet.get("train.engine")["kind"] != "ddp", "the engine steps by itself; only ddp leaves that to others"),
        (sheet.get("train.batch.accumulate") > 1, "gradients that are forgotten at once cannot be added up"),
        (sheet.get("train.precision") == "fp16", "fp16 must see all gradients before it steps"),
        (sheet.get(_OPTIMIZER) not in FUSABLE, f"{sheet.get(_OPTIMIZER)} steps all tensors together"),
    )
    reason = next((reason for applies, reason in checks if applies), None)
    if reason is None:
        if sheet.get("train.compute.compile"):
            sheet.put("train.compute.compile", False, "torch_compile")
            sheet.leave("torch_compile", "not possible", "a compiled backward hands over all gradients at its end")
        return
    sheet.drop(_FUSED)
    for flag in ("fused_backward_pass", "fused_optimizer_groups"):
        sheet.leave(flag, "not possible", reason)


def _weights(sheet: Sheet) -> None:
    kind, name = sheet.get("train.engine")["kind"], sheet.get(_OPTIMIZER)
    if sheet.get("train.precision") == "fp16" and kind == "fsdp":
        sheet.put("train.precision", "bf16", "mixed_precision")
        sheet.note("precision: bf16 instead of fp16, which has no loss scaling across FSDP's shards")
    if sheet.get("train.weights") != "bf16":
        return
    if kind != "ddp":
        reason = f"{kind} keeps full copies of the weights in pieces, as DeepSpeed does under kohya"
    elif sheet.get("train.learn.lora") is not None:
        reason = "the additions of a LoRA are small, and full precision costs little"
    elif name not in FUSABLE | ROUNDS_ITSELF:
        reason = f"the updates of {name} cannot be rounded stochastically"
    else:
        return
    sheet.put("train.weights", "fp32", "full_bf16")
    sheet.comments.pop("train.weights", None)
    sheet.note(f"weights: fp32 instead of bf16 (full_bf16): {reason}")


def _lora(sheet: Sheet, case: Case) -> None:
    if case.lora and sheet.get("train.output.diffusers"):
        sheet.drop("train.output.diffusers")
        sheet.leave("save_model_as", "not possible", "a LoRA is one file")
