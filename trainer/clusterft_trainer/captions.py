"""What happens to a caption between its file and the tokenizers. Pure and torch-free.

Owns dropout, wildcards and the order of tags, step by step as kohya's trainer does it:

    prefix, suffix -> whole-caption dropout -> one line, then one of each {a|b} -> split into tags
    -> keep the first N, or what stands before the keep separator and behind a second one
    -> warm-up -> shuffle -> tag dropout -> join by ", " -> secondary separator

In two places it does what is meant there rather than what is done: of several lines each gets the prefix, not the
first alone, and a keep separator never reaches the tokenizers. Refuses randomness of its own: everything follows
from the caption and the key of (seed, epoch, sample), so a caption is the same on any number of ranks and after
resuming. A caption of which nothing is asked is left as it was written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial

from clusterft_trainer.config import Captions

KEY_BITS = 63
_CHOICE = re.compile(r"\{([^}]+)\}")
_UNUSED = range(0xF0000, 0x110000)  # characters that mean nothing; more of them than a caption has bytes


def still(settings: Captions) -> Callable[[str], str]:
    """What becomes of captions that stay as they are: nothing is drawn, so any key would do."""
    return partial(settle, settings=settings, key=(1 << KEY_BITS) - 1)


def settle(caption: str, settings: Captions, key: int, *, step: int | None = None) -> str:
    """The caption that one sample is trained with in one epoch; `key` has KEY_BITS random bits.

    `step` is the optimizer step that it is for, from 0; only warm-up asks for it.
    """
    if key < settings.dropout * 2**KEY_BITS:
        return ""
    if settings.wildcards:
        source = random.Random(key)
        caption = _chosen(_affixed(_line(caption, source), settings), source)
    else:
        source = None
        caption = _affixed(caption, settings)
    if settings.arranges or (settings.keep_separator and settings.keep_separator in caption):
        caption = ", ".join(_arrange(caption, settings, source or random.Random(key), step))
    if settings.secondary_separator:
        caption = caption.replace(settings.secondary_separator, settings.separator)
    return caption


def _affixed(caption: str, settings: Captions) -> str:
    if not settings.prefix and not settings.suffix:
        return caption
    return " ".join(part for part in (settings.prefix, caption, settings.suffix) if part)


def _line(caption: str, source: random.Random) -> str:
    """One of the lines that say something."""
    lines = [line for line in map(str.strip, caption.split("\n")) if line]
    return source.choice(lines) if len(lines) > 1 else "".join(lines)


def _chosen(caption: str, source: random.Random) -> str:
    """One of each {a|b}; doubled braces are plain ones."""
    if "{" not in caption and "}" not in caption:
        return caption
    spare = (mark for mark in map(chr, _UNUSED) if mark not in caption)
    opening, closing = next(spare), next(spare)
    marked = caption.replace("{{", opening).replace("}}", closing)
    end = marked.rfind("}") + 1  # behind it nothing closes, and each brace would be followed to the caption's end
    drawn = _CHOICE.sub(lambda found: source.choice(found[1].split("|")), marked[:end])
    return (drawn + marked[end:]).replace(opening, "{").replace(closing, "}")


def _arrange(caption: str, settings: Captions, source: random.Random, step: int | None) -> list[str]:
    """Move and drop what may be moved and dropped."""
    fixed, free, behind = _parted(caption, settings)
    free = _warm(free, settings, step)
    share = settings.shuffled
    if share == 1 or (share > 0 and source.random() < share):
        source.shuffle(free)
    if settings.tag_dropout > 0:
        free = [tag for tag in free if source.random() >= settings.tag_dropout]
    return fixed + free + behind


def _parted(caption: str, settings: Captions) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that are free, tags that stay behind."""
    mark = settings.keep_separator
    if mark and mark in caption:
        front, rest = caption.split(mark, 1)
        free, _, behind = rest.partition(mark)
        # a third one parts nothing, and is no word either
        return (
            _split(front, settings.separator),
            _split(free, settings.separator),
            _split(behind.replace(mark, settings.separator), settings.separator),
        )
    tags = _split(caption, settings.separator)
    return tags[: settings.keep], tags[settings.keep :], []


def _split(caption: str, separator: str) -> list[str]:
    """The tags, without those that are nothing: a comma at the end must not wander to the front."""
    tags = (tag.strip() for tag in caption.split(separator))
    return [tag for tag in tags if tag]


def _warm(free: list[str], settings: Captions, step: int | None) -> list[str]:
    """The first tags, more of them with each step."""
    warmup = settings.warmup
    if warmup is None:
        return free
    if step is None:
        raise ValueError("captions with warm-up need the step that they are for")
    if step >= warmup.steps:
        return free
    return free[: (len(free) - warmup.least) * step // warmup.steps + warmup.least]
