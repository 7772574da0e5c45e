"""Rules for what moves and how fast: rates, blocks, LoRA, schedule, warm-up, clipping.

Owns kohya's defaults of these and its names of schedules. Refuses to guess: a schedule that is not there becomes a
constant rate, reported.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from pydantic import ValidationError

from clusterft_trainer.config import Part
from clusterft_trainer.migrate.case import Case, positive
from clusterft_trainer.migrate.found import LAUNCH
from clusterft_trainer.migrate.sheet import Sheet

_RATE = 2e-6  # kohya's default
MOST = 1.0  # the highest rate
_NETWORK = (
    "network_module",
    "network_dim",
    "network_alpha",
    "network_dropout",
    "network_args",
    "network_train_unet_only",
    "network_train_text_encoder_only",
    "text_encoder_lr",
)
# Rates that only sdxl_train.py has, and what a LoRA has in their place.
_FULL_RATES = {
    "learning_rate_te1": "text_encoder_lr is the text encoders'",
    "learning_rate_te2": "text_encoder_lr is the text encoders'",
    "block_lr": "unet_lr is the whole UNet's",
}
PARTS = ("unet", "text_encoders", "text_encoder_1", "text_encoder_2")
_BLOCKS = (
    ("time_embed", "label_emb"),
    *((f"input_blocks.{i}",) for i in range(9)),
    *((f"middle_block.{i}",) for i in range(3)),
    *((f"output_blocks.{i}",) for i in range(9)),
    ("out",),
)
_SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "polynomial": "polynomial",
}


def rates(sheet: Sheet, case: Case) -> None:
    """Which parts are trained, each with its rate."""
    given = sheet.number("learning_rate")
    base = _RATE if given is None else given
    say = "kohya's default" if given is None and case.kohya else ""
    first, second = _lora_rates(sheet, base) if case.lora else _encoder_rates(sheet, base)
    unet, by = base, "learning_rate"
    if case.lora:
        own = sheet.number("unet_lr")
        unet, by, say = (base, by, say) if own is None else (own, "unet_lr", "")
        unet = 0.0 if sheet.switch("network_train_text_encoder_only") else unet
        for name, theirs in _FULL_RATES.items():
            if sheet.given(name):
                sheet.leave(name, "not possible", f"it belongs to sdxl_train.py; {theirs}")
    elif sheet.given("unet_lr"):
        sheet.leave("unet_lr", "not possible", "it belongs to sdxl_train_network.py; learning_rate is the UNet's")
    if not case.lora and sheet.given("block_lr"):
        unet = _block_rates(sheet, unet)
    rate = _rate(sheet, unet, by)
    if rate is not None:
        sheet.put("train.learn.unet.rate", rate, by, say=say)
    _put_encoders(sheet, first, second, "text_encoder_lr" if case.lora else "learning_rate_te1")
    if not case.kohya:
        sheet.blank("train.learn.unet.rate", _RATE, "the learning rate; text_encoders: has another")
    elif not any(sheet.get(f"train.learn.{part}") for part in PARTS):
        sheet.blank("train.learn.unet.rate", _RATE, "kohya was told to train nothing")
    if re.search(r"_v\d+\.py$", case.script):
        sheet.note(
            f"learn.unet.parts: {case.script} is not kohya's own: if it freezes a part of the UNet, write "
            "parts: unet-71, or the blocks that are trained"
        )


def _put_encoders(sheet: Sheet, first: float, second: float, by: str) -> None:
    one, two = _rate(sheet, first, by), _rate(sheet, second, by)
    if one is not None and one == two:
        sheet.put("train.learn.text_encoders.rate", one, by)
        return
    for name, value in (("text_encoder_1", one), ("text_encoder_2", two)):
        if value is not None:
            sheet.put(f"train.learn.{name}.rate", value, by)


def _rate(sheet: Sheet, value: float, by: str) -> float | None:
    """A rate that ours takes; None for a part that is not trained."""
    if value == 0:
        return None
    try:
        return Part.model_validate({"rate": value}).rate
    except ValidationError:
        kept = MOST if value > MOST else _RATE
        sheet.note(f"learn: a rate of {value:g} is not taken; {kept:g} is written")
        if value < 0:
            sheet.leave(by, "unreadable", "is below 0")
        return kept


def _encoder_rates(sheet: Sheet, base: float) -> tuple[float, float]:
    names = ("learning_rate_te1", "learning_rate_te2")
    found = [sheet.number(name) for name in names]
    if not sheet.switch("train_text_encoder"):
        for name in names:
            if sheet.given(name):
                sheet.leave(name, "not needed", "kohya trains no text encoder without train_text_encoder")
        return 0.0, 0.0
    first, second = (base if rate is None else rate for rate in found)
    return first, second


def _lora_rates(sheet: Sheet, base: float) -> tuple[float, float]:
    words = sheet.words("text_encoder_lr") or tuple(filter(None, (sheet.text("text_encoder_lr"),)))
    try:
        values = [float(word) for word in words][:2] or [base]
    except ValueError:
        sheet.leave("text_encoder_lr", "unreadable", "is not a number")
        values = [base]
    if not all(math.isfinite(value) for value in values):
        sheet.leave("text_encoder_lr", "unreadable", "is not a number")
        values = [base]
    sheet.switch("train_text_encoder")
    if sheet.switch("network_train_unet_only"):
        return 0.0, 0.0
    return values[0], values[-1]


def _block_rates(sheet: Sheet, base: float) -> float:
    """kohya's 23 rates: blocks with 0 are frozen, the others share one rate here."""
    try:
        values = [float(word) for word in (sheet.text("block_lr") or "").split(",")]
    except ValueError:
        values = []
    if len(values) != len(_BLOCKS) or not all(0 <= value < math.inf for value in values):
        sheet.leave("block_lr", "unreadable", f"kohya takes {len(_BLOCKS)} numbers with commas")
        return base
    moving = Counter(value for value in values if value)
    if not moving or not base:
        return 0.0
    if len(moving) < len(values) and 0 in values:
        parts = [name for names, value in zip(_BLOCKS, values, strict=True) if value for name in names]
        sheet.put("train.learn.unet.parts", parts, "block_lr")
        sheet.note(
            "learn.unet.parts: kohya still computed and reduced the gradients of frozen blocks; here they cost "
            "nothing"
        )
    usual = moving.most_common(1)[0][0]
    if len(moving) > 1:
        sheet.leave_word(
            "block_lr", "", "not possible", f"the UNet has one rate; {usual:g} is what most blocks had"
        )
    return usual


