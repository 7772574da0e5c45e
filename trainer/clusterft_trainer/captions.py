"""What happens to a caption between its file and the tokenizers. Pure and torch-free.

Owns dropout and the order of tags, step by step as kohya's trainer does it:

    whole-caption dropout -> split into tags -> keep the first N -> shuffle -> tag dropout -> join by ", "

Refuses randomness of its own: everything follows from the caption and the key of (seed, epoch, sample), so a
caption is the same on any number of ranks and after resuming. A caption whose tags are neither shuffled nor
dropped is left as it was written.
"""

from __future__ import annotations

import random

from clusterft_trainer.config import Captions

KEY_BITS = 63


def settle(caption: str, settings: Captions, key: int) -> str:
    """The caption that one sample is trained with in one epoch; `key` has KEY_BITS random bits."""
    if key < settings.dropout * 2**KEY_BITS:
        return ""
    if not settings.shuffle and settings.tag_dropout == 0:
        return caption
    return ", ".join(_arrange(_split(caption, settings.separator), settings, random.Random(key)))


def _split(caption: str, separator: str) -> list[str]:
    """The tags, without those that are nothing: a comma at the end must not wander to the front."""
    tags = (tag.strip() for tag in caption.split(separator))
    return [tag for tag in tags if tag]


def _arrange(tags: list[str], settings: Captions, source: random.Random) -> list[str]:
    """Move and drop what may be moved and dropped."""
    fixed, free = tags[: settings.keep], tags[settings.keep :]
    if settings.shuffle:
        source.shuffle(free)
    if settings.tag_dropout > 0:
        free = [tag for tag in free if source.random() >= settings.tag_dropout]
    return fixed + free
