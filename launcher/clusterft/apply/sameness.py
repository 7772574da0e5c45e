"""The image gate: whether every node has the image that `up` brought, and the same one.

A tag is a name that anybody may give to another image; what an image is, is its layers and its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from clusterft import image
from clusterft.apply.settings import Settings
from clusterft.checks import Survey, gathered
from clusterft.checks.engines import image as judgement
from clusterft.engine import Engine
from clusterft.errors import ClusterftError
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.image import Identity
from clusterft.remote import Remote, Unreachable
from clusterft.runtime import docker


def gate(survey: Survey, fleet: Fleet, tag: str, known: Settings | None) -> tuple[Finding, ...]:
    """dk.image-missing and dk.image-drift, each with all its nodes; nothing where all is well."""
    names = {node.name for node in survey.cluster.active}
    wanted = expected(known) if known and known.tag == tag else None

    def one(name: str, remote: Remote) -> Identity | None:
        if name not in names:
            return None
        with Engine(remote, docker.command(remote)) as engine:
            return docker.identity(engine, tag)

    found = fleet.each(one)
    seen = {name: found[name] for name in found if name in names}
    return judge(tag, wanted, seen, "clusterft up")


def judge(
    tag: str, wanted: Identity | None, seen: Mapping[str, Identity | None | Unreachable], up: str
) -> tuple[Finding, ...]:
    """Pure. Without a record of what `up` brought, most nodes are the measure."""
    there = {name: one for name, one in seen.items() if not isinstance(one, Unreachable)}
    gone = [one.finding(name) for name, one in seen.items() if isinstance(one, Unreachable)]
    return gathered((*judgement.same(tag, wanted, there, up), *gone))


def expected(known: Settings) -> Identity | None:
    """What `up` brought, from its own record of it."""
    if known.parts is None:
        return None
    try:
        config = json.loads(known.parts.config)
        body = {
            "Config": config["config"],
            "RootFS": {"Layers": list(known.parts.diff_ids)},
            "Architecture": config["architecture"],
            "Os": config["os"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ClusterftError(f"what is known of the image cannot be read: {error!r}") from None
    return image.from_inspect(body)
