"""What text a picture is trained with, where tags, scores and captions lie in metadata. Pure.

Owns the tag rules of translunar-diffusion, in its order, and how kohya's trainer joins a caption and tags. Refuses
chance: tags come out sorted, and what is shuffled or dropped anew for each sample is decided in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clusterft_trainer.config.sources import TagRules

JOINT = ", "


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that a rule keeps out of training."""

    rule: str


def caption(tags: Sequence[str], score: float | None, rules: TagRules) -> str | LeftOut:
    """The text of a picture, or which rule leaves it out. A rule that needs a score leaves out what has none."""
    floor = rules.absolute_minimum_score
    if floor is not None and (score is None or score < floor):
        return LeftOut("absolute_minimum_score")
    kept = list(tags)
    if score is not None:
        kept += [f"scr{t}" for t in sorted(rules.score_tags, reverse=True) if score >= t][:1]
    with_bonus = None if score is None else score + sum(rules.bonus[t] for t in rules.bonus if t in kept)
    if rules.minimum_score is not None and (with_bonus is None or with_bonus < rules.minimum_score):
        return LeftOut("minimum_score")
    if any(tag in kept for tag in rules.blacklist):
        return LeftOut("blacklist")
    beginnings = tuple(tag for tag in rules.non_caption if tag.endswith(":"))
    kept = [tag for tag in kept if tag not in rules.non_caption and not tag.startswith(beginnings)]
    text = JOINT.join(sorted(kept))
    for old, new in rules.replacements.items():
        text = text.replace(old, new)
    return text


def chosen(number: int, rules: TagRules) -> bool:
    """Whether the metadata file of this number, in the order of their names, belongs to this half."""
    if rules.every_nth:
        return number % rules.every_nth == 0
    return not rules.not_every_nth or number % rules.not_every_nth != 0


def joined(text: str | None, tags: str | None) -> str | None:
    """Kohya's caption: tags go behind each line of it, so that a line that is drawn has them."""
    if tags is None or text is None:
        return text if tags is None else tags.strip()
    flat = tags.replace("\n", ",").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or not flat:
        return text if lines else flat
    return "\n".join(f"{line.rstrip()},{flat}" for line in lines)
