"""The beginning of the job's run, on all nodes at once: a rank, with the variables, limits and mounts of a run.

Owns what is tried and its deadlines. Uses no card, writes nothing, and leaves nodes alone on which a run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from clusterft import places, plan
from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.errors import UsageError
from clusterft.facts import rehearsal as facts
from clusterft.facts.deep import Said
from clusterft.facts.rehearsal import Rehearsal
from clusterft.hosts import Node
from clusterft.plan import LaunchPlan
from clusterft.plan.container import ContainerPlan, Fittings
from clusterft.probing import occupied, site
from clusterft.probing.bench import Bench, Seat, Task
from clusterft.probing.crew import Crew
from clusterft.probing.imports import needed
from clusterft.spec import JobSpec

SECONDS = 75.0  # all of it, for a wave
WAVE = 16  # nodes at once: a rank's libraries take 330 MB and 4 s of a core, and nodes may share a machine
_READY = 40.0  # torch from a cold disk
_TASK = 25.0
_EACH = 0.6  # seconds more for each rank: many of them may share a machine's cores
_PATIENCE = 12.0  # seconds after which torch itself gives up, and says for whom it waited
NO_TORCH = "it has no torch"  # as the program says that looks for it
_PORT = 95  # of the range that a run may use: none that --deep comes to


def rehearse(
    crew: Crew,
    survey: Survey,
    wanted: Wanted,
    job: JobSpec,
    barred: Mapping[str, str] = MappingProxyType({}),
) -> Rehearsal:
    """A rank on every node that can have one, from its libraries to its first all-reduce.

    `barred`: node -> why it is known already that none would start there.
    """
    if refused := occupied.reason(crew, survey, wanted, cards=False):
        return Rehearsal(refused=refused)
    able, missing = site.able(crew, survey, wanted)
    able, stuck = _answering(able, survey, wanted, barred)
    nodes = tuple(node for node in survey.cluster.active if node.name in able)
    some = replace(survey, cluster=replace(survey.cluster, nodes=nodes))
    try:
        planned = plan.build(job, some, _request(some, wanted, job)) if nodes else None
    except UsageError as error:
        whole = len(nodes) == len(survey.cluster.active)
        unfit = (str(error), error.remedy or "") if whole else ("", "")
        return Rehearsal(
            missing={**dict.fromkeys(able, str(error)), **missing, **stuck}, unfit=unfit[0], remedy=unfit[1]
        )
    if planned is None:
        return Rehearsal(missing=missing | stuck)
    said: list[Said] = []
    unopened: dict[str, str] = {}
    for wave in waves(nodes):
        here = replace(survey, cluster=replace(survey.cluster, nodes=wave))
        words, without = _played(crew, here, wanted, job, planned)
        if job.script and (torchless := _torchless(without)):
            return Rehearsal(refused=torchless)
        said += words
        unopened |= without
    return Rehearsal(
        tries={one.node: facts.tried(one) for one in said},
        unopened={name: words for name, words in unopened.items() if not facts.late(words)},
        addresses={node.node.name: node.address for node in planned.nodes},
        pythons={node.node.name: node.python for node in planned.nodes},
        missing={**missing, **stuck, **{name: words for name, words in unopened.items() if facts.late(words)}},
    )


def turns(count: int) -> int:
    """How many waves that many nodes make."""
    return -(-count // WAVE)


def waves(nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """As few as may be, and as equal as may be: a rank that is left over would meet nobody."""
    count = turns(len(nodes))
    for number in range(count):
        yield nodes[number * len(nodes) // count : (number + 1) * len(nodes) // count]


def _played(
    crew: Crew, here: Survey, wanted: Wanted, job: JobSpec, planned: LaunchPlan
) -> tuple[list[Said], dict[str, str]]:
    """What the ranks of a wave said, and why some nodes have none; nothing of it is left running."""
    talks, unopened = site.opened(crew, here, wanted, _dressed(planned), _READY + _EACH * len(here.cluster.nodes))
    try:
        said = Bench(talks).run([_task(planned, job, set(talks))]) if talks else []
        return list(said[0]) if said else [], unopened
    finally:
        for talk in talks.values():
            talk.close()


def _torchless(unopened: Mapping[str, str]) -> str:
    """A script need not have torch; what has none on one node has none on the others."""
    return next((f"a script without torch: {words}" for words in unopened.values() if NO_TORCH in words), "")


def _answering(
    able: list[str], survey: Survey, wanted: Wanted, barred: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """An engine that is asked to mount what hangs would hang with it."""
    shared = wanted.shared
    stuck = {
        name: f"{shared} does not answer there"
        for name in able
        if shared and not any(disk.directory == shared for disk in survey.facts[name].disks)
    }
    stuck |= {name: barred[name] for name in able if name in barred}
    return [name for name in able if name not in stuck], stuck


def _request(survey: Survey, wanted: Wanted, job: JobSpec) -> plan.Request:
    """As `train` would make it; nothing of it is ever started."""
    return plan.Request(
        run="rehearsal",
        roots={node.name: _root(survey, node.name, node.transport) for node in survey.cluster.active},
        token="none",
        python=job.python or sys.executable,
        tag=wanted.tag if wanted.contained else None,
        code="none" if job.script else None,
    )


def _root(survey: Survey, name: str, transport: str) -> PurePosixPath:
    if transport == "local":
        return PurePosixPath(places.controller_home())
    return PurePosixPath(survey.facts[name].home or "/") / ".clusterft"


def _dressed(planned: LaunchPlan) -> dict[str, site.Dress]:
    """A run's own fittings but for cards, which a rehearsal does not use."""
    bare = Fittings()
    return {
        node.node.name: site.Dress(
            replace(_fittings(node.container), gpus=()) if node.container else bare,
            node.env,
        )
        for node in planned.nodes
    }


def _fittings(container: ContainerPlan) -> Fittings:
    return Fittings(
        binds=container.binds,
        devices=container.devices,
        shm=container.shm,
        propagation=container.propagation,
    )


def _task(planned: LaunchPlan, job: JobSpec, up: set[str]) -> Task:
    """Those of a wave that are up meet on a port of their own, at the first of them."""
    here = [node for node in planned.nodes if node.node.name in up]
    port = planned.port + _PORT
    together: dict[str, Any] = {
        "world": len(here),
        "address": here[0].address,
        "port": port,
        "patience": _PATIENCE + _TASK + _EACH * len(here),
        "config": job.train.model_dump(mode="json") if job.train else None,
        "modules": [name for name in needed(job) if name not in ("clusterft_trainer", "torch")]
        if job.script
        else [],
    }
    world: Mapping[str, str] = {
        "WORLD_SIZE": str(len(here)),
        "MASTER_ADDR": here[0].address,
        "MASTER_PORT": str(port),
    }
    own = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    seats = tuple(
        Seat(node.node.name, 0, {**together, "rank": rank}, {**world, **own, "RANK": str(rank)})
        for rank, node in enumerate(here)
    )
    return Task("rehearse", seats, _TASK + _PATIENCE + 2 * _EACH * len(here))
