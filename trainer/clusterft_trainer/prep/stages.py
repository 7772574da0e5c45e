"""The stages of prep, in their order: ingest by one worker for all, then latents and text states by all.

Owns who does what and where it lies in the shared directory. Workers find each other through files alone: ranks of
any launcher, or processes started by hand. Refuses at the end, not in the middle, a data set with pictures that
cannot be encoded, if the settings say so: what can be encoded is done by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clusterft_trainer.config import BuiltinSource, TrainConfig
from clusterft_trainer.config.sources import Source
from clusterft_trainer.errors import ConfigError, DataError, storing
from clusterft_trainer.prep.telling import Voice

if TYPE_CHECKING:
    from clusterft_trainer.corpus.index import Index
    from clusterft_trainer.dist import Place
    from clusterft_trainer.latents.making import Made
    from clusterft_trainer.latents.session import Session, Stop

Stage = Literal["ingest", "latents", "text"]
STAGES: tuple[Stage, ...] = ("ingest", "latents", "text")
HOME = ".clusterft"  # in the shared directory
WORK = "work"
HELD = "held"  # indexes that workers have in use
_MOST_LOOKERS = 8  # processes that look at pictures


@dataclass(frozen=True, slots=True)
class Asked:
    """What one worker was started for."""

    config: TrainConfig
    shared: Path
    only: Stage | None
    threads: int  # that decode pictures
    slots: int = 1  # that prepare together

    @property
    def home(self) -> Path:
        """Where everything lies."""
        return self.shared / HOME

    @property
    def takes_npz(self) -> bool:
        """Whether kohya's latents stand for pictures."""
        cache = self.config.data.cache
        return cache is not None and cache.npz

    def wants(self, stage: Stage) -> bool:
        """Whether a stage is to be done."""
        cache = self.config.data.cache
        possible = {"ingest": True, "latents": cache is not None, "text": cache is not None and cache.text}
        return possible[stage] and self.only in (None, stage)


def asked(config: TrainConfig, shared: Path, only: Stage | None, environment: Mapping[str, str]) -> Asked:
    """Refuses a stage that the settings do not have."""
    found = Asked(config, shared, only, _threads(environment), _number(environment, "WORLD_SIZE"))
    if only is not None and not found.wants(only):
        setting = "data.cache" if config.data.cache is None else "data.cache.text"
        raise ConfigError(f"--only {only} has nothing to do: {setting} is not set.", f"Set {setting}.")
    return found


def run(given: Asked, owner: str, stop: Stop, voice: Voice) -> None:
    """One worker from beginning to end."""
    from clusterft_trainer.latents.session import Session

    with Session(given.home / WORK, owner, stop) as session, ExitStack() as held:
        index = held.enter_context(_held(given, session, ingested(given, session, voice)))
        troubles: list[dict[str, str]] = []
        if given.wants("latents") or given.wants("text"):
            place = _settled()
            from clusterft_trainer.prep import encoding

            with voice.watching(lambda: "loads the encoders"), stop.urgently():
                equipment = encoding.equip(given, session, place)
            if given.wants("latents"):
                troubles += _told(voice, "latents", encoding.latents(given, session, index, equipment, voice))
            if given.wants("text"):
                _told(voice, "text states", encoding.texts(given, session, index, equipment, voice))
    _refuse(given, troubles)


@contextmanager
def _held(given: Asked, session: Session, index: Index) -> Iterator[Index]:
    """The index as it is now, whatever others publish meanwhile; those of workers that have died are cleared."""
    from clusterft_trainer.corpus import keeping

    home = given.home / HELD
    _clear_held(home, session)
    with keeping.held(index, home / session.owner) as found:
        yield found
    _clear_held(home, session)  # who is silent is known by now


def _clear_held(home: Path, session: Session) -> None:
    for name in os.listdir(home) if home.is_dir() else ():
        if name != session.owner and session.leases.ended(name):
            shutil.rmtree(home / name, ignore_errors=True)  # another worker may be at it too


