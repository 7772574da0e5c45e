"""Checks of containers of ours that are there already: left behind, blind to the share, without their cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clusterft.checks.examination import Examination
from clusterft.facts.health.docker import OVER, Container, DockerHealth
from clusterft.findings import Finding

DOCTOR = "clusterft.doctor"
_ENOUGH = frozenset({"clusterft.cluster", "clusterft.node", "clusterft.owner"})  # labels that every run's has
_OVER_SECONDS = 60.0  # by then a controller that follows its run has taken an ended container away
_CREATED_SECONDS = 300.0  # between making a container and starting it lies the putting of files
_DOCTOR_SECONDS = 1200.0  # no doctor takes as long
_RUNS_ON_SECONDS = 120.0  # after the end of its run was written down


def leftover(seen: Examination) -> Iterator[Finding]:
    """dk.leftover: what no run, no controller and no doctor will take away any more."""
    for name, one, words in left_behind(seen):
        yield _leftover(name, one, seen.health[name].docker, words)


def left_behind(seen: Examination) -> Iterator[tuple[str, Container, str]]:
    """Node, container, and why nobody will come for it."""
    alive = {
        (one.labels.get("clusterft.cluster"), one.run)
        for health in seen.health.values()
        for one in health.docker.containers or ()
        if one.run and one.state not in OVER
    }
    for name, health in seen.health.items():
        docker, facts = health.docker, seen.survey.facts.get(name)
        for one in docker.containers or ():
            owner = one.labels.get("clusterft.owner")
            if owner is not None and facts and facts.uid is not None and owner != str(facts.uid):
                continue  # another person's, who may still want it
            words = _left(one, docker, alive)
            if words:
                yield name, one, words


def _left(one: Container, docker: DockerHealth, alive: set[tuple[str | None, str]]) -> str:
    """Why nobody will come for it; empty if somebody may."""
    age = None if one.since is None or docker.now is None else docker.now - one.since
    if DOCTOR in one.labels:
        if one.labels[DOCTOR] != one.name:
            return "no doctor has made it like this"
        limit = _OVER_SECONDS if one.state in OVER else _DOCTOR_SECONDS
        return "of a doctor that was killed" if age is not None and age > limit else ""
    if not one.labels.keys() >= _ENOUGH:
        return "its labels are not those of a run that is under way"
    if one.state in OVER:
        limit = _CREATED_SECONDS if one.state == "created" else _OVER_SECONDS
        here = (one.labels.get("clusterft.cluster"), one.run) in alive
        return f"run {one.run} is over here, and nothing of it runs" if _older(age, limit) and not here else ""
    known = (docker.records or {}).get(one.run)
    if one.state == "running" and known and known.over is not None and docker.now is not None:
        over = docker.now - known.over
        return f"run {one.run} has ended, and it goes on" if over > _RUNS_ON_SECONDS else ""
    return ""


def _older(age: float | None, limit: float) -> bool:
    return age is not None and age > limit


def _leftover(node: str, one: Container, docker: DockerHealth, words: str) -> Finding:
    age = "" if one.since is None or docker.now is None else f" for {_span(docker.now - one.since)}"
    held = ", holds cards" if one.cards and one.state not in OVER else ""
    code = f", exit code {one.code}" if one.state in ("exited", "dead") else ""
    run = one.run if one.labels.keys() >= _ENOUGH else ""
    end = (f"clusterft stop {run} --now   (takes it away on all nodes, and keeps its logs)",) if run else ()
    return Finding(
        id="dk.leftover",
        status="warn",
        nodes=(node,),
        summary=f"a container of ours is left behind: {words}",
        evidence=f"{one.name} ({one.id[:12]}): {one.state}{age}{code}{held}",
        cause="the controller was ended, or the node went down, before it was taken away",
        fix=(*end, f"{'or ' if end else ''}on {node}: docker rm -f {one.id[:12]}"),
        blast_radius="that container",
    )


def early_mount(seen: Examination) -> Iterator[Finding]:
    """dk.early-mount: a container that was started before the share was mounted sees what lies beneath."""
    shared = seen.wanted.shared
    for name, health in seen.health.items():
        here = health.docker.here
        for one in health.docker.containers or ():
            bound = shared is not None and any(_within(shared, path) for path in one.binds)
            if not bound or one.sees is None or here is None or DOCTOR in one.labels:
                continue
            if one.sees.device == here.device or "autofs" in (one.sees.fstype, here.fstype):
                continue
            run = one.run if one.labels.keys() >= _ENOUGH else ""
            again = (f"clusterft stop {run}, then clusterft resume {run}",) if run else ()
            yield Finding(
                id="dk.early-mount",
                status="fail",
                nodes=(name,),
                summary=f"container {one.name} sees another filesystem at {shared} than the node does",
                evidence=f"inside: {one.sees}\noutside: {here}",
                cause="it was started before the share was mounted, or the share was mounted anew since",
                fix=(*again, f"{'or ' if again else ''}on {name}: docker restart {one.id[:12]}"),
                blast_radius="what runs in that container",
            )


def nvml_lost(seen: Examination) -> Iterator[Finding]:
    """dk.nvml-lost: the cards work on the node, and no longer in a container that has them."""
    for name, health in seen.health.items():
        if not health.gpu.cards:
            continue  # they do not work outside either, which is for others to tell
        for one in health.docker.containers or ():
            if one.cards and one.smi and "Failed to initialize NVML" in one.smi:
                yield Finding(
                    id="dk.nvml-lost",
                    status="fail",
                    nodes=(name,),
                    summary=f"container {one.name} has lost its cards, which still work on the node",
                    evidence=f"nvidia-smi inside: {one.smi}",
                    cause="`systemctl daemon-reload` takes devices from containers whose cgroups systemd keeps",
                    fix=(
                        *_anew(one, name),
                        'for good, in /etc/docker/daemon.json: "exec-opts": ["native.cgroupdriver=cgroupfs"]   '
                        "then: sudo systemctl restart docker",
                    ),
                    needs_root=True,
                    blast_radius="what runs in that container; a restart of Docker stops all others too",
                )


def _anew(one: Container, node: str) -> tuple[str, ...]:
    if one.labels.keys() >= _ENOUGH:
        return (f"clusterft stop {one.run} --now, then clusterft resume {one.run}",)
    return (f"on {node}: docker restart {one.id[:12]}",)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def ours(health: Mapping[str, DockerHealth]) -> frozenset[str]:
    """The ids of all our containers that run."""
    return frozenset(
        one.id for docker in health.values() for one in docker.containers or () if one.state not in OVER
    )


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
