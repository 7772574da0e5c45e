"""The checks of the docker layer: does each node's engine take the work, and give it what a run needs."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import docker
from clusterft.checks.check import Check
from clusterft.checks.engines import boxes, containers, image
from clusterft.checks.examination import Examination
from clusterft.findings import Finding

_ENGINE = ("dk.absent", "dk.down", "dk.perm", "dk.old")


def usable(seen: Examination) -> Iterator[Finding]:
    """Whether there is an engine, and we may use it. One that was slow to answer once, and then did, is there."""
    for one in docker.usable(seen.survey, cuda=seen.wanted.device == "cuda"):
        health = seen.health.get(one.nodes[0])
        answers = one.id == "dk.down" and health is not None and health.docker.now is not None
        if not answers:
            yield one


def cards(seen: Examination) -> Iterator[Finding]:
    """dk.nogpu, dk.runtime, by what the engine tells of itself; what it does is for the box."""
    return docker.cards(seen.survey)


def arch(seen: Examination) -> Iterator[Finding]:
    """dk.arch: one image serves one architecture."""
    return docker.arch(seen.survey, seen.wanted.image.arch if seen.wanted.image else None)


def subnet(seen: Examination) -> Iterator[Finding]:
    """dk.subnet: an engine that has taken the addresses of peers."""
    return docker.subnet(seen.survey)


def same_image(seen: Examination) -> Iterator[Finding]:
    """dk.image-missing, dk.image-drift."""
    tag = seen.wanted.tag
    if tag is None:
        for one in ("dk.image-missing", "dk.image-drift"):
            yield Finding(one, "skipped", (), "there is no image yet: clusterft up")
        return
    known = {name: health.docker for name, health in seen.health.items()}
    told = {name: one.image for name, one in known.items() if one.missing is not None}
    for name in known.keys() - told.keys():
        yield Finding("dk.image-drift", "unknown", (name,), "the image could not be looked at")
    yield from image.same(tag, seen.wanted.image, told, "clusterft up")


CHECKS: tuple[Check, ...] = (
    Check(
        ("dk.absent", "dk.down", "dk.perm", "dk.old", "dk.snap", "dk.rootless", "dk.userns"),
        usable,
        contained=True,
    ),
    Check(("dk.arch",), arch, after=_ENGINE, contained=True),
    Check(("dk.nogpu", "dk.runtime"), cards, after=_ENGINE, contained=True, cuda=True),
    Check(("dk.subnet",), subnet, contained=True),
    Check(("dk.image-missing", "dk.image-drift"), same_image, ("facts", "health"), _ENGINE, contained=True),
    Check(("dk.leftover",), containers.leftover, ("facts", "health"), _ENGINE, contained=True),
    Check(("dk.early-mount",), containers.early_mount, ("facts", "health"), _ENGINE, contained=True),
    Check(("dk.nvml-lost",), containers.nvml_lost, ("facts", "health"), _ENGINE, contained=True, cuda=True),
    Check(
        ("dk.box",), boxes.started, ("facts", "box"), (*_ENGINE, "dk.image-missing", "dk.nogpu"), contained=True
    ),
    # What these find has other ids, for which facts answer too.
    Check(("dk.box",), boxes.locked, ("facts", "box"), (*_ENGINE, "dk.image-missing"), contained=True),
    Check(("dk.box",), boxes.mounted, ("facts", "health", "box"), _ENGINE, contained=True),
)