def lora(sheet: Sheet, case: Case) -> None:
    """The low-rank additions of sdxl_train_network.py."""
    if not case.lora:
        for name in _NETWORK:
            if sheet.given(name):
                sheet.leave(name, "not needed", "sdxl_train.py trains the weights themselves")
        return
    module = sheet.text("network_module") or "networks.lora"
    if module not in ("networks.lora", "networks.lora_sdxl"):
        sheet.leave("network_module", "not possible", "plain LoRA is what there is; it is written instead")
    rank = positive(sheet, "network_dim")
    sheet.put("train.learn.lora.rank", rank or 4, "network_dim", say="" if rank else "kohya's default")
    alpha = sheet.number("network_alpha")
    say = "kohya's default" if alpha is None else ""
    sheet.put("train.learn.lora.alpha", alpha or 1.0, "network_alpha", say=say)
    dropout = sheet.number("network_dropout")
    if dropout:
        sheet.put("train.learn.lora.dropout", dropout, "network_dropout", say="on what goes in; kohya: between")
    for word in sheet.words("network_args"):
        sheet.leave_word("network_args", word, "not possible", "rank, alpha and dropout are what there is")


def schedule(sheet: Sheet, case: Case) -> None:
    """How the rate rises and falls."""
    asked = (sheet.text("lr_scheduler") or "constant").lower()
    ours = _SCHEDULES.get(asked)
    if ours is None:
        sheet.leave("lr_scheduler", "not possible", "constant, linear, cosine and polynomial are what there is")
        ours = "constant"
    cycles = sheet.whole("lr_scheduler_num_cycles")
    if cycles not in (None, 0, 1):
        sheet.leave("lr_scheduler_num_cycles", "not possible", "the rate falls once")
    sheet.put("train.learn.schedule", ours, "lr_scheduler")
    power = sheet.number("lr_scheduler_power")
    if ours == "polynomial":
        say = "" if power else "kohya's default, a straight line"
        sheet.put("train.learn.power", power or 1.0, "lr_scheduler_power", say=say)
    least = sheet.number("lr_scheduler_min_lr_ratio")
    if least and asked == "cosine_with_min_lr":
        sheet.put("train.learn.floor", least, "lr_scheduler_min_lr_ratio")
    elif least:
        sheet.leave(
            "lr_scheduler_min_lr_ratio", "not needed", f"kohya heeds it under cosine_with_min_lr, not {asked}"
        )
    _warmup(sheet, case)


