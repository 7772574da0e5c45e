"""Rules for the course of a run: length, seed, checkpoints, sample pictures, held-out loss, trackers.

Owns what kohya saves when, and its prompt files. Refuses to invent prompts.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass

from clusterft_trainer.migrate.case import Case, positive
from clusterft_trainer.migrate.sheet import Sheet

STEPS = 1600  # kohya's default
_MOST_PROMPTS = 16
_LARGEST_SHARE = 0.5
_OPTION = re.compile(r"\s--(ss|[a-z]+)\s+", re.IGNORECASE)


def length(sheet: Sheet, case: Case) -> None:
    """Steps or epochs, and the seed."""
    epochs, steps = positive(sheet, "max_train_epochs"), positive(sheet, "max_train_steps")
    if epochs is not None:
        if steps is not None:
            sheet.leave("max_train_steps", "overruled", "kohya goes by max_train_epochs where both are given")
        sheet.put("train.epochs", epochs, "max_train_epochs")
    else:
        say = "" if steps else "kohya's default" if case.kohya else ""
        sheet.put("train.steps", steps or STEPS, "max_train_steps", say=say)
        if not case.kohya:
            sheet.blank("train.steps", STEPS, "how long to train, or epochs:")
    seed = sheet.whole("seed")
    if seed is not None and not 0 <= seed < 2**63:
        sheet.leave("seed", "unreadable", "must lie between 0 and 2^63")
        seed = None
    sheet.put(
        "train.seed", seed or 0, "seed", say="kohya drew one by chance" if seed is None and case.kohya else ""
    )


def checkpoints(sheet: Sheet, case: Case) -> None:
    """States to resume from; kohya's files of the model alone become exports, or checkpoints with one in them."""
    steps, epochs = positive(sheet, "save_every_n_steps"), positive(sheet, "save_every_n_epochs")
    states = sheet.switch("save_state")
    sheet.switch("save_state_on_train_end")  # a run that ends always writes one
    if steps is not None:
        sheet.put("train.checkpoints.every_steps", steps, "save_every_n_steps")
        if not states:
            sheet.note(
                f"checkpoints.every_steps: kohya wrote the model alone every {steps} steps; here it is a whole "
                "state, several times as large, from which export makes that file; keep: null keeps them all"
            )
    if epochs is not None and states:
        sheet.put("train.checkpoints.every_epochs", epochs, "save_every_n_epochs", "save_state")
    if steps is None and not (epochs and states):
        say = "kohya kept nothing to resume from" if case.kohya else ""
        sheet.put("train.checkpoints.rolling", "15min", say=say)
    _keep(sheet, steps, states=states)


