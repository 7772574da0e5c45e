"""Settings -> commented YAML, and the report beside it.

Owns the order of sections and how they look. Refuses to repeat a secret: flags hide theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import yaml

from clusterft_trainer.migrate.found import Migration, Unmatched

_ORDER = (
    "name hosts shared runtime launcher port resources env secrets train model tokenizers vae output data learn "
    "objective batch precision weights engine compute checkpoints samples held_out wandb steps epochs seed "
    "sources resolution captions crop_ids unet text_encoders text_encoder_1 text_encoder_2 lora ema optimizer "
    "rate parts"
).split()
_WIDEST = 96  # characters of a section on one line
# Words that need no quotes in YAML 1.1 and 1.2, and are neither numbers, dates nor truth values there.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(?:[ @+=][A-Za-z0-9_./-]+)*")
_TAKEN = frozenset("true false yes no on off null y n".split())
_SPELLED = re.compile(r"(\d)e([-+])0*(\d+)")


def write(job: Mapping[str, object], comments: Mapping[str, str], head: Sequence[str]) -> str:
    """job.yaml, with the head as comments before it."""
    lines = [f"# {line}".rstrip() for line in head]
    return "\n".join([*lines, *_section(job, "", 0, comments)]) + "\n"


def _section(table: Mapping[str, object], path: str, depth: int, comments: Mapping[str, str]) -> Iterator[str]:
    indent = "  " * depth
    for key in sorted(table, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)):
        value, here = table[key], f"{path}.{key}" if path else key
        remark = f"  # {comments[here]}" if here in comments else ""
        if depth == 0 and key == "train":
            yield ""
        line = f"{indent}{key}: {flow(value)}"
        commented = any(other.startswith(f"{here}.") for other in comments)
        roomy = isinstance(value, Mapping) and (key == "train" or commented or len(line) > _WIDEST)
        if roomy and isinstance(value, Mapping) and value:
            yield f"{indent}{key}:{remark}"
            yield from _section(value, here, depth + 1, comments)
        elif isinstance(value, list) and len(line) > _WIDEST:
            yield f"{indent}{key}:{remark}"
            yield from (f"{indent}  - {flow(item)}" for item in value)
        else:
            yield line + remark


def flow(value: object) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return _SPELLED.sub(r"\1e\2\3", repr(value)).replace("e+", "e")
    if isinstance(value, int):
        return str(value)
    return _scalar(str(value))


def _scalar(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _TAKEN:
        return text
    dumped = yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', allow_unicode=True, width=float("inf"))
    return str(dumped).strip()


def head(source: str, script: str, unmatched: Sequence[Unmatched], notes: Sequence[str], blanks: int) -> list[str]:
    """What stands above the job: where it comes from, and what of that is not in it."""
    origin = f"{source} ({script})" if script else source
    lines = [f"From {origin}, by clusterft migrate." + (" FILL IN is for you." if blanks else "")]
    if unmatched:
        lines += ["Not carried over:", *(f"  {entry}" for entry in unmatched)]
    if notes:
        lines += ["To know:", *(f"  {note}" for note in notes)]
    return [_printable(line) for line in lines]


def report(migration: Migration) -> str:
    """What came along and what did not, for a terminal."""
    total = len(migration.carried) + len(migration.unknown)
    script = f" · {migration.script}" if migration.script else ""
    lines = [f"{migration.source}{script} · {len(migration.carried)} of {total} settings carried over", ""]
    if migration.unknown:
        lines += [*_table(migration.unknown), ""]
    for title, entries in (("to know", migration.notes), ("for you to fill in", migration.blanks)):
        if entries:
            lines += [title, *(f"  {entry}" for entry in entries), ""]
    return "\n".join(_printable(line) for line in lines[:-1]) + "\n"


def _table(entries: Sequence[Unmatched]) -> Iterator[str]:
    flags = [f"{e.flag} {e.value}".strip() for e in entries]
    shown = [flag if len(flag) <= 40 else flag[:39] + "…" for flag in flags]
    wide, places = max(map(len, shown)), max(len(e.place) for e in entries)
    yield "not carried over"
    for entry, flag in zip(entries, shown, strict=True):
        yield f"  {flag:{wide}}  {entry.place:{places}}  {entry.why}: {entry.reason}"


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in line)
