"""Rules for what is trained on what: model, output, pictures, captions.

Owns kohya's defaults of these. Refuses nothing: what only the user can know is left to be filled in.
"""

from __future__ import annotations

import math
import re

from clusterft_trainer.migrate.case import Case, path, positive
from clusterft_trainer.migrate.found import SUBSET
from clusterft_trainer.migrate.sheet import Sheet

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {"float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "no": "fp32"}
_STEP = 64  # pixels; train.data.resolution is a multiple
_SMALLEST, _LARGEST = 64, 4096


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
        sheet.put("train.output.every_epochs", every * repeats(sheet), "save_every_n_epochs")
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
    """The pictures, and the size at which they are trained."""
    sources = _sources(sheet, case)
    if sources:
        by = ("train_data_dir", "image_dir", "in_json", "caption_extension", "caption_extention")
        sheet.put("train.data.sources", sources, *by)
    else:
        why = "a folder of pictures, each with a .txt"
        sheet.blank("train.data.sources", [{"folder": "/data/FILL-IN"}], why)
    resolution = _resolution(sheet, case)
    sheet.put("train.data.resolution", resolution, "resolution")
    if case.kohya:
        sheet.put(
            "train.data.crop_ids", "kohya", say="the offsets that kohya tells the model; true: the real ones"
        )
    _buckets(sheet, case, resolution)


def _sources(sheet: Sheet, case: Case) -> list[object]:
    folders = [flag.value for flag in sheet.every("image_dir") if isinstance(flag.value, str) and flag.value]
    single, listed = sheet.text("train_data_dir"), sheet.text("in_json")
    metadata = any(sheet.every(name) for name in ("in_json", "metadata_file"))
    sheet.leave("metadata_file", "not possible", "write a kohya: source for each subset that has one")
    if folders:
        sheet.leave("in_json", "overruled", "kohya ignores it beside a data set file")
    elif listed:
        _extension(sheet, metadata=True)
        found = {"kohya": path(sheet, listed, "data.sources")}
        return [found | ({"folder": path(sheet, single, "data.sources")} if single else {})]
    if folders and single is not None:
        sheet.leave("train_data_dir", "overruled", "kohya ignores it beside a data set file")
    elif single is not None:
        folders = [single]
        if not metadata:
            sheet.note(
                f"data: {single}: all folders in it are searched; the repeats in their names (10_name) do not "
                "count, nor does the name stand in for a missing caption"
            )
    more = _extension(sheet, metadata=metadata)
    return [{"folder": path(sheet, str(folder), "data.sources")} | more for folder in dict.fromkeys(folders)]


def _extension(sheet: Sheet, *, metadata: bool) -> dict[str, object]:
    """What a folder is told of its text files; .txt and .caption are read anyway."""
    given = [sheet.text(name) for name in ("caption_extension", "caption_extention")]
    ending = next((text for text in given if text), None)
    if metadata:
        for name in ("caption_extension", "caption_extention"):
            sheet.leave(name, "not needed", "captions come from the metadata file")
    if metadata or ending is None or ending.lstrip(".") in ("txt", "caption"):
        return {}
    return {"suffixes": [f".{ending.lstrip('.')}"]}


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
    if case.kohya and not sheet.switch("enable_bucket"):
        sheet.note("data: kohya without enable_bucket cuts all pictures to one size; here they go into buckets")
    step = sheet.whole("bucket_reso_steps")
    if step not in (None, 64):
        sheet.put("train.data.buckets.step", step, "bucket_reso_steps")
    limits = (("largest", "max_bucket_reso", resolution), ("smallest", "min_bucket_reso", resolution // 4))
    if sheet.switch("bucket_no_upscale"):
        sheet.put("train.data.buckets.upscale", False, "bucket_no_upscale")
        for _, name, _ in limits:
            sheet.leave(name, "not needed", "kohya ignores it with bucket_no_upscale, too")
        return
    for key, name, ours in limits:
        value = sheet.whole(name)
        if value not in (None, ours):
            sheet.put(f"train.data.buckets.{key}", value, name)


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
    _tags(sheet)
    tokens = sheet.whole("max_token_length")
    if tokens not in (None, 75):
        sheet.put("train.data.captions.tokens", tokens, "max_token_length")
    _everywhere(sheet)


def _tags(sheet: Sheet) -> None:
    """What only matters where tags are moved or dropped."""
    keep, separator = positive(sheet, "keep_tokens"), sheet.text("caption_separator")
    moved = sheet.get("train.data.captions.shuffle") or sheet.get("train.data.captions.tag_dropout")
    found = (("keep", "keep_tokens", keep), ("separator", "caption_separator", separator))
    for key, name, value in found:
        if value in (None, ","):
            continue
        if moved:
            sheet.put(f"train.data.captions.{key}", value, name)
        else:
            sheet.leave(name, "not needed", "kohya heeds it with shuffle_caption or caption_tag_dropout_rate only")


def repeats(sheet: Sheet) -> int:
    """How often an epoch of kohya's saw each picture, where that is one number for all; else 1, and a word."""
    said = [flag.value for flag in sheet.flags if flag.name == "dataset_repeats"]
    subsets = len([flag for flag in sheet.flags if flag.name == "image_dir" and flag.rank == SUBSET])
    if not said:
        return 1
    alike = {value for value in said if isinstance(value, int) and value > 0}
    if len(alike) == 1 and len(alike) == len(set(said)) and len(said) >= max(1, subsets):
        return int(next(iter(alike)))
    sheet.note("epochs: kohya's folders had different repeats; here an epoch sees each picture once: raise epochs")
    return 1


def _everywhere(sheet: Sheet) -> None:
    """What some subsets say and others do not, holds for all pictures here."""
    subsets = len([flag for flag in sheet.flags if flag.name == "image_dir" and flag.rank == SUBSET])
    per_subset = ("shuffle_caption", "keep_tokens", "caption_dropout_rate", "caption_tag_dropout_rate")
    for name in per_subset:
        said = [flag for flag in sheet.flags if flag.name == name and flag.rank == SUBSET]
        if said and len(said) < subsets:
            sheet.note(f"data.captions: {name} was for {len(said)} of {subsets} subsets; here it holds for all")
