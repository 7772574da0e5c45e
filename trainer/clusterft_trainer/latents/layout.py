"""Which file of a tree goes into which tar. Owns looking through the tree, stems, and the two layouts.

Refuses, in the layout by digits, a file that is not named by a number. Links are not followed: they are counted.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clusterft_trainer import kohya
from clusterft_trainer.errors import DataError
from clusterft_trainer.latents import tables, verify

TARS = 1000  # of the layout by digits
_NUMBER = re.compile(r"[0-9]+")


class File(NamedTuple):
    """One that is to be packed."""

    name: str  # relative
    size: int
    changed: int  # ns


@dataclass(frozen=True, slots=True)
class Tree:
    """The files below a folder."""

    files: tuple[File, ...]  # sorted
    links: int = 0  # not followed
    others: int = 0  # neither file nor folder
    aside: int = 0  # drafts, and what verify moved aside


def survey(root: Path) -> Tree:
    """All files below a folder; what is none is counted."""
    files: list[File] = []
    links = others = aside = 0
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                name = os.path.join(below, entry.name)
                if entry.is_symlink():
                    links += 1
                elif entry.is_dir():
                    waiting.append(name)
                elif not entry.is_file():
                    others += 1
                elif entry.name.startswith(tables.DRAFT) or entry.name.endswith(verify.ASIDE):
                    aside += 1
                else:
                    stat = entry.stat()
                    files.append(File(name, stat.st_size, stat.st_mtime_ns))
    return Tree(tuple(sorted(files)), links, others, aside)


def stem(name: str) -> str:
    """What files that belong together have in common, its folder included."""
    folder, _, own = name.rpartition("/")
    if own.endswith(kohya.TEXT_SUFFIX):
        own = own.removesuffix(kohya.TEXT_SUFFIX)
    else:
        known = kohya.parsed(own)
        own = known.stem if known else own
    # as webdataset has it, from the first dot on; but a name may begin with dots
    start = len(own) - len(own.lstrip("."))
    return f"{folder}/{own[:start]}{own[start:].split('.', 1)[0]}"


def by_number(files: Iterable[File], most: int) -> dict[str, tuple[File, ...]]:
    """At most so many files in a tar, in the order of their stems; names of tars to files."""
    found: dict[str, tuple[File, ...]] = {}
    waiting: list[File] = []
    for common, group in _groups(files).items():
        if len(group) > most:
            raise DataError(
                f"{len(group)} files belong to the stem {common}, more than the {most} of a tar.",
                "Raise --files: files of one stem stay together.",
            )
        if len(waiting) + len(group) > most:
            found[f"{len(found):06d}.tar"] = tuple(waiting)
            waiting = []
        waiting += group
    if waiting:
        found[f"{len(found):06d}.tar"] = tuple(waiting)
    return found


def by_digits(files: Iterable[File]) -> dict[str, tuple[File, ...]]:
    """A thousand tars: each stem ends in a number, whose rest by 1,000 names its tar."""
    found: dict[str, list[File]] = {f"{k:04d}.tar": [] for k in range(TARS)}
    for common, group in _groups(files).items():
        own = common.rpartition("/")[2]
        if not _NUMBER.fullmatch(own):
            raise DataError(
                f"{group[0].name} is not named by a number, by which the thousand tars are filled.",
                "Leave out --by-digits to fill tars in the order of names.",
            )
        found[f"{int(own[-3:]):04d}.tar"] += group
    return {name: tuple(group) for name, group in found.items() if group}


def _groups(files: Iterable[File]) -> dict[str, list[File]]:
    groups: dict[str, list[File]] = defaultdict(list)
    for one in files:
        groups[stem(one.name)].append(one)
    return {common: groups[common] for common in sorted(groups)}
