"""Rules for what is trained on what: model, output, sizes of pictures, captions.

Owns kohya's defaults of these. Refuses nothing: what only the user can know is left to be filled in.
"""

from __future__ import annotations

import math
import re

from clusterft_trainer.migrate.case import Case, path, positive
from clusterft_trainer.migrate.course import STEPS
from clusterft_trainer.migrate.sheet import Sheet
from clusterft_trainer.migrate.subsets import subsets

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {"float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "no": "fp32"}
_STEP = 64  # pixels; train.data.resolution is a multiple
_SMALLEST, _LARGEST = 64, 4096
_BUCKET_STEP, _BUCKET_SMALLEST, _BUCKET_LARGEST = 64, 256, 1024  # kohya's defaults
# What subsets may say each for itself, and what it becomes.
_FOR_ALL = {
    "data.captions": (
        "shuffle_caption keep_tokens keep_tokens_separator caption_separator secondary_separator caption_prefix "
        "caption_suffix enable_wildcard caption_dropout_rate caption_tag_dropout_rate token_warmup_min "
        "token_warmup_step"
    ).split(),
    "data.cache": ["flip_aug"],
}


def model(sheet: Sheet, case: Case) -> None:
    """Which model, and which VAE."""
    value = sheet.text("pretrained_model_name_or_path")
    if value is None:
        sheet.blank("train.model", "/models/FILL-IN.safetensors", "the SDXL model, a file or a diffusers folder")
    elif _HUB.fullmatch(value) and not value.endswith((".safetensors", ".ckpt")):
        by = "pretrained_model_name_or_path"
        sheet.blank("train.model", value, "nothing is downloaded while training: the file or folder on the nodes")
        sheet.note(f"train.model: {value} looks like a name on a hub ({by})")
    else:
        sheet.put("train.model", path(sheet, value, "train.model"), "pretrained_model_name_or_path")
        if value.endswith((".ckpt", ".pt")):
            sheet.note(f"train.model: {value} must be converted to .safetensors first")
    vae = sheet.text("vae")
    if vae is not None:
        sheet.put("train.vae", path(sheet, vae, "train.vae"), "vae")


def output(sheet: Sheet, case: Case) -> None:
    """The finished model: its name, its number format, what is said of it."""
    given = sheet.text("output_name")
    name = _name(given or "last")
    if given and name != given:
        sheet.note(f"output.name: {given} cannot be a name here; {name} is")
    sheet.put("name", name, "output_name")
    sheet.put("train.output.name", name, "output_name", say="" if given else "kohya's default")
    if not case.kohya:
        sheet.blank("train.output.name", name, "a name for the model, and for the run in the first line")
    full = {"full_bf16": "bf16", "full_fp16": "fp16"}
    weights = next((dtype for flag, dtype in full.items() if sheet.switch(flag)), "fp32")
    asked = sheet.text("save_precision")
    if asked is not None and asked not in _DTYPES:
        sheet.leave("save_precision", "unknown", "kohya has float, fp16 and bf16")
    dtype = _DTYPES.get(asked or "", weights)
    said = asked in _DTYPES or not case.kohya
    sheet.put("train.output.dtype", dtype, "save_precision", say="" if said else "kohya: as the weights are held")
    every = positive(sheet, "save_every_n_epochs")
    if every is not None:
        sheet.put("train.output.every_epochs", every, "save_every_n_epochs")
    for flag, key in (("author", "author"), ("license", "license"), ("description", "description")):
        text = sheet.text(f"metadata_{flag}")
        if text is not None:
            sheet.put(f"train.output.{key}", text, f"metadata_{flag}")
    _format(sheet, lora=case.lora)


def _name(text: str) -> str:
    """A file stem that output.name takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:41].rstrip("-") or "model"


def _format(sheet: Sheet, *, lora: bool) -> None:
    form = (sheet.text("save_model_as") or "safetensors").lower()
    if form in ("diffusers", "diffusers_safetensors") and not lora:
        sheet.put("train.output.diffusers", True, "save_model_as", say="beside the single file")
    elif form != "safetensors":
        sheet.leave("save_model_as", "by design", "the model file is always .safetensors")


def data(sheet: Sheet, case: Case) -> None:
    """The size at which pictures are trained."""
    resolution = _resolution(sheet, case)
    sheet.put("train.data.resolution", resolution, "resolution")
    if case.kohya:
        sheet.put(
            "train.data.crop_ids", "kohya", say="the offsets that kohya tells the model; true: the real ones"
        )
    _buckets(sheet, case, resolution)


def _resolution(sheet: Sheet, case: Case) -> int:
    words = [w for word in sheet.words("resolution") for w in word.split(",") if w.strip()]
    if not words and sheet.whole("resolution") is not None:
        words = [str(sheet.whole("resolution"))]
    if not words:
        if case.kohya:
            sheet.note("data.resolution: not given to kohya; 1024 is SDXL's own")
        return 1024
    try:
        sides = [int(float(word)) for word in words]
        area = sides[0] * sides[-1]
    except (ValueError, OverflowError):
        area = 0
    if area <= 0 or len(words) > 2:
        sheet.leave("resolution", "unreadable", "is neither a size nor WIDTH,HEIGHT")
        return 1024
    exact = math.isqrt(area)
    value = min(max(round(exact / _STEP) * _STEP, _SMALLEST), _LARGEST)
    if value * value != area:
        sheet.note(
            f"data.resolution: {','.join(words)} has the area of about {exact} squared; {value} is the nearest"
        )
    return value


def _buckets(sheet: Sheet, case: Case, resolution: int) -> None:
    """Limits, where they are not those that the resolution has here anyway."""
    told = case.kohya and sheet.switch("enable_bucket")
    if case.kohya and not told:
        sheet.note("data: kohya without enable_bucket cuts all pictures to one size; here they go into buckets")
    ours = 64 if resolution >= 512 else 32
    step = positive(sheet, "bucket_reso_steps") or (_BUCKET_STEP if told else ours)
    if step != ours:
        say = "" if sheet.given("bucket_reso_steps") else "kohya's default"
        sheet.put("train.data.buckets.step", step, "bucket_reso_steps", say=say)
    if sheet.switch("bucket_no_upscale"):
        sheet.put("train.data.buckets.upscale", False, "bucket_no_upscale")
        for name in ("max_bucket_reso", "min_bucket_reso"):
            sheet.leave(name, "not needed", "kohya ignores it with bucket_no_upscale, too")
        return
    largest, smallest = positive(sheet, "max_bucket_reso"), positive(sheet, "min_bucket_reso")
    # What it is not told, kohya takes from its defaults, and does not start where they do not fit the resolution.
    if largest is None:
        largest = max(_BUCKET_LARGEST, resolution) if told else resolution
    if smallest is None:
        smallest = min(_BUCKET_SMALLEST, resolution) if told else _smallest(resolution, step)
    limits = (  # kohya makes both multiples of the step
        ("largest", -(-largest // step) * step, resolution, "max_bucket_reso"),
        ("smallest", max(smallest // step, 1) * step, _smallest(resolution, step), "min_bucket_reso"),
    )
    for key, value, here, name in limits:
        if value != here:
            say = "" if sheet.given(name) else "kohya's default"
            sheet.put(f"train.data.buckets.{key}", value, name, say=say)


def _smallest(resolution: int, step: int) -> int:
    """The shortest side that the resolution has here without a limit."""
    return max(step, resolution // 4 // step * step)


_SEPARATORS = (("keep_separator", "keep_tokens_separator"), ("secondary_separator", "secondary_separator"))


def captions(sheet: Sheet, case: Case) -> None:
    """What happens to a caption on its way to the tokenizers."""
    shares = (("dropout", "caption_dropout_rate"), ("tag_dropout", "caption_tag_dropout_rate"))
    for key, name in shares:
        share = sheet.number(name)
        if share:
            sheet.put(f"train.data.captions.{key}", share, name)
    for key, name in (("prefix", "caption_prefix"), ("suffix", "caption_suffix"), *_SEPARATORS):
        text = sheet.text(name)
        if text:
            sheet.put(f"train.data.captions.{key}", text, name)
    if sheet.switch("enable_wildcard"):
        sheet.put("train.data.captions.wildcards", True, "enable_wildcard")
    if sheet.switch("shuffle_caption"):
        sheet.put("train.data.captions.shuffle", True, "shuffle_caption")
    _warmup(sheet)
    _tags(sheet)
    tokens = sheet.whole("max_token_length")
    if tokens not in (None, 75):
        sheet.put("train.data.captions.tokens", tokens, "max_token_length")
    _everywhere(sheet)


def _warmup(sheet: Sheet) -> None:
    """Captions that grow; below 1, kohya's length of that is a share of all steps."""
    names = ("token_warmup_step", "token_warmup_min")
    length, least = sheet.number(names[0]), sheet.whole(names[1])
    epochs = positive(sheet, "max_train_epochs")
    steps = math.ceil(length or 0)
    if length is not None and 0 < length < 1:
        steps = math.floor(length * (positive(sheet, "max_train_steps") or STEPS))
        if epochs is not None:
            reason = "a share of steps that only kohya knew: write warmup: {steps: N} under data.captions"
            for name in names:
                sheet.leave(name, "not possible", reason)
            return
    if steps < 1:
        sheet.leave(names[0], "not needed", "it ends before the first step")
        sheet.leave(names[1], "not needed", "kohya heeds it with token_warmup_step only")
        return
    sheet.put("train.data.captions.warmup.steps", steps, names[0])
    if least is not None and least < 1:
        sheet.leave(names[1], "not possible", "one tag is kept at least")
    elif least is not None and least > 1:
        sheet.put("train.data.captions.warmup.least", least, names[1])


def _tags(sheet: Sheet) -> None:
    """What only matters where tags are moved or dropped."""
    keep, separator = positive(sheet, "keep_tokens"), sheet.text("caption_separator")
    moved = any(sheet.get(f"train.data.captions.{key}") for key in ("shuffle", "tag_dropout", "warmup"))
    found = (("keep", "keep_tokens", keep), ("separator", "caption_separator", separator))
    for key, name, value in found:
        if value in (None, ","):
            continue
        if moved:
            sheet.put(f"train.data.captions.{key}", value, name)
        elif key == "separator" and sheet.get("train.data.captions.secondary_separator"):
            # kohya puts it in the place of the secondary one, moved or not
            sheet.leave(name, "not possible", "captions are taken apart with shuffle, tag_dropout or warmup only")
        else:
            reason = "kohya heeds it with shuffle_caption, token_warmup_step or caption_tag_dropout_rate only"
            sheet.leave(name, "not needed", reason)


def _everywhere(sheet: Sheet) -> None:
    """What some subsets say and others do not, holds for all pictures here."""
    parts = subsets(sheet)
    for setting, names in _FOR_ALL.items():
        for name in names:
            said = sum(any(flag.value is not False for flag in part.own((name,))) for part in parts)
            if 0 < said < len(parts):
                sheet.note(f"{setting}: {name} was for {said} of {len(parts)} subsets; here it holds for all")