def _keep(sheet: Sheet, steps: int | None, *, states: bool) -> None:
    epoch_names = ("save_last_n_epochs_state", "save_last_n_epochs")
    step_names = ("save_last_n_steps_state", "save_last_n_steps")
    last_epochs = [positive(sheet, name) for name in epoch_names]
    last_steps = [positive(sheet, name) for name in step_names]
    kept: int | None = (
        next((n for n in last_epochs if n), None) if sheet.get("train.checkpoints.every_epochs") else None
    )
    span = next((n for n in last_steps if n), None)
    if span and steps:
        kept = max(kept or 0, span // steps + 1)
    elif span:
        for name in step_names:
            sheet.leave(name, "not needed", "it needs save_every_n_steps")
    if any(last_epochs) and not sheet.get("train.checkpoints.every_epochs"):
        for name in epoch_names:
            sheet.leave(name, "not possible", "exports are all kept; delete those that are not wanted")
    if sheet.get("train.checkpoints.rolling") is None and (kept or states):
        sheet.put(
            "train.checkpoints.keep", kept, *epoch_names, *step_names, say="" if kept else "all, as kohya does"
        )


@dataclass(frozen=True)
class _Prompts:
    texts: tuple[str, ...]
    negative: str = ""
    steps: int = 30  # kohya's defaults
    guidance: float = 7.5
    sizes: bool = False  # whether some had a size or seed of their own
    more: int = 0  # how many did not fit


def samples(sheet: Sheet, case: Case) -> None:
    """Pictures while training; the prompts come from kohya's file where that is at hand."""
    file = sheet.text("sample_prompts")
    every, epochs = positive(sheet, "sample_every_n_steps"), positive(sheet, "sample_every_n_epochs")
    if file is None or (every is None and epochs is None):
        for name in ("sample_prompts", "sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"):
            sheet.leave(
                name, "not needed", "kohya draws only with both sample_prompts and sample_every_n_steps or _epochs"
            )
        return
    text = case.here.text(file)
    found = None if text is None else _prompts(text, file)
    if found is None or not found.texts:
        reason = "write the prompts under train.samples: " + (
            "the file is not at hand" if text is None else "none found"
        )
        for name in ("sample_prompts", "sample_every_n_steps", "sample_every_n_epochs"):
            sheet.leave(name, "unreadable", reason)
        return
    if epochs is not None:
        sheet.leave(
            "sample_every_n_epochs", "not possible", "samples are drawn every so many steps: 500 is written"
        )
        if every is not None:
            sheet.leave(
                "sample_every_n_steps", "overruled", "kohya goes by sample_every_n_epochs where both are given"
            )
    sheet.put("train.samples.every_steps", 500 if epochs else every, "sample_every_n_steps")
    sheet.put("train.samples.prompts", list(found.texts), "sample_prompts")
    if found.negative:
        sheet.put("train.samples.negative", found.negative, "sample_prompts")
    sheet.put("train.samples.denoise_steps", found.steps, "sample_prompts")
    sheet.put("train.samples.guidance", max(found.guidance, 1.0), "sample_prompts")
    if found.sizes:
        sheet.note(
            "samples: size, seed and sampler of each prompt are not taken; all are drawn at data.resolution"
        )
    if found.more:
        sheet.note(f"samples: the first {_MOST_PROMPTS} prompts are taken, {found.more} more are not")


def _prompts(text: str, name: str) -> _Prompts | None:
    """Prompts of kohya's .txt, .toml or .json."""
    try:
        if name.endswith(".toml"):
            table = tomllib.loads(text).get("prompt", {})
            rows = [{**table, **row} for row in table.get("subset", [])]
        elif name.endswith(".json"):
            rows = [row if isinstance(row, dict) else _row(str(row)) for row in json.loads(text)]
        else:
            rows = [_row(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return _together([row for row in rows if str(row.get("prompt", "")).strip()])


def _row(line: str) -> dict[str, object]:
    """`a cat --n blurry --s 20 --l 7 --w 1024`."""
    parts = _OPTION.split(f"{line.strip()} ")
    names = {"n": "negative_prompt", "s": "sample_steps", "l": "scale", "w": "width", "h": "height", "d": "seed"}
    options = {
        names.get(key.lower(), key.lower()): value.strip()
        for key, value in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {"prompt": parts[0].strip(), **options}


def _together(rows: list[dict[str, object]]) -> _Prompts:
    texts = tuple(dict.fromkeys(re.sub(r"\s+", " ", str(row["prompt"])).strip() for row in rows))
    first = rows[0] if rows else {}
    steps = re.fullmatch(r"\d{1,4}", str(first.get("sample_steps", "")))
    scale = re.fullmatch(r"\d{1,3}(\.\d+)?", str(first.get("scale", "")))
    return _Prompts(
        texts[:_MOST_PROMPTS],
        re.sub(r"\s+", " ", str(first.get("negative_prompt", ""))),
        max(int(steps[0]), 1) if steps else 30,
        float(scale[0]) if scale else 7.5,
        any(row.keys() & {"width", "height", "seed", "ss", "sample_sampler"} for row in rows),
        max(len(texts) - _MOST_PROMPTS, 0),
    )


def held_out(sheet: Sheet, case: Case) -> None:
    """kohya's validation split, which only its LoRA script uses."""
    share = sheet.number("validation_split")
    every = positive(sheet, "validate_every_n_steps")
    if not share:
        if every is not None:
            sheet.leave("validate_every_n_steps", "not needed", "it needs validation_split")
        return
    if not 0 < share < _LARGEST_SHARE:
        sheet.leave("validation_split", "not possible", "a share above 0 and below a half can be held out")
        return
    sheet.put("train.held_out.share", share, "validation_split")
    if every is not None:
        sheet.put("train.held_out.every_steps", every, "validate_every_n_steps")
    if not case.lora:
        sheet.note(
            "held_out: kohya's sdxl_train.py splits pictures off and does not use them; here they give a loss"
        )


def trackers(sheet: Sheet, case: Case) -> None:
    """Weights & Biases; TensorBoard is always there."""
    asked = sheet.text("log_with")
    key = sheet.given("wandb_api_key")
    if key:
        sheet.leave(
            "wandb_api_key",
            "by design",
            "keys come from the environment: export WANDB_API_KEY; it is under secrets",
        )
    name = sheet.text("log_tracker_name")
    if asked not in ("wandb", "all"):
        if asked not in (None, "tensorboard"):
            sheet.leave("log_with", "unknown", "kohya has tensorboard, wandb and all")
        if name is not None:
            sheet.leave(
                "log_tracker_name", "by design", "TensorBoard's files are written into the run's own directory"
            )
        return
    sheet.put(
        "train.wandb.project",
        name or ("network_train" if case.lora else "finetuning"),
        "log_tracker_name",
        "log_with",
    )
    sheet.put("secrets", sorted({*sheet.get("secrets", []), "WANDB_API_KEY"}))
