"""What the ranks of a node run, and what starts them: the trainer, a script, or the preparing of data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from clusterft import places
from clusterft.errors import ClusterftError
from clusterft.places import RunPlaces
from clusterft.plan import engine
from clusterft.plan.engine import Seat
from clusterft.spec import JobSpec

STAGES = ("ingest", "latents", "text")
STARTER = "clusterft"  # in the place of a launcher's name: ranks that need no rendezvous need none of them


@dataclass(frozen=True, slots=True)
class Prep:
    """What a run prepares that does not train."""

    only: str | None = None  # one of STAGES; None: all that the settings ask for

    def to_dict(self) -> dict[str, Any]:
        """As run.json holds it."""
        return {"only": self.only}

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any]) -> Prep | None:
        """Of a plan in run.json; None for one that trains."""
        told = plan.get("prep")
        return None if told is None else cls(told["only"])


@dataclass(frozen=True, slots=True)
class Program:
    """One node's."""

    argv: tuple[str, ...]
    starts_in: PurePosixPath
    files: dict[str, str]  # for each attempt
    kind: str  # as the assignment has it


@dataclass(frozen=True, slots=True)
class Site:
    """Where it runs."""

    python: str
    directory: PurePosixPath  # of the part: config.json lies there
    run: RunPlaces
    code: str | None  # digest of a script's folder


def preparing(prep: Prep, site: Site, slots: int) -> Program:
    """Ranks that claim their work in the shared dir, each started by itself."""
    only = () if prep.only is None else ("--only", prep.only)
    starter = (site.python, "-m", "clusterft_trainer.supervisor.starter", str(slots), "@FIRST_RANK@", "@WORLD@")
    work = ("clusterft_trainer", "prep", str(site.directory / "config.json"), "--shared", str(site.run.shared))
    return Program((*starter, *work, *only), site.directory, {}, "prep")


def of(spec: JobSpec, seat: Seat, site: Site) -> Program:
    """The job's own program, by its launcher."""
    starts, files = engine.command(spec, seat, site.python), engine.files(spec)
    script = spec.script
    if script is None:
        config, run = str(site.directory / "config.json"), str(site.run.dir)
        train = ("clusterft_trainer", "train", config, "--run-dir", run)
        return Program((*starts, *train), site.directory, files, "train")
    if site.code is None:
        raise ClusterftError("a plan of a script was asked for without the digest of its folder")
    code = places.code(site.run.shared, site.code)
    args = (arg.replace("@RUN_DIR@", str(site.run.dir)) for arg in script.args)
    ranks = ("clusterft_trainer.rank", str(code / script.inside), *args)
    return Program((*starts, *ranks), code / script.workdir, files, "script")
