"""Checks of a container of the run's own image, made with a run's limits, mounts and cards: what came of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from clusterft.checks import docker, gpu, job
from clusterft.checks.accelerators import cards as accelerator_cards
from clusterft.checks.engines import inside, no_room
from clusterft.checks.engines.words import last
from clusterft.checks.examination import Examination
from clusterft.facts import box as box_facts
from clusterft.facts.box import NO_LIMIT, Box
from clusterft.facts.gpu import Gpu
from clusterft.findings import Finding

RESTART = "sudo systemctl restart docker"
_TOO_OLD = re.compile(r"driver .*too old|Error 80[34]\b|insufficient for CUDA|forward compatibility")
_FABRIC = re.compile(r"Error 802\b|system not yet initialized")


def started(seen: Examination) -> Iterator[Finding]:
    """What an engine refused to start, under the id of its reason; dk.box for any other reason."""
    for name, box in seen.boxes.items():
        if box.refused == "runtime gone":
            yield _gone(seen, name, box)
        elif box.refused == "room":
            yield no_room.found(seen, name, box)
        elif box.refused in ("threadless", "starved"):
            yield inside.found(seen, name, box)
        elif box.refused is not None and box.refused in _TOLD:
            yield _TOLD[box.refused](name, box)
        elif box.refused in ("other", "nvml"):
            yield _box(name, box, "no container of the image can be started")
        elif box.refused == "hung":
            yield _box(
                name,
                box,
                "Docker does not start a container of the image in time",
                fix=("sudo systemctl restart containerd docker", "sudo journalctl -u docker -u containerd -n 50"),
            )


def locked(seen: Examination) -> Iterator[Finding]:
    """os.memlock, as the container has it: InfiniBand pins the memory that it reads and writes."""
    for name, box in seen.boxes.items():
        if box.pinned and box.memlock is not None and box.memlock != NO_LIMIT:
            yield Finding(
                id="os.memlock",
                status="fail",
                nodes=(name,),
                summary="a container may lock too little memory for InfiniBand, though it asks for all",
                evidence=f"ulimit -l in the container: {box.memlock // 1024} KiB",
                fix=(
                    'in /etc/docker/daemon.json: "default-ulimits": {"memlock": {"Name": "memlock", "Soft": -1, '
                    '"Hard": -1}}   then: sudo systemctl restart docker',
                ),
                needs_root=True,
                blast_radius="all containers of the node, which stop when Docker restarts",
            )


def mounted(seen: Examination) -> Iterator[Finding]:
    """dk.early-mount of the engine itself: even a new container sees another filesystem than the node."""
    for name, box in seen.boxes.items():
        health = seen.health.get(name)
        here = health.docker.here if health else None
        if box.sees is None or here is None or box.sees.device == here.device:
            continue
        if "autofs" not in (box.sees.mount.fstype, here.mount.fstype):
            yield Finding(
                id="dk.early-mount",
                status="fail",
                nodes=(name,),
                summary=f"even a new container sees another filesystem at {seen.wanted.shared} than the node does",
                evidence=f"inside: {box.sees}\noutside: {here}",
                cause="Docker was started before the share was mounted, and does not learn of later mounts",
                fix=(f"on {name}: sudo systemctl restart docker",),
                needs_root=True,
                blast_radius="all containers of the node, which stop when Docker restarts",
            )


def cards(seen: Examination) -> Iterator[Finding]:
    """dk.nogpu, gpu.fabric, gpu.old-driver, dk.box: what a container can do with the cards that it was given."""
    for name, box in seen.boxes.items():
        words = box.smi or ""
        if box.carded and box.smi_code and "Failed to initialize NVML" in words:
            yield Finding(
                id="dk.nogpu",
                status="fail",
                nodes=(name,),
                summary="a new container cannot use the cards that it is given",
                evidence=f"nvidia-smi inside: {words}",
                cause="the NVIDIA container toolkit hands the cards over, and the container's cgroup forbids them",
                fix=(
                    "in /etc/nvidia-container-runtime/config.toml set no-cgroups = false, then: sudo systemctl "
                    "restart docker",
                ),
                needs_root=True,
                blast_radius="all containers of the node, which stop when Docker restarts",
            )
        elif box.carded and box.torch and box.torch.available is False and _torch_counts(seen):
            yield _blind(name, box)


def archs(seen: Examination) -> Iterator[Finding]:
    """gpu.arch: cards for which the image's torch holds no code."""
    nodes = {node.name: node for node in seen.survey.cluster.active}
    for name, box in seen.boxes.items():
        facts = seen.survey.facts.get(name)
        if not (facts and box.torch and box.torch.archs and _torch_counts(seen)):
            continue
        lacking = [card for card in job.used(nodes[name], facts) if not _serves(box.torch.archs, card)]
        if lacking:
            shown = ", ".join(f"card {one.index} ({one.name}): {one.compute_cap}" for one in lacking)
            yield Finding(
                id="gpu.arch",
                status="fail",
                nodes=(name,),
                summary="the image's torch holds no code for its cards",
                evidence=f"{shown}\ntorch {box.torch.version}: {' '.join(box.torch.archs)}",
                cause="torch was built before such cards, or no longer for them",
                fix=("an image with another torch: image: in job.yaml, then clusterft up",),
                blast_radius="the image, on all nodes",
            )


