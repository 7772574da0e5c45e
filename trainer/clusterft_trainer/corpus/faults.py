"""What can be wrong with a picture or its text, what the settings make of it, and the report of all of it.

Owns the names of faults and the one place that decides: refuse, skip, or take as it is. Refuses nothing before all
is looked at: one report names everything that must be mended.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from clusterft_trainer import disk
from clusterft_trainer.config.data import Problems
from clusterft_trainer.corpus.columns import LONGEST_CAPTION
from clusterft_trainer.errors import DataError

SCHEMA_NUMBER = 1
LISTED = 2_000  # names of a kind in report.json; all are counted
SHOWN = 5  # in report.txt and in messages


class Fault(IntEnum):
    """Stored in the index: numbers stay."""

    NONE = 0
    BROKEN = 1
    TOO_LARGE = 2
    OUTSIDE = 3
    ABSENT = 4
    NAME = 5
    NO_TEXT = 6
    NOT_UTF8 = 7
    LONG_TEXT = 8
    SHARED_STEM = 9
    METADATA = 10
    EMPTY_TEXT = 11
    SIZE_DIFFERS = 12
    DUPLICATE = 13
    BAD_CACHE = 14


WORDS = {
    Fault.BROKEN: "no whole picture",
    Fault.TOO_LARGE: "more pixels than can be decoded",
    Fault.OUTSIDE: "the path leads out of the source's folder",
    Fault.ABSENT: "named, but not there",
    Fault.NAME: "the name is not UTF-8",
    Fault.NO_TEXT: "no caption",
    Fault.NOT_UTF8: "the caption is not UTF-8",
    Fault.LONG_TEXT: f"the caption is longer than {LONGEST_CAPTION} bytes",
    Fault.SHARED_STEM: "another picture has the same stem, so the caption is not its own",
    Fault.METADATA: "the metadata cannot be used",
    Fault.EMPTY_TEXT: "the caption is empty",
    Fault.SIZE_DIFFERS: "the picture has another size than its metadata says",
    Fault.DUPLICATE: "the same bytes as another picture",
    Fault.BAD_CACHE: "kohya's cache of it cannot be used, so the picture is encoded",
}
_OF_PICTURE = (Fault.BROKEN, Fault.TOO_LARGE, Fault.OUTSIDE, Fault.ABSENT, Fault.NAME)
_OF_TEXT = (Fault.NO_TEXT, Fault.NOT_UTF8, Fault.LONG_TEXT, Fault.SHARED_STEM, Fault.METADATA)
_STILL_A_PICTURE = (Fault.NO_TEXT, Fault.NOT_UTF8, Fault.LONG_TEXT)  # taken with an empty text if wanted


def decision(fault: Fault, problems: Problems) -> str:
    """`keep`, `skip` or `refuse`."""
    if fault in _OF_PICTURE:
        return problems.broken
    if fault in _OF_TEXT:
        if problems.no_caption == "empty":
            return "keep" if fault in _STILL_A_PICTURE else "skip"
        return problems.no_caption
    return problems.duplicate if fault == Fault.DUPLICATE else "keep"


@dataclass(slots=True)
class Report:
    """All that was found, counted; the first names of each kind."""

    counts: Counter[Fault] = field(default_factory=Counter)
    names: dict[Fault, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)  # by rule of the settings

    def add(self, fault: Fault, source: int, name: str, detail: str = "") -> None:
        """One more."""
        self.counts[fault] += 1
        listed = self.names.setdefault(fault, [])
        if len(listed) < LISTED:
            listed.append({"source": source, "name": name} | ({"detail": detail} if detail else {}))

    def write(self, folder: Path, problems: Problems, rows: int) -> None:
        """`report.json` for programs and `report.txt` for people."""
        disk.replace(folder / "report.json", json.dumps(self.body(problems, rows)))
        disk.replace(folder / "report.txt", self.text(problems, rows))

    def body(self, problems: Problems, rows: int) -> dict[str, Any]:
        """What an ingest found, written before it refuses anything."""
        return {
            "schema": SCHEMA_NUMBER,
            "pictures": rows,  # in the index
            "found": {fault.name.lower(): self.kind(fault, problems) for fault in sorted(self.counts)},  # by fault
            "left_out": dict(self.left_out),  # pictures that a rule of the settings keeps out, by rule
        }

    def kind(self, fault: Fault, problems: Problems) -> dict[str, Any]:
        """One kind of fault."""
        return {
            "what": WORDS[fault],  # in words
            "count": self.counts[fault],
            "decision": decision(fault, problems),  # keep, skip or refuse
            "names": self.names[fault],  # the first 2,000: source, name, and detail where there is one
        }

    def text(self, problems: Problems, rows: int) -> str:
        """The same for people."""
        lines = [f"{rows} pictures in the index"]
        lines += [f"{count} left out by {rule}" for rule, count in sorted(self.left_out.items())]
        for fault, count in sorted(self.counts.items()):
            lines.append(f"{count} x {WORDS[fault]}: {_DONE[decision(fault, problems)]}")
            lines += [f"    {self._line(entry)}" for entry in self.names[fault][:SHOWN]]
            if count > SHOWN:
                lines.append(f"    and {count - SHOWN} more")
        return "\n".join(lines) + "\n"

    def _line(self, entry: dict[str, Any]) -> str:
        detail = f" ({entry['detail']})" if "detail" in entry else ""
        return f"sources[{entry['source']}] {_printable(entry['name'])}{_printable(detail)}"

    def refuse(self, folder: Path, problems: Problems) -> None:
        """Stop if anything was found that the settings do not allow."""
        refused = [fault for fault in sorted(self.counts) if decision(fault, problems) == "refuse"]
        if not refused:
            return
        parts = []
        for fault in refused:
            first = ", ".join(_printable(entry["name"]) for entry in self.names[fault][:3])
            of = ", ".join(
                f"data.sources[{number}]" for number in sorted({e["source"] for e in self.names[fault]})
            )
            more = f" and {self.counts[fault] - 3} more" if self.counts[fault] > 3 else ""
            parts.append(f"{self.counts[fault]} x {WORDS[fault]}: {first}{more} ({of})")
        raise DataError(
            f"The pictures have problems. {'; '.join(parts)}. All of them: {folder / 'report.json'}.",
            f"Mend them, or leave them out: put `problems: {{{_skipping(refused)}}}` under train.data in "
            "job.yaml; what is sound is not read again.",
        )


def _skipping(refused: list[Fault]) -> str:
    """The settings that leave out what is refused now."""
    keys = {
        "broken" if fault in _OF_PICTURE else "no_caption" if fault in _OF_TEXT else "duplicate": "skip"
        for fault in refused
    }
    return ", ".join(f"{key}: {word}" for key, word in keys.items())


_DONE = {"keep": "kept", "skip": "skipped", "refuse": "refused"}


def _printable(name: str) -> str:
    """A name on one line: file names may hold newlines and worse."""
    return name if name.isprintable() else name.encode("unicode_escape", "backslashreplace").decode("ascii")
