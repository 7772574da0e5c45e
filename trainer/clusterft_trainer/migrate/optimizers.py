"""Rules for the optimizer: its name, its arguments, and the fused backward pass.

Owns kohya's names of optimizers and the defaults of the libraries that it takes them from. Refuses to pass one off
as another: what is written instead is reported.
"""

from __future__ import annotations

import ast
import math

from clusterft_trainer.config.learn import FUSABLE, NO_BETAS, NO_EPS
from clusterft_trainer.migrate.case import Case, positive
from clusterft_trainer.migrate.learning import MOST, PARTS
from clusterft_trainer.migrate.sheet import Sheet

_LEAST_FACTOR = 0.1  # of prodigy
# kohya's name in lower case, without its module -> ours, and the weight decay that its library sets
_OPTIMIZERS = {
    "adamw": ("adamw", 0.01),
    "adamw8bit": ("adamw-8bit", 0.01),
    "pagedadamw8bit": ("paged-adamw-8bit", 0.01),
    "lion": ("lion", 0.0),
    "lion8bit": ("lion-8bit", 0.0),
    "adafactor": ("adafactor", 0.0),
    "came": ("came", 0.0),
    "stableadamw": ("stable-adamw", 0.01),
    "prodigy": ("prodigy", 0.0),
    "adamwschedulefree": ("schedule-free-adamw", 0.0),
    "schedulefreeadamw": ("schedule-free-adamw", 0.0),
    "adamw4bit": ("ao-adamw-4bit", 0.01),
    "adamwfp8": ("ao-adamw-fp8", 0.01),
}
# Near enough to be taken instead, with a word on what differs.
_KIN = {
    "pagedadamw": (
        "adamw",
        0.01,
        "the same rule; its state is not paged: engine zero with offload: optimizer does that",
    ),
    "pagedadamw32bit": (
        "adamw",
        0.01,
        "the same rule; its state is not paged: engine zero with offload: optimizer does that",
    ),
    "pagedlion8bit": ("lion-8bit", 0.0, "the same rule; its state is not paged"),
    "fusedadam": ("adamw", 0.01, "the same rule"),
    "deepspeedcpuadam": ("adamw", 0.01, "the same rule; engine zero with offload: optimizer runs it on the host"),
}


def optimizer(sheet: Sheet, case: Case) -> None:
    """The rule by which weights move, with its library's defaults where kohya leaves them."""
    name, decay = _optimizer_name(sheet)
    arguments = _arguments(sheet)
    sheet.put("train.learn.optimizer.name", name, "optimizer_type", "use_8bit_adam", "use_lion_optimizer")
    own = arguments.pop("weight_decay", decay)
    plain = isinstance(own, (int, float)) and not isinstance(own, bool) and own >= 0
    sheet.put("train.learn.weight_decay", float(str(own)) if plain else decay, "optimizer_args")
    _pairs(sheet, name, arguments)
    if name == "adafactor":
        _adafactor(sheet, arguments)
    for key, value in arguments.items():
        sheet.leave_word("optimizer_args", f"{key}={value}", "not possible", f"{name} has its library's own")
    if name == "prodigy":
        _prodigy(sheet)
    _fused(sheet, name)


def _prodigy(sheet: Sheet) -> None:
    """One factor of the rate that it finds, near 1, for all parts; kohya warns of others and takes the first."""
    parts = [p for p in PARTS if sheet.get(f"train.learn.{p}.rate") is not None]
    rates = [sheet.get(f"train.learn.{p}.rate") for p in parts]
    rate = rates[0] if rates[0] >= _LEAST_FACTOR else MOST
    if any(r != rate for r in rates):
        sheet.note(f"learn: prodigy finds the rate itself; {rate:g} is the factor of it for all parts")
    for part in parts:
        sheet.put(f"train.learn.{part}.rate", rate, "learning_rate")


def _optimizer_name(sheet: Sheet) -> tuple[str, float]:
    asked = sheet.text("optimizer_type")
    eight, lion = sheet.switch("use_8bit_adam"), sheet.switch("use_lion_optimizer")
    if asked is None:
        return _OPTIMIZERS["adamw8bit" if eight else "lion" if lion else "adamw"]
    for name, given in (("use_8bit_adam", eight), ("use_lion_optimizer", lion)):
        if given:
            sheet.leave(name, "overruled", "optimizer_type says it, too")
    module, _, name = asked.lower().rpartition(".")
    if "torchao" in module and name == "adamw8bit":
        return "ao-adamw-8bit", 0.01
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    if name in _KIN:
        ours, decay, difference = _KIN[name]
        sheet.note(f"learn.optimizer: {asked} becomes {ours}: {difference}")
        return ours, decay
    instead = "prodigy" if name.startswith("dadapt") else "adamw"
    sheet.leave("optimizer_type", "not possible", f"{instead} is written instead; its rates may have to differ")
    return _OPTIMIZERS[instead]


def _arguments(sheet: Sheet) -> dict[str, object]:
    found: dict[str, object] = {}
    for word in sheet.words("optimizer_args"):
        key, equals, value = word.partition("=")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            sheet.leave_word("optimizer_args", word, "unreadable", "is not NAME=VALUE, with a value of Python")
            continue
        if not equals:
            sheet.leave_word("optimizer_args", word, "unreadable", "is not NAME=VALUE")
    return found


def _pairs(sheet: Sheet, name: str, arguments: dict[str, object]) -> None:
    betas, eps = arguments.get("betas"), arguments.get("eps")
    numbers = [b for b in betas if isinstance(b, (int, float))] if isinstance(betas, (tuple, list)) else []
    if name not in NO_BETAS and len(numbers) == 2 and all(0 <= b <= 1 for b in numbers):
        sheet.put("train.learn.optimizer.betas", [float(b) for b in numbers], "optimizer_args")
        del arguments["betas"]
    plain = isinstance(eps, (int, float)) and not isinstance(eps, bool)
    if plain and name not in NO_EPS and 0 < float(str(eps)) < math.inf:
        sheet.put("train.learn.optimizer.eps", float(str(eps)), "optimizer_args")
        del arguments["eps"]


def _adafactor(sheet: Sheet, arguments: dict[str, object]) -> None:
    """Of transformers' three switches only the fixed rate is here; kohya's default is the relative one."""
    relative = arguments.pop("relative_step", True)
    arguments.pop("warmup_init", False)
    scaled = arguments.pop("scale_parameter", True)
    if relative:
        sheet.note(
            "learn.optimizer: kohya's Adafactor picks its own rates (relative_step) unless told otherwise; here "
            "the rates that are written hold: choose them, and a warm-up"
        )
    elif scaled:
        sheet.note(
            "learn.optimizer: kohya's Adafactor scales the rate by the size of each weight (scale_parameter) "
            "unless told otherwise; here the rates that are written hold: they may have to be lower"
        )


def _fused(sheet: Sheet, name: str) -> None:
    fused = sheet.switch("fused_backward_pass")
    groups = positive(sheet, "fused_optimizer_groups")
    if not (fused or groups):
        return
    if name in FUSABLE:
        sheet.put("train.learn.optimizer.fused_backward", True, "fused_backward_pass", "fused_optimizer_groups")
        return
    reason = f"{name} steps all tensors together"
    for flag in ("fused_backward_pass", "fused_optimizer_groups"):
        sheet.leave(flag, "not possible", reason)
