"""Rules for where the pictures come from: metadata files, folders, and how often an epoch shows them.

Owns what kohya reads out of a data set file and out of the names of folders. Refuses nothing: what only the user
can know is left to be filled in, and pictures that kohya would leave out are left out aloud.
"""

from __future__ import annotations

import re
from typing import Any

from clusterft_trainer.migrate.case import Case, path
from clusterft_trainer.migrate.found import Flag
from clusterft_trainer.migrate.sheet import Sheet
from clusterft_trainer.migrate.subsets import Subset, subsets

_SETTING = "train.data.sources"
_NUMBERED = re.compile(r"([0-9]+)(?:_.*)?", re.DOTALL)
_EXTENSIONS = ("caption_extension", "caption_extention")  # kohya takes both
_PLACES = ("image_dir", "metadata_file")
_BY = ("train_data_dir", "in_json", "dataset_repeats", *_PLACES, *_EXTENSIONS)


def sources(sheet: Sheet, case: Case) -> None:
    """One source for each folder or metadata file."""
    parts = subsets(sheet)
    placed = any(part.flag(name) for part in parts for name in _PLACES)
    found = _of_file(sheet, parts) if placed else _of_command(sheet, case)
    if found:
        sheet.put(_SETTING, found, *_BY)
    else:
        sheet.blank(_SETTING, [{"folder": "/data/FILL-IN"}], "a folder of pictures, each with a .txt")


# A data set file


def _of_file(sheet: Sheet, parts: list[Subset]) -> list[object]:
    for name in ("in_json", "train_data_dir"):
        sheet.leave(name, "overruled", "kohya ignores it beside a data set file")
    for name in _BY:
        sheet.every(name)
    heeded: list[Flag] = []
    found: list[dict[str, object]] = []
    listed = True
    for part in parts:
        source = _of_subset(sheet, part, found, heeded)
        if source is not None:
            listed = listed and "kohya" in source
            found.append(source)
    for name in ("dataset_repeats", *_PLACES):
        sheet.leave_others(name, heeded, "overruled", "no subset is left for which it counts")
    for name in _EXTENSIONS:
        if listed:
            sheet.leave_others(name, heeded, "not needed", "captions come from the metadata file")
        sheet.leave_others(name, heeded, "overruled", "no subset is left for which it counts")
    return list(found)


def _of_subset(
    sheet: Sheet, part: Subset, before: list[dict[str, object]], heeded: list[Flag]
) -> dict[str, object] | None:
    """What one subset names; None if kohya leaves it out, or nothing here can take it."""
    places = [flag for flag in map(part.flag, _PLACES) if flag is not None]
    source = _located(sheet, places)
    if not source:
        return None
    if _regular(part):
        for flag in part.own(_BY):
            sheet.leave_flag(flag, "not possible", "prior preservation is not built: its pictures are left out")
        return None
    if any(_place(source) == _place(other) for other in before):
        for flag in part.own(_BY):
            sheet.leave_flag(flag, "overruled", "these pictures are in a subset before, which counts")
        return None
    heeded += places
    repeats = part.flag("dataset_repeats")
    number = None if repeats is None else sheet.of(repeats, int)
    heeded += [repeats] if repeats is not None else []
    if number is not None and number < 1:
        sheet.note(f"data.sources: {places[0].text} is left out, as kohya does with num_repeats below 1")
        return None
    ending = None if "kohya" in source else next((f for f in map(part.flag, _EXTENSIONS) if f is not None), None)
    if ending is not None:
        heeded.append(ending)
        source |= _suffixes(sheet.of(ending, str))
    return source | ({"repeats": number} if number is not None and number > 1 else {})


def _located(sheet: Sheet, flags: list[Flag]) -> dict[str, object]:
    texts = {flag.name: sheet.of(flag, str) for flag in flags}
    return _source(sheet, texts.get("metadata_file"), texts.get("image_dir"))


def _source(sheet: Sheet, listed: str | None, folder: str | None) -> dict[str, object]:
    named = {"kohya": listed, "folder": folder}
    return {key: path(sheet, text, "data.sources") for key, text in named.items() if text}


def _place(source: dict[str, object]) -> tuple[object, object]:
    return source.get("kohya"), source.get("folder")


def _regular(part: Subset) -> bool:
    return any(str(flag.value).lower() in ("true", "1", "yes", "on") for flag in part.own(("is_reg",)))


def _suffixes(ending: str | None) -> dict[str, list[str]]:
    """What a folder is told of its text files; without it .txt counts before .caption."""
    if not ending or ending.lstrip(".") == "txt":
        return {}
    return {"suffixes": [f".{ending.lstrip('.')}"]}


# A command without one


def _of_command(sheet: Sheet, case: Case) -> list[object]:
    for name in _PLACES:
        sheet.leave(name, "not needed", "kohya heeds it in a subset of a data set file only")
    single, listed = sheet.text("train_data_dir"), sheet.text("in_json")
    if listed:
        for name in _EXTENSIONS:
            sheet.leave(name, "not needed", "captions come from the metadata file")
        return _repeated(sheet, _source(sheet, listed, single))
    given = [sheet.text(name) for name in _EXTENSIONS]
    more = _suffixes(next((text for text in given if text), None))
    if single is None:
        for name in _EXTENSIONS if more else ():
            sheet.leave(name, "not possible", f"write suffixes: [{more['suffixes'][0]}] beside the folder")
        sheet.leave("dataset_repeats", "not possible", "write repeats: beside the source")
        return []
    sheet.leave("dataset_repeats", "overruled", "kohya goes by the numbers in the names of folders: 10_name")
    folders = _numbered(sheet, case, single) or [{"folder": path(sheet, single, "data.sources")}]
    return [folder | more for folder in folders]


def _repeated(sheet: Sheet, source: dict[str, Any]) -> list[object]:
    repeats = sheet.whole("dataset_repeats")
    if repeats is not None and repeats < 1:
        sheet.leave("dataset_repeats", "unreadable", "is below 1: kohya would train on nothing")
        repeats = None
    return [source | ({"repeats": repeats} if repeats is not None and repeats > 1 else {})]


def _numbered(sheet: Sheet, case: Case, single: str) -> list[dict[str, object]]:
    """The folders that kohya reads in this one, with the repeats that are in their names: 10_name."""
    names = case.here.folders(single)
    fallen = "the name does not stand in for a caption that is missing"
    if names is None:
        sheet.note(
            f"data: {single} is not at hand here: all folders in it are searched, and each picture is shown once; "
            "for a folder 10_name write a source of its own, {folder: " + f"{single.rstrip('/')}/10_name, "
            f"repeats: 10}}; {fallen}"
        )
        return []
    counted = [(name, int(found[1])) for name in names if (found := _NUMBERED.fullmatch(name))]
    taken = [(name, number) for name, number in counted if number > 0]
    if not taken:
        sheet.note(f"data: {single} has no folder like 10_name, so kohya reads nothing; here it is searched whole")
        return []
    others = sorted({*names} - {name for name, _ in taken})
    if others:
        sheet.note(f"data: {single}: kohya reads folders like 10_name only; left out: {', '.join(others)}")
    sheet.note(f"data: {single}: {fallen}")
    return [
        {"folder": path(sheet, f"{single.rstrip('/')}/{name}", "data.sources")}
        | ({"repeats": number} if number > 1 else {})
        for name, number in taken
    ]
