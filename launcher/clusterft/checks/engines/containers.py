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
    yield from _unread(seen, "dk.leftover")
    blind = _blind(seen)
    for name, one in _lying(seen) if blind else ():
        yield Finding(
            "dk.leftover",
            "unknown",
            (name,),
            f"whether run {one.run} is over, as {one.name} is, is not known: the containers of "
            f"{', '.join(blind[:4])}{' ...' if blind[4:] else ''} could not be read",
        )


def left_behind(seen: Examination) -> Iterator[tuple[str, Container, str]]:
    """Node, container, and why nobody will come for it.

    Of an ended container of a run nothing is said while the containers of any node are not known: the run may
    be under way there, and what it has left here is still to be fetched.
    """
    alive = {
        key
        for health in seen.health.values()
        for one in health.docker.containers or ()
        if one.run and one.state not in OVER
        for key in (_run(one), (None, one.run))
    }
    blind = bool(_blind(seen))
    for name, one in _ours(seen):
        docker = seen.health[name].docker
        if DOCTOR in one.labels:
            words = _of_doctor(one, docker)
        elif one.state not in OVER:
            words = _runs_on(one, docker)
        else:
            held = blind or _run(one) in alive or not _ended(one, docker)
            words = "" if held else f"run {one.run} is over here, and nothing of it runs"
        if words:
            yield name, one, words


def _ours(seen: Examination) -> Iterator[tuple[str, Container]]:
    """Those with our labels, but for another person's, who may still want them."""
    for name, health in seen.health.items():
        facts = seen.survey.facts.get(name)
        for one in health.docker.containers or ():
            owner = one.labels.get("clusterft.owner")
            if owner is None or not facts or facts.uid is None or owner == str(facts.uid):
                yield name, one


def _blind(seen: Examination) -> tuple[str, ...]:
    """Nodes on which a run may have containers that we do not see."""
    return tuple(
        name for name in seen.nodes if name not in seen.health or seen.health[name].docker.containers is None
    )


def _lying(seen: Examination) -> Iterator[tuple[str, Container]]:
    """Ended ones of runs."""
    for name, one in _ours(seen):
        if one.state in OVER and DOCTOR not in one.labels and _ended(one, seen.health[name].docker):
            yield name, one


def _run(one: Container) -> tuple[str | None, str]:
    """What its run is known by; other versions of ours do not label the cluster."""
    return one.labels.get("clusterft.cluster"), one.run


def _of_doctor(one: Container, docker: DockerHealth) -> str:
    """Why no doctor will come for it; one made from an image of ours by hand may have its labels, not its name."""
    limit = _OVER_SECONDS if one.state in OVER else _DOCTOR_SECONDS
    ours = one.labels[DOCTOR] == one.name
    return "of a doctor that was killed" if ours and _older(_age(one, docker), limit) else ""


def _runs_on(one: Container, docker: DockerHealth) -> str:
    """Why one that runs will not end; its labels alone say nothing of that."""
    ended = (docker.ended or {}).get(one.run)
    if one.state != "running" or ended is None or docker.now is None:
        return ""
    over = docker.now - ended
    return f"run {one.run} has ended, and it goes on" if over > _RUNS_ON_SECONDS else ""


def _ended(one: Container, docker: DockerHealth) -> bool:
    """Whether it is over for longer than its controller would take."""
    return _older(_age(one, docker), _CREATED_SECONDS if one.state == "created" else _OVER_SECONDS)


def _age(one: Container, docker: DockerHealth) -> float | None:
    return None if one.since is None or docker.now is None else docker.now - one.since


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
    yield from _unread(seen, "dk.early-mount")
    for name, health in seen.health.items():
        here = health.docker.here
        for one in health.docker.containers or ():
            bound = shared is not None and any(_within(shared, path) for path in one.binds)
            if not bound or one.sees is None or here is None or DOCTOR in one.labels:
                continue
            if one.sees.device == here.device or "autofs" in (one.sees.mount.fstype, here.mount.fstype):
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
    yield from _unread(seen, "dk.nvml-lost")
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


def _unread(seen: Examination, identity: str) -> Iterator[Finding]:
    for name, health in seen.health.items():
        if health.docker.containers is None:
            yield Finding(identity, "unknown", (name,), "Docker did not tell of its containers in time")


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
