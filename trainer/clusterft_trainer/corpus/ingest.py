"""From sources to an index: list, look, join with what is known, decide, publish.

Owns the course of one ingest and its key. Each picture's bytes are read once; what an earlier ingest knows and the
disk says is unchanged is not opened. Every chunk is in the journal as soon as it is looked at, so a kill costs
what was under way. Refuses what the settings do not allow, after all is looked at and the report is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterft_trainer.config.data import Problems
from clusterft_trainer.config.sources import Source, locations
from clusterft_trainer.corpus import drafts, look, sources
from clusterft_trainer.corpus.chunk import Chunk, Piece
from clusterft_trainer.corpus.columns import SAME, Columns, Job
from clusterft_trainer.corpus.crew import Crew
from clusterft_trainer.corpus.faults import Report
from clusterft_trainer.errors import FULL, DataError, RunError, storing

if TYPE_CHECKING:
    from clusterft_trainer.corpus.index import Index
    from clusterft_trainer.corpus.known import Journal, Known


@dataclass(frozen=True, slots=True)
class Progress:
    """How far ingest is."""

    source: int
    done: int  # pictures, over all sources
    total: int | None  # of this source, where its listing tells
    read: int  # bytes
    seconds: float
    publishing: bool = False


def index_key(given: Sequence[Source], problems: Problems, *, npz: bool = True) -> str:
    """What the index's folder is called: settings of ingest, nothing of the pictures.

    Its first part is that of the sources alone: indexes that share it lend each other what they know.
    """
    without_repeats = [source.model_dump(mode="json", exclude={"repeats"}) for source in given]
    rules = problems.model_dump(mode="json") | ({} if npz else {"npz": False})
    return f"{_short(without_repeats)}-{_short(rules)}"


def _short(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def ingest(
    given: Sequence[Source],
    problems: Problems,
    out: Path,
    *,
    processes: int,
    say: Callable[[Progress], None],
    npz: bool = True,
) -> Index:
    """Index all pictures of these sources in the folder `out`, or say what is wrong with them."""
    report, began = Report(), time.monotonic()
    remote = any("://" in place for source in given for place in locations(source).values())
    with storing("The index", out):
        out.mkdir(parents=True, exist_ok=True)
    drafts.clear(out.parent)
    earlier = sorted(out.glob("journal-*"))
    with ExitStack() as held:
        with Crew(processes, fresh=remote) as crew:
            known = _recalled(out)
            looked = _looked(crew, sources.chunks(given, report, crew, npz=npz), known, 2 * processes)
            with _reading():
                pieces = list(_kept(looked, _opener(out, held), known, say, began))
        from clusterft_trainer.corpus import final

        index = final.publish(out, pieces, known, problems, report, _described(given))
    from clusterft_trainer.corpus.known import forget

    forget([*earlier, *{piece.journal[0] for piece in pieces if piece.journal}])
    return index


@contextmanager
def _reading() -> Iterator[None]:
    """A source that is not there, or cannot be read, in words that tell which."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{error.filename or error} is not there on this node.",
            "Give what every node sees under the same path: set data.sources.",
        ) from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RunError(
            "storage",
            f"A source could not be read: {error.filename or ''} {error.strerror or error}.",
            "Check that storage, then start again: what was read is kept.",
        ) from error


def _opener(out: Path, held: ExitStack) -> Callable[[], Journal]:
    """Opens the journal when the first row is there for it; it stays open until the index has been published."""

    @cache
    def opened() -> Journal:
        from clusterft_trainer.corpus.known import Journal

        journal = Journal(out)
        held.callback(journal.close)
        return journal

    return opened


def _recalled(out: Path) -> Known | None:
    """What earlier ingests of the same sources know."""
    folders = [f for f in _lenders(out) if (f / "index.json").is_file() or any(f.glob("journal-*"))]
    if not folders:
        return None
    from clusterft_trainer.corpus.known import Known

    return Known.of(folders, out)


def _lenders(out: Path) -> list[Path]:
    """Folders of the same sources; this one's own word counts last."""
    beside = sorted(p for p in out.parent.glob(f"{out.name.partition('-')[0]}-*") if p != out and p.is_dir())
    return [*beside, out]


def _described(given: Sequence[Source]) -> list[dict[str, Any]]:
    return [source.model_dump(mode="json", exclude_defaults=True) for source in given]


def _looked(
    crew: Crew, chunks: Iterator[Chunk], known: Known | None, ahead: int
) -> Iterator[tuple[tuple[Chunk, Any], Columns]]:
    """Each chunk with what workers found, and the numbers of its known rows."""

    def work() -> Iterator[tuple[tuple[Chunk, Any], Callable[..., Columns], tuple[Any, ...]]]:
        for place, part in enumerate(chunks):
            if place == ahead:
                _import_meanwhile()
            if known and part.archive and len(numbers := known.archive(part.source, *part.archive)):
                yield (part, numbers), look.same, (len(numbers),)
                continue
            found, records = known.about(part.source, part.names) if known else (None, b"")
            job = Job(part.root, part.names, part.text_root, part.text_files or (), records)
            yield (part, found), part.work, (job, *part.extra)

    return crew.each(work())


def _import_meanwhile() -> None:
    """Load what takes its time while workers have something to do."""
    import clusterft_trainer.corpus.final  # noqa: F401


def _kept(
    looked: Iterator[tuple[tuple[Chunk, Any], Columns]],
    journal: Callable[[], Journal],
    known: Known | None,
    say: Callable[[Progress], None],
    began: float,
) -> Iterator[Piece]:
    """Write down what was found; what was known already is only pointed at."""
    done = read = 0
    for (part, numbers), found in looked:
        same, count = found.flags.count(SAME), len(found.flags)
        if count and same == count and part.texts is None and not part.faults:
            yield Piece(part.source, part.ordered, count, known=numbers)
        elif count:
            from clusterft_trainer.corpus.rows import rows

            batch = rows(part, found, known.unchanged(numbers, found.flags) if known and same else None)
            place = journal().append(batch)
            yield Piece(part.source, part.ordered, count, journal=(journal().path, *place))
        done, read = done + count, read + found.read
        say(Progress(part.source, done, part.total, read, time.monotonic() - began))