def nccl(seen: Examination) -> Iterator[Finding]:
    """nccl.version: versions that cannot talk with each other."""
    known = {name: box.torch.nccl for name, box in seen.boxes.items() if box.torch and box.torch.nccl}
    if len(set(known.values())) < 2 or not _torch_counts(seen):
        return
    usual = Counter(known.values()).most_common(1)[0][0]
    yield Finding(
        id="nccl.version",
        status="fail",
        nodes=tuple(name for name, version in known.items() if version != usual),
        summary=f"has another NCCL in its image than the rest, which have {usual}",
        evidence="\n".join(f"{name}: NCCL {version}" for name, version in known.items()),
        cause="one tag, and different images under it",
        fix=("clusterft up",),
        blast_radius="the image",
    )


def _torch_counts(seen: Examination) -> bool:
    """Whether a run uses the image's own python; another one may be mounted."""
    return seen.wanted.job is None or seen.wanted.job.python is None


def _serves(built: tuple[str, ...], card: Gpu) -> bool:
    """Code for a card's own generation up to its version, or PTX up to it, runs there. Unknown is served."""
    if card.compute_cap is None:
        return True
    major, minor = (int(part) for part in card.compute_cap.split("."))
    for one in built:
        match = re.fullmatch(r"(sm|compute)_(\d{1,2})(\d)([af]?)", one)
        if match is None:
            continue
        theirs = (int(match.group(2)), int(match.group(3)))
        if match.group(4):
            fits = theirs == (major, minor)
        elif match.group(1) == "sm":
            fits = theirs[0] == major and theirs[1] <= minor
        else:
            fits = theirs <= (major, minor)
        if fits:
            return True
    return False


def _blind(name: str, box: Box) -> Finding:
    """torch sees no card, though the container has some."""
    words = box.torch.complaints if box.torch else ""
    told = words or "torch.cuda.is_available() is False"
    if _FABRIC.search(words):
        return Finding(
            id="gpu.fabric",
            status="fail",
            nodes=(name,),
            summary="CUDA does not start: the switches between the cards are not set up",
            evidence=told,
            cause="the fabric manager is not running, or is of another version than the driver",
            fix=(
                "sudo systemctl enable --now nvidia-fabricmanager",
                "sudo journalctl -u nvidia-fabricmanager -n 30",
            ),
            needs_root=True,
            blast_radius="a system service",
        )
    if _TOO_OLD.search(words):
        return accelerator_cards.too_old(name, told)
    if box.torch and box.torch.cuda is None:
        return _box(
            name,
            box,
            "the image's torch is built without CUDA",
            fix=("an image whose torch has CUDA: image: in job.yaml, then clusterft up",),
            evidence=f"torch {box.torch.version}",
            blast="the image, on all nodes",
        )
    return _box(name, box, "the image's torch sees none of the cards", evidence=told)