def ingested(given: Asked, session: Session, voice: Voice) -> Index:
    """The index, brought up to date by one of the workers that come together."""
    from clusterft_trainer.corpus import ingest
    from clusterft_trainer.corpus.index import Index

    voice.phase("data")
    problems = given.config.data.problems
    sources = drawn(given, session)
    folder = given.home / "index" / ingest.index_key(sources, problems, npz=given.takes_npz)

    def act(_number: int) -> None:
        processes = min(_MOST_LOOKERS, len(os.sched_getaffinity(0)))
        npz = given.takes_npz
        ingest.ingest(sources, problems, folder, processes=processes, say=voice.looked, npz=npz)

    session.once(f"ingest-{folder.name}", act, lambda: voice.now_and_then("Another worker looks at the pictures."))
    index = Index.open(folder)
    voice.notice(f"{len(index)} pictures are indexed.")
    if voice.leads:
        _count_buckets(given, index, folder / "buckets.txt", voice)
    return index


def _count_buckets(given: Asked, index: Index, path: Path, voice: Voice) -> None:
    """What lands where, and what short batches will cost, for a run on as many slots as prepare."""
    import numpy as np

    from clusterft_trainer import placing
    from clusterft_trainer.corpus import census

    data, batch = given.config.data, given.config.batch
    sizes = np.asarray(index.sizes())
    placed = placing.place_all(sizes, placing.rules(data.buckets, data.resolution))
    times = np.array([source.repeats for source in data.sources])
    repeats = times[index.column("source").to_numpy()] if len(set(times)) > 1 else None
    found = census.census(placed.table, placed.numbers, repeats, batch.per_slot * batch.accumulate * given.slots)
    text = census.text(found)
    with storing("The table of buckets", path):
        path.write_text(text, encoding="utf-8")
    voice.notice(f"{text.splitlines()[-1]}; {path} has the table.")


def drawn(given: Asked, session: Session) -> list[Source]:
    """The sources, with the builtin one as the folder that one worker draws."""
    sources = list(given.config.data.sources)
    if not any(isinstance(source, BuiltinSource) for source in sources):
        return sources
    _settled()
    from clusterft_trainer import build

    home = given.home / "builtin"
    session.once("builtin", lambda _number: _ignore(build.drawn(source, home) for source in sources))
    return [build.drawn(source, home) for source in sources]


def _settled() -> Place:
    """Device and threads; has to come before torch does."""
    from clusterft_trainer import dist

    return dist.settle()


def _ignore(values: Any) -> None:
    for _ in values:
        pass


def _told(voice: Voice, what: str, made: Made) -> list[dict[str, str]]:
    tally = made.tally
    if made.damaged:
        shards = "1 damaged shard was" if made.damaged == 1 else f"{made.damaged} damaged shards were"
        voice.notice(f"{shards} moved aside, and what was lost is made again; bad.jsonl in the cache names it.")
    busy = tally.encoding / max(1e-9, tally.encoding + tally.waiting)
    voice.notice(completed(what, made.planned, tally.entries, busy, who="rank 0" if voice.leads else "this rank"))
    return list(made.problems)


def completed(what: str, missing: int, made: int, busy: float, *, who: str) -> str:
    """One worker's last word on a stage: what was missing, what of it is its own work, and how it was used."""
    told = f"The {what} are complete: "
    if not missing:
        return told + "none was missing."
    told += f"{missing} were missing, "
    if not made:
        return told + "and other ranks have made them."
    others = "; the other ranks have made the rest" if made < missing else ""
    return told + f"{who} has made {made}, its encoder busy {busy:.0%}{others}."


def _refuse(given: Asked, troubles: list[dict[str, str]]) -> None:
    if given.config.data.problems.broken == "skip":  # which is said of pictures, not of what could not be read
        troubles = [one for one in troubles if one["kind"] != "broken"]
    if not troubles:
        return
    shown = "; ".join(f"{p['name'][:200]} ({p['why'][:200]})" for p in troubles[:3])
    more = f" and {len(troubles) - 3} more" if len(troubles) > 3 else ""
    raise DataError(
        f"{len(troubles)} pictures could not be encoded: {shown}{more}. All others are in the cache.",
        "Replace or remove those that are broken, mount what cannot be read, and run prep again; "
        "data.problems.broken: skip leaves broken ones out.",
    )


def _threads(environment: Mapping[str, str]) -> int:
    ranks = _number(environment, "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "WORLD_SIZE")
    return max(2, len(os.sched_getaffinity(0)) // ranks)


def _number(environment: Mapping[str, str], name: str) -> int:
    """A count of ranks; 1 where no launcher has said it."""
    told = environment.get(name, "1")
    return int(told) if told.isdecimal() and int(told) else 1
