"""What a job reads, as a node finds it: whether it is there at all, and the files that its tables name. Pure.

A look costs next to nothing: a walk ends at the first file that would do. What the SSH user may not look into is
told as closed, since a run may be another user's. Refuses to call anything missing that was not seen to be so.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, join
from typing import Literal

Kind = Literal["any", "folder", "files"]  # something; a folder; at least one file with one of some endings
State = Literal["there", "absent", "empty", "no-folder", "closed", "late"]
SECONDS = 20.0  # for all that one node is asked at once
_WALKING = 6  # seconds of one walk
HEAD = 64 * 1024  # bytes of a table
NAMED = 200  # files of a table that are looked for
# Triples of kind, path and endings; a word each. What a walk prints begins with /, so it is never its last word.
_SCRIPT = """
set -f; most=$1; shift
closed() {
  q=$1; while [ ! -e "$q" ]; do
    [ ! -L "$q" ] && [ "$q" != / ] || return 0
    q=$(dirname -- "$q")
  done
  [ -d "$q" ] && { [ ! -x "$q" ] || [ ! -r "$q" ]; }
}
matched() ( IFS=; set +f; for f in $1; do [ -e "$f" ] && exit 0; done; exit 1 )
pattern() {
  matched "$1" && { echo there; return; }
  closed "$(dirname -- "${1%%[*?[]*}x")" && echo closed || echo empty
}
walk() {
  p=$1; IFS=,; set -- $2; unset IFS
  for e; do set -- "$@" -o -iname "*$e"; shift; done; shift
  seen=$({ timeout -k 1 "$most" find "$p/" ! -type d '(' "$@" ')' -print 2>/dev/null; echo "end $?"; } | head -n 1)
  case $seen in 'end 0') echo empty;; 'end 124'|'end 137') echo late;; end*) echo closed;; *) echo there;; esac
}
state() {
  if [ ! -e "$2" ]; then
    case $1:$2 in
      files:*'**'*) echo late;;
      files:*[*?[]*) pattern "$2";;
      *) closed "$2" && echo closed || echo absent;;
    esac
  elif [ "$1" = any ] || { [ "$1" = files ] && [ ! -d "$2" ]; }; then echo there
  elif [ ! -d "$2" ]; then echo no-folder
  elif [ ! -r "$2" ] || [ ! -x "$2" ]; then echo closed
  elif [ -z "$3" ]; then echo there
  else walk "$2" "$3"
  fi
}
while [ $# -gt 0 ]; do state "$1" "$2" "$3"; shift 3; done
"""
_MISSING = """
i=0
for f; do
  if [ ! -e "$f" ] && [ ! -L "$f" ]; then
    q=$(dirname -- "$f"); while [ ! -e "$q" ] && [ "$q" != / ]; do q=$(dirname -- "$q"); done
    if [ -x "$q" ]; then echo "missing $i"; fi
  fi
  i=$((i + 1))
done
echo "of $i"
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One path that a job reads."""

    steps: tuple[str | int, ...]  # of the setting that names it
    kind: Kind
    path: str
    ends: tuple[str, ...] = ()  # of the files that would do


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows name files, as CSV or JSON lines."""

    steps: tuple[str | int, ...]
    path: str
    column: str
    folder: str | None  # where its files lie; beside it if not given


@dataclass(frozen=True, slots=True)
class Named:
    """The first files that a table names, and which of them are not on which node."""

    table: Table
    files: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]  # by node


def argv(asked: Sequence[Asked]) -> tuple[str, ...]:
    """The command for one node."""
    words = (word for one in asked for word in (one.kind, one.path, ",".join(one.ends)))
    return ("sh", "-c", _SCRIPT, "sh", str(_WALKING), *words)


def parse(text: str, asked: Sequence[Asked]) -> tuple[State, ...] | None:
    """What it printed, a word for each path; None where that is not all of it."""
    words = re.findall(r"^(there|absent|empty|no-folder|closed|late)$", text, re.MULTILINE)
    return tuple(words) if len(words) == len(asked) else None


def head(path: str) -> tuple[str, ...]:
    """The command that reads the beginning of a table."""
    return ("head", "-c", str(HEAD), "--", path)


def named(table: Table, text: str) -> tuple[str, ...]:
    """The files of its first rows, as the trainer will look for them."""
    whole = text if len(text.encode()) < HEAD else text[: text.rfind("\n") + 1]
    folder = table.folder or dirname(table.path)
    rows = _lines(whole, table.column) if table.path.endswith(".jsonl") else _cells(whole, table.column)
    found = [join(folder, raw.replace("\\", "/")) for raw in rows if raw.strip() and "\0" not in raw]
    return tuple(found[:NAMED])


def missing_argv(files: Sequence[str]) -> tuple[str, ...]:
    """The command that looks for these files."""
    return ("sh", "-c", _MISSING, "sh", *files)


def missing(text: str, files: Sequence[str]) -> tuple[str, ...] | None:
    """Those that are not there; None where the answer is not whole."""
    if not re.search(rf"^of {len(files)}$", text, re.MULTILINE):
        return None
    numbers = [int(one) for one in re.findall(r"^missing (\d{1,6})$", text, re.MULTILINE)]
    return tuple(files[one] for one in numbers if one < len(files))


def _cells(text: str, column: str) -> Iterator[str]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        for row in reader:
            value = row.get(column)
            if isinstance(value, str):
                yield value
    except csv.Error:
        return  # the trainer tells of a table that it cannot read


def _lines(text: str, column: str) -> Iterator[str]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        value = row.get(column) if isinstance(row, dict) else None
        if isinstance(value, str):
            yield value