def _box(
    name: str, box: Box, summary: str, *, fix: tuple[str, ...] = (), evidence: str = "", blast: str = ""
) -> Finding:
    return Finding(
        id="dk.box",
        status="fail",
        nodes=(name,),
        summary=summary,
        evidence=evidence or last(box.words),
        fix=fix or ("sudo journalctl -u docker -n 50   (why)", "sudo systemctl restart docker"),
        needs_root=not blast,
        blast_radius=blast or "all containers of the node, which stop when Docker restarts",
    )


def _runtime(name: str, box: Box) -> Finding:
    return Finding(
        id="dk.runtime",
        status="fail",
        nodes=(name,),
        summary="Docker does not know the NVIDIA runtime",
        evidence=last(box.words),
        fix=docker.CONFIGURE,
        needs_root=True,
        blast_radius=docker.RESTARTS,
    )


def _gone(seen: Examination, name: str, box: Box) -> Finding:
    """The engine knows the runtime, and its program is not there."""
    program, facts = box_facts.gone(box.words), seen.survey.facts.get(name)
    engine = facts.docker if facts else None
    default = engine.default_runtime if engine else None
    ours, cuda = "nvidia" in program, seen.wanted.device == "cuda"
    package = "nvidia-container-toolkit" if ours else "the package that has it, such as runc"
    again = (f"install {package} again: sudo apt-get install --reinstall {package if ours else 'runc'}", RESTART)
    without = f'in /etc/docker/daemon.json remove "default-runtime": "{default}", then: {RESTART}'
    by_default = ours and default is not None and default != "runc"
    fix = again if cuda or not by_default else (f"{without}   (this job needs no cards)", f"or {again[0]}")
    why = f"; {default} is the default, so that no container starts, with cards or without" if by_default else ""
    return Finding(
        id="dk.runtime" if ours else "dk.box",
        status="fail",
        nodes=(name,),
        summary=f"Docker knows its runtime, and the program of it is missing: {program}",
        evidence=last(box.words),
        cause=f"its package was removed, and /etc/docker/daemon.json still names it{why}",
        fix=fix,
        needs_root=True,
        blast_radius=docker.RESTARTS,
    )


def _libraries(name: str, box: Box) -> Finding:
    return Finding(
        id="dk.nogpu",
        status="fail",
        nodes=(name,),
        summary="the NVIDIA container toolkit does not find the driver",
        evidence=last(box.words),
        cause="the driver's libraries are not among those that the linker knows, or its module is not loaded",
        fix=(
            "sudo ldconfig && sudo modprobe nvidia",
            "nvidia-container-cli info   (says whether it is found now)",
        ),
        needs_root=True,
        blast_radius="nothing that runs",
    )


def _no_card(name: str, box: Box) -> Finding:
    return Finding(
        id="gpu.count",
        status="fail",
        nodes=(name,),
        summary="a card of the hostfile cannot be given to a container",
        evidence=last(box.words),
        fix=("correct gpus= in the hostfile; nvidia-smi -L names the cards",),
        blast_radius="the hostfile",
    )


_TOLD: dict[str, Callable[[str, Box], Finding]] = {
    "no toolkit": lambda name, box: docker.no_toolkit(name, last(box.words)),
    "no runtime": _runtime,
    "old driver": lambda name, box: accelerator_cards.too_old(name, last(box.words)),
    "mismatch": lambda name, box: gpu.upgraded(name, last(box.words)),
    "no driver": _libraries,
    "no card": _no_card,
    "keys": lambda name, box: no_room.keys(name, last(box.words)),
}
