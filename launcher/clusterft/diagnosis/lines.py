"""One line of a log, whoever wrote it: its text, and what its prefixes tell of node, rank and time. Pure.

Knows torchrun's and torch's own prefixes, glog, DeepSpeed, accelerate, pdsh, NCCL, `docker logs -t`, ISO, syslog
and dmesg. A time without a zone is the writer's own; a time without a year gets that of its file. Survives
whatever bytes a log holds.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass

_LONGEST = 4_000  # characters of a line that are looked at: its beginning, and its end
_END = 1_000
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_CLOCK = r"(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"
_ISO = re.compile(rf"[\[(]?(\d{{4}})[-/](\d\d)[-/](\d\d)[T _]{_CLOCK}(Z|[+-]\d\d:?\d\d)?[\])]?:? ?(?:- )?")
_AMERICAN = re.compile(rf"(\d\d)/(\d\d)/(\d{{4}}) {_CLOCK}(?: -)? ?")
_GLOG = re.compile(rf"\[?([IWEFVD])(\d\d)(\d\d) {_CLOCK} +(?:\d+ +)?(?=[\w/.-]+:\d+\])")
_SYSLOG = re.compile(rf"([A-Z][a-z][a-z]) +(\d\d?) {_CLOCK} ")
_CTIME = re.compile(rf"\[[A-Z][a-z][a-z] ([A-Z][a-z][a-z]) +(\d\d?) {_CLOCK} (\d{{4}})\] ?")
_UPTIME = re.compile(r"\[ *(\d{1,9})\.(\d{6})\](?:\[[ TC]*\d+\])? ?")
_UNIX = re.compile(rf"(\d{{10}})\.(\d{{3,9}}) (?={_NAME} )")
_RANK = re.compile(r"\[rank ?(\d{1,6})\]:? ?|\[Rank (\d{1,6})\]:? ")
_DEFAULT = re.compile(r"\[[a-z]{1,20}(\d{1,5})\]:")
_KERNEL = re.compile(rf"({_NAME}) kernel: ")
_PDSH = re.compile(rf"({_NAME}): (?=\[|\d{{4}}-|Traceback|  File|    |\w+(?:\.\w+)*(?:Error|Exception)\b)")
_NCCL = re.compile(rf"({_NAME}):\d+:\d+ \[(\d+|-1)\] (?=NCCL|[a-z_/]+\.cc|[a-z_]+:)")
_OURS = re.compile(rf"({_NAME}) +(?:rank (\d{{1,6}})|(launcher)|) *\| ")
_SAYS_RANK = re.compile(r"\brank[ :=]{1,2}(\d{1,6})\b(?=[]: ])")


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its prefixes; what they did not tell is None or empty."""

    text: str
    node: str = ""
    rank: int | None = None
    local: int | None = None  # the rank among those of its node
    at: float | None = None  # unix seconds, as if a time without a zone were UTC
    uptime: float | None = None  # seconds since the kernel started, where that is all there is
    kernel: bool = False


def clean(raw: bytes) -> str:
    """Bytes of one line as text: without colours and control characters, and of a bounded length."""
    if len(raw) > _LONGEST * 2:
        raw = raw[: _LONGEST - _END - 5] + b" ... " + raw[-_END:].rstrip(b"\r\n")
    return tidy(raw.rstrip(b"\r\n").rpartition(b"\r")[2].decode("utf-8", errors="backslashreplace"))


def tidy(text: str) -> str:
    """Text without colours and control characters, and of a bounded length."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return _CONTROL.sub("", text)[:_LONGEST]


def peel(text: str, year: int) -> Line:
    """Take the prefixes off, one after the other; the outermost time counts: its writer saw the line last."""
    found: dict[str, object] = {}
    rest = text
    for _ in range(6):
        shorter = _one(rest, year, found)
        if shorter is None:
            break
        rest = shorter
    if "rank" not in found and (hit := _SAYS_RANK.search(rest[:60])):
        found["rank"] = int(hit[1])
    return Line(rest, **found)  # type: ignore[arg-type]


def _one(text: str, year: int, found: dict[str, object]) -> str | None:
    """The text behind its first prefix; None where it has none that is known."""
    first = text[:1]
    if not first or first in " \t":
        return None
    return _time(text, year, found) or _who(text, found)


def _time(text: str, year: int, found: dict[str, object]) -> str | None:
    if hit := _ISO.match(text):
        _note(found, _seconds(*_ints(hit, 1, 6), hit[7]), hit[8])
    elif hit := _AMERICAN.match(text):
        month, day, of, *clock = _ints(hit, 1, 6)
        _note(found, _seconds(of, month, day, *clock, hit[7]))
    elif hit := _GLOG.match(text):
        _note(found, _seconds(year, *_ints(hit, 2, 6), hit[7]))
    elif hit := _CTIME.match(text):
        day, *clock = _ints(hit, 2, 5)
        _note(found, _seconds(int(hit[7]), _MONTHS.get(hit[1], 0), day, *clock, hit[6]))
        found["kernel"] = True
    elif hit := _SYSLOG.match(text):
        day, *clock = _ints(hit, 2, 5)
        _note(found, _seconds(year, _MONTHS.get(hit[1], 0), day, *clock, hit[6]))
    elif hit := _UNIX.match(text):
        _note(found, float(f"{hit[1]}.{hit[2]}"), "Z")
    elif hit := _UPTIME.match(text):
        found.setdefault("uptime", float(f"{hit[1]}.{hit[2]}"))
        found["kernel"] = True
    else:
        return None
    return text[hit.end() :]


def _who(text: str, found: dict[str, object]) -> str | None:
    if hit := _RANK.match(text):
        found.setdefault("rank", int(hit[1] or hit[2]))
    elif hit := _DEFAULT.match(text):
        found.setdefault("local", int(hit[1]))
    elif hit := _KERNEL.match(text):
        found["node"], found["kernel"] = hit[1], True
    elif hit := _OURS.match(text):
        found.setdefault("node", hit[1])
        if hit[2]:
            found["rank"] = int(hit[2])
    elif hit := _NCCL.match(text):
        found.setdefault("node", hit[1])
    elif hit := _PDSH.match(text):
        if hit[1].endswith(("Error", "Exception", "Warning")):
            return None
        found.setdefault("node", hit[1])
    else:
        return None
    return text[hit.end() :]


def _note(found: dict[str, object], at: float | None, zone: str | None = None) -> None:
    if at is None or "at" in found:
        return
    if zone and zone != "Z":
        sign = -1 if zone[0] == "-" else 1
        digits = zone[1:].replace(":", "")
        at -= sign * (int(digits[:2]) * 3600 + int(digits[2:]) * 60)
    found["at"] = at


def _ints(hit: re.Match[str], first: int, last: int) -> list[int]:
    return [int(hit[group]) for group in range(first, last + 1)]


def _seconds(*parts: int | str | None) -> float | None:
    """Year, month, day, hour, minute, second, digits of its fraction."""
    year, month, day, hour, minute, second, fraction = parts
    try:
        whole = calendar.timegm(
            (int(year or 0), int(month or 0), int(day or 0), int(hour or 0), int(minute or 0), int(second or 0))
        )
        valid = 1 <= int(month or 0) <= 12 and 1 <= int(day or 0) <= 31 and int(hour or 0) < 24
    except (ValueError, OverflowError):
        return None
    return whole + (float(f"0.{fraction}") if fraction else 0.0) if valid else None