def _warmup(sheet: Sheet, case: Case) -> None:
    asked = sheet.text("lr_warmup_steps")
    if asked is None:
        return
    try:
        percent = asked.endswith("%")
        value = float(asked.rstrip("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        sheet.leave("lr_warmup_steps", "unreadable", "is neither a number of steps nor a share of them")
        return
    if value == 0:
        return
    if value < 1:
        steps = None if positive(sheet, "max_train_epochs") else positive(sheet, "max_train_steps")
        if steps is None and sheet.given("max_train_epochs"):
            reason = "a share of the steps is known only with max_train_steps: write learn.warmup_steps"
            sheet.leave("lr_warmup_steps", "not possible", reason)
            return
        sheet.put("train.learn.warmup_steps", int(value * (steps or 1600)), "lr_warmup_steps")
        return
    # accelerate moves kohya's schedule by one for each process, but only the schedule's length is scaled for that.
    several = case.processes or 1
    ours = math.ceil(value / several)
    sheet.put("train.learn.warmup_steps", ours, "lr_warmup_steps")
    if several > 1:
        sheet.note(
            f"learn.warmup_steps: on {several} processes kohya's warm-up of {value:g} ends after {ours} steps"
        )
    elif case.processes is None and case.kohya:
        sheet.note(
            "learn.warmup_steps: kohya divides a warm-up by the number of processes; divide it, to train alike"
        )


def clipping(sheet: Sheet, case: Case) -> None:
    """The limit of the gradient norm; 0 is kohya's way to have none."""
    theirs = LAUNCH + "gradient_clipping"
    limit = sheet.number("max_grad_norm" if case.kohya else theirs)
    if case.kohya and sheet.number(theirs) not in (None, 1.0 if limit is None else limit):
        sheet.leave(theirs, "overruled", f"kohya's own max_grad_norm is {1.0 if limit is None else limit:g}")
    if limit is not None and limit < 0:
        sheet.leave("max_grad_norm", "unreadable", "is below 0")
        limit = None
    value = 1.0 if limit is None else limit or None
    if value is not None and sheet.get("train.learn.optimizer.fused_backward"):
        value = None
        sheet.note(
            "learn.clip: null, since the norm of all gradients is not known in a fused backward pass; kohya "
            "limits each tensor by itself there"
        )
        if sheet.given("max_grad_norm"):
            sheet.leave(
                "max_grad_norm",
                "not possible",
                "a fused backward pass forgets gradients before their norm is known",
            )
    sheet.put("train.learn.clip", value, "max_grad_norm")
    if sheet.switch("gradient_checkpointing"):
        sheet.put("train.learn.gradient_checkpointing", True, "gradient_checkpointing")
