"""How many weights each part of a model has, by the heads of its files: what is asked, and the answer. Pure.

Owns the two layouts that a model comes in: one file with all parts under prefixes, or a folder for each part. A
head is some hundred kilobytes of a file of gigabytes. Refuses to judge a model: the trainer does that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod

SECONDS = 20.0
_LARGEST = 8 * 2**20  # bytes of a head; SDXL's has 0.4 million
_PARTS = {
    "unet": ("model.diffusion_model.", "unet"),
    "text_encoder_1": ("conditioner.embedders.0.", "text_encoder"),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoder_2"),
    "vae": ("first_stage_model.", "vae"),
}
_FOLDERS = {folder: part for part, (_, folder) in _PARTS.items()}
_SCRIPT = """
most=$1 p=$2; shift 2
one() {
  set -- "$1" "$2" $(od -An -v -tu1 -N8 -- "$2" 2>/dev/null)
  [ $# -eq 10 ] && [ "$7$8$9${10}" = 0000 ] || return 0
  n=$(($3 + 256 * ($4 + 256 * ($5 + 256 * $6))))
  [ "$n" -gt 1 ] && [ "$n" -le "$most" ] || return 0
  echo "head $1"; tail -c +9 -- "$2" | head -c "$n" | tr -d '\\n'; echo
}
if [ -f "$p" ]; then one . "$p"; else
  for d; do for f in "$p/$d"/*.safetensors; do if [ -f "$f" ]; then one "$d" "$f"; fi; done; done
fi
echo end
"""


def argv(path: str) -> tuple[str, ...]:
    """The command for one node."""
    return ("sh", "-c", _SCRIPT, "sh", str(_LARGEST), path, *_FOLDERS)


def parse(text: str) -> Mapping[str, int] | None:
    """Part -> its weights; None where no whole model was found."""
    if not text.rstrip().endswith("end"):
        return None
    found: dict[str, dict[str, int]] = {part: {} for part in _PARTS}
    for place, head in re.findall(r"^head (\S+)\n(.*)$", text, re.MULTILINE):
        for name, count in _tensors(head):
            part = _FOLDERS.get(place) or _part(name)
            if part:
                found[part][name] = count  # the same weights in another number format are the same weights
    counts = {part: sum(of.values()) for part, of in found.items()}
    return counts if counts["unet"] else None


def _tensors(head: str) -> list[tuple[str, int]]:
    try:
        body = json.loads(head)
        return [(name, prod(one["shape"])) for name, one in body.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _part(name: str) -> str | None:
    return next((part for part, (prefix, _) in _PARTS.items() if name.startswith(prefix)), None)
