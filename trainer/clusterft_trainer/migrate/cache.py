"""Rules for what is kept of pictures and captions: latents, mirrored ones, text states.

Owns which of kohya's caches have a counterpart on disk. Refuses a cache where none is needed, and text states of
captions that change.
"""

from __future__ import annotations

from clusterft_trainer.migrate.case import Case
from clusterft_trainer.migrate.learning import PARTS
from clusterft_trainer.migrate.sheet import Sheet

_LATENTS = ("cache_latents", "cache_latents_to_disk")
_STATES = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
_MOVING = ("dropout", "wildcards", "shuffle", "tag_dropout", "warmup")


def cache(sheet: Sheet, case: Case) -> None:
    """One sample of each picture's latents, as kohya keeps; only where something needs it."""
    memory, disk = (sheet.switch(name) for name in _LATENTS)
    flip, states = sheet.switch("flip_aug"), _still(sheet)
    if not (disk or flip or states):
        sheet.leave(
            "cache_latents",
            "not needed",
            "latents are made as pictures come; cache: {take: sample} under train.data keeps them, and takes "
            "kohya's .npz where they are",
        )
        return
    sheet.put("train.data.cache.take", "sample", *_LATENTS, say="as kohya keeps them")
    if disk and any("kohya" in source for source in sheet.get("train.data.sources", [])):
        sheet.put("train.data.cache.npz", True, "cache_latents_to_disk", say="kohya's own, where they are")
    elif disk:
        sheet.note(
            "data.cache: kohya's .npz are found through its metadata file only; beside the pictures of a folder "
            "they are left alone, and latents are made anew"
        )
    if flip:
        sheet.put("train.data.cache.flip", True, "flip_aug")
    if states:
        sheet.put("train.data.cache.text", True, *_STATES)
        if sheet.given(_STATES[1]):
            sheet.note("data.cache.text: states are made anew; kohya's *_te_outputs.npz are not taken")
    if not (memory or disk):
        needs = "flip and text need" if flip and states else "flip needs" if flip else "text needs"
        sheet.note(
            f"data.cache: {needs} it, and it keeps one sample of each picture's latents, where kohya without "
            "cache_latents drew anew"
        )


def _still(sheet: Sheet) -> bool:
    """Whether text states are to be kept, and can be."""
    if not any([sheet.switch(name) for name in _STATES]):
        return False
    moving = [name for name in _MOVING if name in sheet.get("train.data.captions", {})]
    reason = ""
    if any(sheet.get(f"train.learn.{part}") for part in PARTS if part != "unet"):
        reason = "what a text encoder says changes while it is trained"
    elif moving:
        reason = f"data.captions.{moving[0]} changes captions, and with them what text encoders say"
    for name in _STATES if reason else ():
        sheet.leave(name, "not possible", reason)
    return not reason
