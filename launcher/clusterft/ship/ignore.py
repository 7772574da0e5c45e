"""What of a folder is not meant: patterns as .gitignore has them, and which of them decides about a path. Pure.

Owns the syntax (`#`, `!`, a leading, middle or trailing `/`, `*`, `?`, `[...]`, `**`, `\\`) and the order: the
last pattern that fits decides, and nothing below a folder that is left out can come back. Reads no file: `code`
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# What no run needs, whatever the folder says; a `!` pattern brings it back.
USUAL = """\
.git
.hg
.svn
__pycache__/
*.pyc
.venv/
node_modules/
.mypy_cache/
.pytest_cache/
.ruff_cache/
.ipynb_checkpoints/
.DS_Store
"""

_NOTHING = "(?!)"


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern; `lead` or `outer` is where its file lies: paths are judged as seen from there."""

    pattern: str
    source: str  # FILE:LINE, for people; empty for the usual ones
    matches: re.Pattern[str]
    keeps: bool  # began with `!`
    folders: bool  # ended with `/`
    lead: str = ""  # "src/": its file lies below the folder, in src
    outer: str = ""  # "src/": its file lies above, and the folder is its src

    def fits(self, path: str, folder: bool) -> bool:
        """Whether the pattern is about this path."""
        if self.folders and not folder or not path.startswith(self.lead):
            return False
        return self.matches.fullmatch(self.outer + path[len(self.lead) :]) is not None


def rules(text: str, source: str = "", *, lead: str = "", outer: str = "") -> tuple[Rule, ...]:
    """The patterns of one file, in order."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        pattern = _stripped(line)
        if not pattern or pattern.startswith("#"):
            continue
        keeps = pattern.startswith("!")
        bare = pattern.removeprefix("!").rstrip("/")
        if bare:
            where = f"{source}:{number}" if source else ""
            folders = pattern.endswith("/")
            found.append(Rule(pattern, where, _compiled(bare), keeps, folders, lead, outer))
    return tuple(found)


def decides(all_rules: Iterable[Rule], path: str, folder: bool) -> Rule | None:
    """The rule by which a path is left out; None when it is kept. `path` has no leading slash."""
    last = None
    for rule in all_rules:
        if rule.fits(path, folder):
            last = rule
    return None if last is None or last.keeps else last


def _stripped(line: str) -> str:
    """Without the blanks at its end, but for one that a backslash keeps."""
    bare = line.rstrip(" \t\r")
    if bare.endswith("\\") and len(bare) < len(line):
        return bare + " "
    return bare


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern without `!` and its last slash, for paths as seen from its file."""
    anchored = "/" in pattern
    body = _translated(pattern.removeprefix("/"))
    return re.compile(body if anchored else f"(?:.*/)?{body}", re.DOTALL)


def _translated(pattern: str) -> str:
    out, at = [], 0
    while at < len(pattern):
        piece, at = _piece(pattern, at)
        out.append(piece)
    return "".join(out)


def _piece(pattern: str, at: int) -> tuple[str, int]:
    """(regular expression, where the next piece begins) of what begins here."""
    begins = at == 0 or pattern[at - 1] == "/"
    if begins and pattern.startswith("**/", at):
        return "(?:.*/)?", at + 3
    if begins and pattern[at:] == "**":
        return ".+", at + 2
    char = pattern[at]
    if char == "*":
        end = at
        while pattern[end : end + 1] == "*":
            end += 1
        return "[^/]*", end
    if char == "?":
        return "[^/]", at + 1
    if char == "[":
        return _class(pattern, at)
    if char == "\\" and at + 1 < len(pattern):
        return re.escape(pattern[at + 1]), at + 2
    return re.escape(char), at + 1


def _class(pattern: str, at: int) -> tuple[str, int]:
    """`[abc]`, `[!a-z]`; one that nothing closes fits nothing, as in git."""
    start = at + 1
    negated = pattern[start : start + 1] in ("!", "^")
    start += negated
    end = pattern.find("]", start + 1)
    if end < 0:
        return _NOTHING, len(pattern)
    inside = "".join("\\" + char if char in "\\[]^&~|" else char for char in pattern[start:end])
    try:
        re.compile(f"[{inside}]")
    except re.error:  # [z-a]: nothing is between these
        return _NOTHING, end + 1
    return (f"[^/{inside}]" if negated else f"(?!/)[{inside}]"), end + 1
