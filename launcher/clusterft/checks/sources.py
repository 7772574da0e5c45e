"""Checks of what a job reads: pictures, captions, tables, the model. Pure.

Owns which paths of a job are looked at, and what is said of one that is missing. Blocks only what every run of the
job would fail of: a picture that the settings let it leave out is none of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from shlex import quote

from clusterft.checks.survey import Survey
from clusterft.facts.sources import Asked, Named, State, Table
from clusterft.findings import Finding
from clusterft.spec import JobSpec
from clusterft_trainer.config import (
    PICTURES,
    TABLES,
    FolderSource,
    KohyaSource,
    Source,
    TableSource,
    TaggedSource,
    TarSource,
)

_ID = "data.missing"
_SHOWN = 3
_READ = ("csv", "jsonl")  # tables whose beginning a person could read, too


def asked(job: JobSpec) -> tuple[Asked, ...]:
    """The paths on the nodes that a job of our trainer reads."""
    train = job.train
    if train is None:
        return ()
    paths = {name: getattr(train, name) for name in ("model", "vae", "tokenizers")}
    found = [
        Asked(("train", name), "any", path)
        for name, path in paths.items()
        if path is not None and not path.startswith("builtin:")
    ]
    for number, source in enumerate(train.data.sources):
        found += _of_source(source, ("train", "data", "sources", number))
    return tuple(one for one in found if "://" not in one.path)


def tables(job: JobSpec) -> tuple[Table, ...]:
    """The single tables on the nodes whose beginning tells of files."""
    sources = enumerate(job.train.data.sources) if job.train else ()
    return tuple(
        Table(("train", "data", "sources", number), one.table, one.columns.file, one.folder)
        for number, one in sources
        if isinstance(one, TableSource)
        and one.table.rpartition(".")[2] in _READ
        and not any(sign in one.table for sign in ("://", *"*?["))
        and "://" not in (one.folder or "")
    )


def found(job: JobSpec, survey: Survey, seen: Mapping[str, Sequence[State]]) -> Iterator[Finding]:
    """data.missing, on every node that has answered; `seen`: of each the states of what was asked."""
    for number, one in enumerate(asked(job)):
        for name in survey.facts:
            state = seen[name][number] if name in seen else "closed"
            if state in ("absent", "empty", "no-folder"):
                yield _gone(job, name, one, state)


def unnamed(job: JobSpec, named: Named) -> Iterator[Finding]:
    """data.missing, of the files that a table names."""
    train, count = job.train, len(named.files)
    skips = train is not None and train.data.problems.broken == "skip"
    for node, missing in named.missing.items():
        if not missing or (skips and len(missing) < count):
            continue
        table = named.table
        first = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        where = (
            "folder of that source"
            if table.folder
            else "folder: for that source, if they do not lie beside the table"
        )
        line = job.where("train", "data", "problems") or "job.yaml"
        leave = f"or leave them out, at {line} under data:   problems: {{broken: skip}}"
        yield Finding(
            id=_ID,
            status="warn" if skips else "fail",
            nodes=(node,),
            summary=f"{len(missing)} of the first {count} files that {table.path} names are not there",
            evidence=f"{_line(job, table.steps)}\nmissing: {first}{more}",
            fix=(f"put them there, or set {where}", *(() if skips else (leave,))),
            blast_radius="job.yaml, or the pictures",
        )


def _of_source(source: Source, at: tuple[str | int, ...]) -> Iterator[Asked]:
    match source:
        case FolderSource():
            yield Asked((*at, "folder"), "folder", source.folder, tuple(sorted(PICTURES)))
            if source.captions is not None:
                yield Asked((*at, "captions"), "folder", source.captions)
        case TaggedSource():
            yield Asked((*at, "tagged"), "folder", f"{source.tagged.rstrip('/')}/metadata", (".json",))
        case KohyaSource():
            yield Asked((*at, "kohya"), "any", source.kohya)
            for name, path in (("folder", source.folder), ("npz", source.npz)):
                if path is not None:
                    yield Asked((*at, name), "folder", path)
        case TableSource():
            yield Asked((*at, "table"), "files", source.table, TABLES)
            if source.folder is not None:
                yield Asked((*at, "folder"), "folder", source.folder)
        case TarSource():
            yield Asked((*at, "tars"), "files", source.tars, (".tar",))


def _gone(job: JobSpec, node: str, one: Asked, state: State) -> Finding:
    what = {
        "absent": f"{one.path}, which the job reads, is not there",
        "empty": f"there is no file in {one.path} that the job could read",
        "no-folder": f"{one.path} is no folder",
    }[state]
    ends = f"\nlooked for: {' '.join(one.ends)}" if state == "empty" else ""
    own = not PurePosixPath(one.path).is_relative_to(job.shared)
    push = (f"clusterft push {quote(one.path)}   where this machine has all of it",)
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=what,
        evidence=f"{_line(job, one.steps)}{ends}",
        fix=(*(push if own and state == "absent" else ()), "put it there, or name another path at that line"),
        blast_radius="job.yaml, or that path",
    )


def _line(job: JobSpec, steps: tuple[str | int, ...]) -> str:
    """The setting, and where it stands."""
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    return f"{job.where(*steps)} {dotted}".strip()
