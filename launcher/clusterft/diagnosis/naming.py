"""Whose words a log file holds, as far as its path tells: node, rank, attempt. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from clusterft.diagnosis.heard import Source

_RANK = re.compile(r"(?:^|[^a-z])(?:global[_-]?)?rank[_-]?(\d{1,6})(?!\d)")
_ATTEMPT = re.compile(r"attempt[_-](\d{1,4})")
_STREAMS = frozenset({"stdout", "stderr", "std", "out", "err", "log", "output", "combined"})
_PLAIN = re.compile(
    r"(?:^|[._-])(dmesg|kern|kernel|journal|syslog|messages|docker|inspect|container|launcher|train|training|run|"
    r"stdout|stderr|log|logs|out|err|events|output|rank[_-]?\d+)(?=$|[._-])"
)
_FOLDERS = re.compile(
    r"(logs?|events|stacks|attempt[_-]\d+|\d+|none_\w+|tmp|out|output|runs?|data|var|bundle\w*)$"
)


def source(path: str, year: int, root: str = "") -> Source:
    """Of a path; below `root`, folders are looked at too."""
    shown = PurePosixPath(path)
    inside = shown.relative_to(root) if root and shown.is_relative_to(root) else PurePosixPath(shown.name)
    stem = re.sub(r"(\.(log|txt|jsonl?|out|err|gz))+$", "", inside.name.lower())
    hit, attempt = _RANK.search(stem), None
    rank = int(hit[1]) if hit else None
    local = None
    folders = [part for part in inside.parts[:-1]]
    for folder in folders:
        if found := _ATTEMPT.fullmatch(folder):
            attempt = int(found[1])
    if stem in _STREAMS and folders and folders[-1].isdigit():
        local = int(folders[-1])  # torchrun's --log_dir has a folder for each of a node's ranks
    node = _node(inside, stem)
    if not node:
        node = next((one for one in reversed(folders) if not _FOLDERS.match(one.lower())), "")
    name = str(inside) if root else str(shown)
    return Source(name, node=node, rank=rank, local=local, attempt=attempt, year=year)


def _node(inside: PurePosixPath, stem: str) -> str:
    """What is left of a file's name without the words that every log has."""
    left = stem
    for _ in range(4):
        left = _PLAIN.sub("", left).strip("._- ")
    if not left or left.isdigit() or _RANK.search(left) or len(left) > 63 or not re.fullmatch(r"[\w.-]+", left):
        return ""
    begin = inside.name.lower().find(left)
    return inside.name[begin : begin + len(left)]
