"""Runs every check that `train` or `up` needs over a Survey, in order of dependency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clusterft.checks import controller, docker, docker_room, gpu, host, job, nearby, run_room, sources
from clusterft.checks.examination import Examination
from clusterft.checks.gathering import gathered
from clusterft.checks.run_room import RunRoom
from clusterft.checks.shares import misnamed
from clusterft.checks.survey import Survey
from clusterft.checks.ways import isolated, reach, routes
from clusterft.facts.health.confines import Limit
from clusterft.facts.nearby import Nearby
from clusterft.facts.sources import Named, State
from clusterft.findings import Finding
from clusterft.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks of every node."""

    device: Literal["cpu", "cuda"]
    shared: str
    shared_bytes: int  # room that any run needs in the shared dir
    local_bytes: int  # room for logs and files on each node
    shared_files: int = host.FEW_INODES  # files that it will make there
    contained: bool = False  # containers are asked for, so each node's engine is
    shared_at: str = ""  # FILE:LINE:COLUMN of the setting


@dataclass(frozen=True, slots=True)
class UpDemand:
    """What `up` asks of every node."""

    device: Literal["cpu", "cuda"]
    with_docker: bool = True  # False: nodes are made reachable, and no more
    shared: str | None = None
    arch: str | None = None  # of the image, as images name it; None where no image is known yet
    image_bytes: Mapping[str, int] = field(
        default_factory=dict
    )  # node -> room that the image takes there, if known


def judge(survey: Survey, demand: Demand) -> tuple[Finding, ...]:
    """All findings above ok; a node that was not reached is judged by that alone."""
    return (
        *controller.unreached(survey),
        *controller.same_host_twice(survey, share_cards=demand.device == "cpu"),
        *host.clock(survey),
        *host.disks(
            survey, {demand.shared: demand.shared_bytes}, demand.local_bytes, {demand.shared: demand.shared_files}
        ),
        *gathered(misnamed.found(survey, demand.shared, demand.shared_at)),
        *(docker.usable(survey, cuda=demand.device == "cuda") if demand.contained else ()),
        *(_cards(survey) if demand.device == "cuda" else ()),
    )


def judge_foreseen(
    survey: Survey, seen: job.Foresight, limits: Mapping[str, Limit] | None = None
) -> tuple[Finding, ...]:
    """What the trainer's estimate rules out, for when it is known later than the rest; `limits`: of memory."""
    return gathered(job.fits(survey, seen, limits or {}))


def judge_run_room(survey: Survey, shared: str, room: RunRoom) -> tuple[Finding, ...]:
    """What a run will write into the shared dir, against what is free there."""
    return gathered(run_room.found(survey, shared, room))


def judge_meeting(seen: Examination) -> tuple[Finding, ...]:
    """Whether all nodes reach where a run is about to meet, by the words and lines of the whole look."""
    told = (reach.master_port, routes.refused, routes.led_away, isolated.found)
    return gathered(finding for find in told for finding in find(seen))


def judge_nearby(
    job: JobSpec, survey: Survey, seen: Mapping[str, Nearby | None], owner: tuple[int, int] | None
) -> tuple[Finding, ...]:
    """The folder on each node's own disk in which copies of the cache are kept, for a job that asks for that."""
    return gathered(nearby.found(job, survey, seen, owner))


def judge_sources(
    job: JobSpec, survey: Survey, seen: Mapping[str, Sequence[State]], named: Iterable[Named]
) -> tuple[Finding, ...]:
    """What the job reads on each node."""
    there = sources.found(job, survey, seen)
    return gathered((*there, *(finding for one in named for finding in sources.unnamed(job, one))))


def _cards(survey: Survey) -> Iterator[Finding]:
    for findings in (gpu.mismatch(survey), gpu.count(survey), gpu.mixed(survey), job.busy(survey)):
        yield from findings


def judge_up(survey: Survey, demand: UpDemand) -> tuple[Finding, ...]:
    """All findings above ok, one for each reason with all its nodes; each blocks only the nodes that it names."""
    return gathered(_for_up(survey, demand))


def judge_room(survey: Survey, image_bytes: Mapping[str, int]) -> tuple[Finding, ...]:
    """The room for an image, for when its size is known later than the rest; node -> bytes."""
    return gathered(docker_room.images(survey, image_bytes))


def _for_up(survey: Survey, demand: UpDemand) -> Iterator[Finding]:
    cuda = demand.device == "cuda"
    checks: tuple[Iterable[Finding], ...] = (
        controller.unreached(survey),
        controller.same_host_twice(survey, share_cards=not cuda),
        controller.same_hostname(survey),
        host.clock(survey),
        host.users(survey),
        host.homes(survey),
        host.share(survey, demand.shared) if demand.shared else (),
        host.shm(survey) if cuda else (),
        docker.subnet(survey),
        _docker(survey, demand) if demand.with_docker else (),
        (*gpu.mismatch(survey), *gpu.count(survey), *gpu.mixed(survey)) if cuda else (),
    )
    for findings in checks:
        yield from findings


def _docker(survey: Survey, demand: UpDemand) -> Iterator[Finding]:
    cuda = demand.device == "cuda"
    yield from docker.usable(survey, cuda=cuda)
    yield from docker.arch(survey, demand.arch)
    yield from docker_room.images(survey, demand.image_bytes)
    if cuda:
        yield from docker.cards(survey)
