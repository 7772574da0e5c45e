"""A folder of pictures with text files: beside them, or in a folder laid out alike.

Owns the listing: names only, nothing is opened. Folders that are links are not walked into, so that there is no
loop and no way out of the folder; pictures that are links are judged by the worker.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import compress

from clusterft_trainer.config.sources import FolderSource
from clusterft_trainer.corpus import chunk, look, reach, remote
from clusterft_trainer.corpus.chunk import Chunk
from clusterft_trainer.corpus.faults import Fault, Report
from clusterft_trainer.corpus.picture import SUFFIXES
from clusterft_trainer.corpus.remote import Seen
from clusterft_trainer.errors import DataError


def chunks(source: FolderSource, number: int, report: Report) -> Iterator[Chunk]:
    """All pictures below the folder, sorted by name."""
    apart = source.captions is not None and source.captions != source.folder
    far = reach.is_url(source.folder)
    find: Callable[[str, Sequence[str]], Collection[str]] = stored if far else listed
    every = find(source.folder, (*SUFFIXES, *(() if apart else source.suffixes)))
    others = find(source.captions or "", source.suffixes) if apart else every
    pictures = _ending(every, _Endings(SUFFIXES))
    pictures.sort()
    names = _sound(pictures, number, report)
    texts = others if far else set(others if apart else _ending(others, _Endings(source.suffixes)))
    if not names:
        raise DataError(
            f"There is no picture in {source.folder} (looked for {', '.join(sorted(SUFFIXES))}).",
            "Put pictures there, each with a caption in a text file of the same stem.",
        )
    stems = [name[: name.rfind(".")] for name in names]
    shared = _shared(names, stems)
    first, rest = source.suffixes[0], source.suffixes[1:]
    for start in range(0, len(names), chunk.SIZE):
        part = tuple(names[start : start + chunk.SIZE])
        wanted = tuple(
            text if (text := stem + first) in texts else _text(stem, texts, rest)
            for stem in stems[start : start + chunk.SIZE]
        )
        yield Chunk(
            source=number,
            root=source.folder,
            names=part,
            text_files=wanted,
            work=look.files if not far else look.stored,
            extra=(_of(every, part), _of(others, wanted)) if far else (),
            text_root=source.captions or source.folder,
            ordered=True,
            total=len(names),
            faults=tuple((k, int(Fault.SHARED_STEM)) for k, name in enumerate(part) if name in shared),
        )


def stored(root: str, suffixes: Sequence[str]) -> dict[str, Seen]:
    """Names of the objects below a prefix that end so, sorted; size and stamp come with them at no cost."""
    wanted = frozenset(suffix.lower() for suffix in suffixes)
    start = len(reach.path_of(root)) + 1
    found = {e["name"][start:]: (e["size"] or 0, remote.stamp_of(e)) for e in reach.below(root)}
    return {name: found[name] for name in sorted(found) if _suffix(name) in wanted}


def _of(found: Collection[str], names: Sequence[str]) -> dict[str, Seen]:
    assert isinstance(found, dict)
    return {name: found[name] for name in names if name}


def listed(root: str, suffixes: Sequence[str]) -> list[str]:
    """Names of files below a folder that end so; files without a known ending cost a look at most."""
    wanted = _Endings(suffixes)
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            names = os.listdir(os.path.join(root, below))
        except OSError as error:
            raise DataError(
                f"The folder {os.path.join(root, below)} cannot be listed on this node ({error.strerror}).",
                "Give a folder that every node sees under the same path: set data.sources.",
            ) from error
        start = f"{below}/" if below else ""
        here = _ending(names, wanted)
        if len(here) < len(names):
            others = [start + name for name in names if not wanted[name[name.rfind(".") :]]]
            waiting += [name for name in others if _walkable(root, name)]
        found += [start + name for name in here] if start else here
    return found


def _ending(names: Collection[str], wanted: _Endings) -> list[str]:
    """Those that end as is wanted."""
    return [*compress(names, map(wanted.__getitem__, [name[name.rfind(".") :] for name in names]))]


class _Endings(dict[str, bool]):
    """Whether an ending is one of those wanted, in letters of any case; asked a million times of a few."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = frozenset(suffix.lower() for suffix in wanted)

    def __missing__(self, ending: str) -> bool:
        found = ending.lower() in self._wanted
        if len(self) < _MOST_ENDINGS:
            self[ending] = found
        return found


_MOST_ENDINGS = 1000  # names without a dot are endings, too


def _walkable(root: str, name: str) -> bool:
    # asked of names without a known ending alone: asking for each of a million would take its time
    path = os.path.join(root, name)
    return os.path.isdir(path) and not os.path.islink(path)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def _text(stem: str, texts: Collection[str], suffixes: Sequence[str]) -> str:
    """The first text file of a stem, or nothing."""
    return next((stem + suffix for suffix in suffixes if stem + suffix in texts), "")


def _sound(names: list[str], number: int, report: Report) -> list[str]:
    """Names that can be written down; the others are reported."""
    try:
        "\n".join(names).encode()
    except UnicodeEncodeError:
        kept = []
        for name in names:
            if name.isprintable() or not any("\udc80" <= letter <= "\udcff" for letter in name):
                kept.append(name)
            else:
                report.add(Fault.NAME, number, os.fsencode(name).decode("latin-1"))
        return kept
    return names


def _shared(names: Sequence[str], stems: Sequence[str]) -> set[str]:
    """All but the first of the pictures that share a stem."""
    if len(set(stems)) == len(stems):
        return set()
    several = {stem for stem, count in Counter(stems).items() if count > 1}
    shared, met = set(), set()
    for name, stem in zip(names, stems, strict=True):
        if stem in several:
            if stem in met:
                shared.add(name)
            met.add(stem)
    return shared
