"""What the trainer itself foresees of a run: its `estimate`, made in the run's image on the head before the start.

Asked for where slots are cards, since what does not fit into one fails minutes later. Remembered on the
controller, so that the next start of the same job waits for nothing. Refuses to guess: an estimate that could not
be made is a finding, and no more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from clusterft import checks, places
from clusterft.checks import Foresight
from clusterft.engine import Engine
from clusterft.findings import Finding
from clusterft.places import CONTAINER
from clusterft.plan.container import ContainerPlan
from clusterft.remote import private
from clusterft.runtime import docker
from clusterft.runtime.docker import Placed
from clusterft.runtime.process import CannotStart

_SECONDS = 180  # torch and the model's outline; half a minute is usual
_CONFIG = CONTAINER / "config.json"


@dataclass(frozen=True, slots=True)
class Site:
    """Where the run is to take place."""

    nodes: int
    slots: int  # of a node; the most that one has
    gpu: str  # as the driver names it


def look(engine: Engine, box: ContainerPlan, python: str, config: str, site: Site) -> Foresight | Finding:
    """The estimate of this configuration, or why there is none; `box` is the head's container."""
    known = _place(box.image, config, site)
    if known.is_file():
        return _read(known.read_text(encoding="utf-8"), box)
    try:
        said = _asked(engine, box, python, config, site)
    except (CannotStart, docker.EngineSaidNo, requests.exceptions.RequestException) as error:
        return _none(box, str(error))
    found = _read(said, box)
    if isinstance(found, Foresight):
        private.write(known, said.encode("utf-8"))
    return found


def _asked(engine: Engine, box: ContainerPlan, python: str, config: str, site: Site) -> str:
    """What it printed, in a container that goes again; its name is its own, since the run's is a lock."""
    asking = (python, "-P", "-m", "clusterft_trainer", "estimate", str(_CONFIG), "--json")
    where = ("--nodes", str(site.nodes), "--slots", str(site.slots), "--gpu", site.gpu)
    alone = replace(box, name=f"{box.name}-estimate", command=(*asking, *where), gpus=(), restart="no")
    identity = docker.create(engine, alone, [Placed(_CONFIG, config.encode("utf-8"), 0o600)])
    try:
        docker.start(engine, identity)
        code = int(engine.api.wait(identity, timeout=_SECONDS)["StatusCode"])
        if code != 0:
            words = engine.api.logs(identity, tail=5).decode(errors="replace").strip()
            raise CannotStart(f"it ended with exit code {code}: {words}")
        out: bytes = engine.api.logs(identity, stdout=True, stderr=False)
        return out.decode(errors="replace")
    finally:
        docker.remove(engine, identity)


def _read(said: str, box: ContainerPlan) -> Foresight | Finding:
    lines = said.strip().splitlines()
    try:
        return checks.foresight(json.loads(lines[-1]) if lines else {})
    except ValueError as error:
        return _none(box, f"{error}; it said: {said.strip()[-300:]}")


def _none(box: ContainerPlan, words: str) -> Finding:
    what = "what the run will need could not be estimated"
    return Finding("job.memory", "unknown", (box.labels.node,), what, evidence=words)


def _place(image: str, config: str, site: Site) -> Path:
    key = hashlib.sha256(json.dumps([image, config, site.nodes, site.slots, site.gpu]).encode()).hexdigest()
    return places.controller_home() / ".foresight" / f"{key[:32]}.json"
