"""A cache made by many workers: agree on a plan, carry it out, have one of them finish it.

Owns the order of these, and that a plan which was not carried out to its end is gone on with: so a rerun after any
failure gives the very files that an undisturbed run gives. What is damaged is moved aside before a plan. Refuses
to plan twice what nobody has finished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clusterft_trainer.errors import storing
from clusterft_trainer.latents import healing, plan, tables, writing
from clusterft_trainer.latents.catalogue import Catalogue
from clusterft_trainer.latents.encode import Encoder, Share
from clusterft_trainer.latents.feeding import Feeder
from clusterft_trainer.latents.leases import DONE, OVER
from clusterft_trainer.latents.plan import Plan, Wanted
from clusterft_trainer.latents.session import Session, Stopped, numbers
from clusterft_trainer.latents.writing import Site, Tally


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made, and where."""

    kind: str  # latents or text
    identity: str  # of all that decides the plan, 16 hexadecimal digits or so
    folder: Path  # of the shards
    recipe: str  # as JSON
    size: float  # bytes of an entry for each pixel, or for each caption
    wanted: Callable[[], Wanted]  # costs some seconds for millions of rows, so only who plans asks

    @property
    def group(self) -> str:
        """Of its leases."""
        return f"{self.kind}-{self.identity}"


@dataclass(frozen=True, slots=True)
class Made:
    """What became of it."""

    planned: int  # entries that were missing
    tally: Tally  # of this worker
    problems: tuple[dict[str, str], ...]  # entries that cannot be had, whoever found that and when
    damaged: int = 0  # shards that were moved aside before the plan was made


def make(session: Session, order: Order, feeder: Callable[[], Feeder], encoder: Callable[[], Encoder]) -> Made:
    """Take part until all that is missing is made; the encoder is asked for only if there is something to do."""
    with storing("The cache", order.folder):
        order.folder.mkdir(parents=True, exist_ok=True)
    number, chosen = _agreed(session, order)
    begun = any(name.endswith(DONE) for name in session.work.names(f"{order.group}/{number}"))
    made = _carried_out(session, order, number, chosen, feeder, encoder)
    if not begun:
        return made
    # What others had done before may be gone since, such as a shard that was set aside: only a new plan tells.
    number, chosen = _agreed(session, order)
    again = _carried_out(session, order, number, chosen, feeder, encoder)
    again.tally.add(made.tally)
    return Made(made.planned + again.planned, again.tally, again.problems, made.damaged + again.damaged)


def _carried_out(
    session: Session,
    order: Order,
    number: int,
    chosen: Plan,
    feeder: Callable[[], Feeder],
    encoder: Callable[[], Encoder],
) -> Made:
    tally = Tally()
    group = f"{order.group}/{number}"
    if _unfinished(session, order, number, chosen):
        site = Site(order.folder, session.work, group, session.leases, session.pulse)
        share = Share(chosen, site, encoder(), feeder(), session.stop)
        tally = share.tally
        session.told = lambda: {"plan": group, **tally.told()}
        if not share.run():
            raise Stopped
    if session.work.create(f"{group}{OVER}", b""):
        _finish(session, order)
    return Made(len(chosen), tally, tuple(_problems(order, chosen)), int(chosen.metadata.get("damaged", 0)))


def _problems(order: Order, chosen: Plan) -> list[dict[str, str]]:
    """Of all that are listed, those of this plan or passed over by it, unless they have been made since."""
    listed = {p["key"]: p for p in writing.problems(order.folder)}
    if not listed:
        return []
    keys = writing.key_table(listed.values())
    ours = plan.among(keys, np.concatenate([chosen.keys, chosen.skipped]))
    ours &= Catalogue.open(order.folder, order.recipe).locate(keys) < 0
    return [p for p, mine in zip(listed.values(), ours, strict=True) if mine]


def _unfinished(session: Session, order: Order, number: int, chosen: Plan) -> bool:
    there = set(session.work.names(f"{order.group}/{number}"))
    every = all(name + DONE in there for name in chosen.tasks)
    return not every and number not in numbers(session.work, order.group, OVER)


def _agreed(session: Session, order: Order) -> tuple[int, Plan]:
    """A plan that is not over, else a new one."""
    planned = max(numbers(session.work, order.group), default=0)
    if planned and planned not in numbers(session.work, order.group, OVER):
        path = _table(session, order, planned)
        if path.exists():  # it is not where planning failed
            return planned, Plan(path)
    number = session.once(order.group, lambda number: _plan(session, order, number))
    return number, Plan(_table(session, order, number))


def _table(session: Session, order: Order, number: int) -> Path:
    return session.root / order.group / f"{number}.table"


def _plan(session: Session, order: Order, number: int) -> None:
    _clear(session, order)
    damaged = healing.heal(order.folder, order.recipe)
    wanted = order.wanted()
    known = Catalogue.open(order.folder, order.recipe).locate(wanted.keys) >= 0
    hopeless = writing.hopeless(writing.problems(order.folder))
    session.work.begin(f"{order.group}/{number}")
    plan.write(_table(session, order, number), wanted, known, hopeless, order.size, len(damaged))


def _finish(session: Session, order: Order) -> None:
    """What one worker does at the end: the table of all shards, and no leftovers of the dead."""
    session.sweep()
    _drafts(session, order.folder)
    Catalogue.open(order.folder, order.recipe)


def _clear(session: Session, order: Order) -> None:
    """Remove the lists of older plans of this kind that are over, and drafts that nobody writes any more.

    The newest one stays, for workers that have not yet heard that it is over.
    """
    for name in session.work.names("."):
        if name.startswith(f"{order.kind}-"):
            for number in sorted(numbers(session.work, name, OVER))[:-1]:
                shutil.rmtree(session.root / name / str(number), ignore_errors=True)  # else by the next plan
                (session.root / name / f"{number}.table").unlink(missing_ok=True)
    session.sweep()
    _drafts(session, order.folder)


def _drafts(session: Session, folder: Path) -> None:
    for name in os.listdir(folder):
        owner = name.removeprefix(tables.DRAFT).rsplit("-", 2)[0]
        if name.startswith(tables.DRAFT) and owner != session.owner and session.leases.ended(owner):
            (folder / name).unlink(missing_ok=True)
