"""A container of the run's own image on every node, with the limits and mounts of a run.

The shared dir is mounted only where the node itself has looked at it in time: an engine that is asked to mount
what hangs would hang with it, for everybody.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.facts import NodeFacts, storage
from clusterft.facts import box as answers
from clusterft.facts.box import Box
from clusterft.facts.storage import Disk
from clusterft.hosts import Node
from clusterft.plan import container
from clusterft.plan.container import Fittings
from clusterft.probing.crew import Crew, Silent, Talk
from clusterft.remote import Remote, Unreachable
from clusterft.spec import Mount

_START_SECONDS = 20.0
_LOOK_SECONDS = 4.0
_ROOM_SECONDS = 9.0
_CARDS_SECONDS = 24.0  # all of it, from the start; torch is imported from a disk that may be slow
_TORCH_SECONDS = 15
_SAID = {
    "python": "the image has no python3 to look with: {words}",
    "program": "doctor's program broke in it, which is a bug of clusterft: {words}",
    "source": "the shared dir cannot be mounted into a container: {words}",
    "slow": "a container of the image runs, and its python3 has not begun in time",
}


@dataclass(frozen=True, slots=True)
class _Request:
    """One container to be made."""

    node: str
    fittings: Fittings
    owner: tuple[int, int] | None


def fittings(node: Node, facts: NodeFacts, wanted: Wanted) -> Fittings:
    """Those of a run; of its mounts the shared dir alone, and that only where it answers."""
    answers = any(disk.directory == wanted.shared for disk in facts.disks)
    binds = (Mount(wanted.shared),) if wanted.shared and answers else ()
    return Fittings(
        gpus=container.cards(node, facts, wanted.device),
        binds=binds,
        propagation=container.propagation(facts, binds),
        devices=container.devices(facts),
        shm=wanted.job.resources.shm if wanted.job else None,
    )


def open_(crew: Crew, survey: Survey, wanted: Wanted) -> dict[str, Box | Unreachable | str]:
    """One each; words of a node that could make none."""
    nodes = {node.name: node for node in survey.cluster.active}

    def one(name: str, remote: Remote) -> Box | str:
        way, facts = crew.ways.get(name), survey.facts.get(name)
        if facts is None or way is None:
            return "its facts are not known"
        if way.kind != "image":
            return "the image is not there" if way.docker else "its engine cannot be used"
        request = _Request(name, fittings(nodes[name], facts, wanted), wanted.owner)
        found = _one(crew, remote, request)
        if found.refused == "source":  # which is for the storage checks to tell; the rest can be seen without it
            found = _one(crew, remote, replace(request, fittings=replace(request.fittings, binds=())))
        return _SAID[found.refused].format(words=found.words) if found.refused in _SAID else found

    found: dict[str, Box | Unreachable | str] = dict(crew.fleet.each(one))
    return found


def _one(crew: Crew, remote: Remote, request: _Request) -> Box:
    name, inside = request.node, request.fittings
    box = Box(name, pinned=bool(inside.devices), carded=bool(inside.gpus))
    shared = inside.binds[0].path if inside.binds else None
    asked = {"shared": shared, "cuda": box.carded, "seconds": _TORCH_SECONDS}
    began, release = time.monotonic(), ""
    try:
        talk = crew.start(name, "box", (json.dumps(asked),), owner=request.owner, fittings=inside)
        release = talk.release
        body = talk.hear(_START_SECONDS)
    except Silent as why:
        words = str(why)
        refused = answers.refusal(words)
        if refused == "hung" and _runs(remote, crew.ways[name].docker, release):
            refused = "slow"
        room = _room(remote, answers.full(words)) if refused == "room" else None
        return replace(box, refused=refused, words=words, room=room)
    if "threadless" in body:
        words = f"RuntimeError: {body['threadless']}"
        return replace(box, refused="threadless", words=words, threads=answers.threads(body))
    try:
        box = replace(box, **answers.shaped(body))
        return _cards(box, talk, began) if box.carded else box
    finally:
        talk.close()


def _runs(remote: Remote, docker: tuple[str, ...], container_name: str) -> bool:
    """Whether the engine has done its part, and it is the program in it that is slow."""
    if not container_name:
        return False
    try:
        done = remote.run((*docker, "inspect", "-f", "{{.State.Status}}", container_name), seconds=_LOOK_SECONDS)
    except Unreachable:
        return False
    return done.out.strip() == "running"


def _room(remote: Remote, path: str) -> Disk | None:
    """Of the place that an engine found full, as it is now."""
    if not path:
        return None
    try:
        return storage.disk(path, remote.run(answers.room(path), seconds=_ROOM_SECONDS).out)
    except Unreachable:
        return None


def _cards(box: Box, talk: Talk, began: float) -> Box:
    """What the container makes of the cards; what comes too late is not known."""
    try:
        smi = talk.hear(max(1.0, began + _CARDS_SECONDS - time.monotonic())).get("smi")
        if isinstance(smi, list) and len(smi) == 2:
            code, words = smi
            box = replace(box, smi_code=code if isinstance(code, int) else None, smi=str(words).strip())
        body = talk.hear(max(1.0, began + _CARDS_SECONDS - time.monotonic()))
    except Silent:
        return box
    return replace(box, torch=answers.torch(body))
