"""Checks of the room where a node's engine keeps its images, and how to give it more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from clusterft.checks.sizes import size
from clusterft.checks.survey import Survey
from clusterft.facts import Docker, NodeFacts, Room
from clusterft.findings import Finding

_OWN_KINDS = ("ext4", "xfs", "btrfs", "zfs")  # on which the engine keeps layers
_FEW_INODES = 10_000  # an image of some gigabytes has more files than this
PRUNE = "docker image prune   (removes images without a name that no container uses; with -a all unused ones)"
_BLAST = "Docker's images; moving its data stops all containers of the node meanwhile"


def images(survey: Survey, needed: Mapping[str, int]) -> Iterator[Finding]:
    """os.disk-full and os.inodes where the engine keeps images; `needed` is node -> bytes."""
    for name, facts in survey.facts.items():
        docker = facts.docker
        if docker is None or docker.state != "ok" or name not in needed:
            continue
        if docker.store is None or docker.free_bytes is None:
            yield Finding("os.disk-full", "unknown", (name,), "the room for Docker's images could not be read")
            continue
        if docker.free_bytes < needed[name]:
            yield Finding(
                id="os.disk-full",
                status="fail",
                nodes=(name,),
                summary="has not the room for the image where Docker keeps its images",
                evidence=f"{size(docker.free_bytes)} free in {docker.store} (on {docker.mounted_on}), "
                f"{size(needed[name])} needed",
                fix=(PRUNE, *_move(facts, docker)),
                needs_root=True,
                blast_radius=_BLAST,
            )
        if docker.free_inodes is not None and docker.free_inodes < _FEW_INODES:
            yield Finding(
                id="os.inodes",
                status="fail",
                nodes=(name,),
                summary="has not the inodes for an image where Docker keeps its images",
                evidence=f"{docker.free_inodes} inodes free in {docker.store} (on {docker.mounted_on})",
                fix=(PRUNE, *_move(facts, docker)),
                needs_root=True,
                blast_radius=_BLAST,
            )


def _move(facts: NodeFacts, docker: Docker) -> tuple[str, ...]:
    """Moving the engine's data; rsync with -HAX, as layers hold hard links and attributes that -a loses."""
    old = docker.store or "/var/lib/docker"
    new = str(PurePosixPath(_elsewhere(facts, docker)) / PurePosixPath(old).name)
    if old == docker.root:
        setting = f'in /etc/docker/daemon.json set "data-root": "{new}"   (create the file if there is none)'
        units, check = "docker", "docker info -f '{{.DockerRootDir}}'"
    else:
        setting = f'in /etc/containerd/config.toml set root = "{new}"   (images lie with containerd here)'
        units, check = "containerd docker", "docker images"
    return (
        "or move Docker's data to a disk with more room:",
        f"sudo systemctl stop docker.socket {units}",
        f"sudo mkdir -p {new}",
        f"sudo rsync -aHAXP {old}/ {new}/",
        setting,
        f"sudo systemctl start {units}",
        f"{check}   (when all works: sudo rm -rf {old})",
    )


def _elsewhere(facts: NodeFacts, docker: Docker) -> str:
    """The roomiest disk of the node's own that is not the full one, if one is mounted."""
    mounts = {mount.target: mount for mount in facts.mounts or ()}
    full = [room.device for room in facts.rooms or () if room.mounted_on == docker.mounted_on]

    def fits(room: Room) -> bool:
        mount = mounts.get(room.mounted_on)
        plain = mount is not None and mount.fstype in _OWN_KINDS and "ro" not in mount.options.split(",")
        return plain and room.device not in full and not room.mounted_on.startswith(("/boot", docker.root or "/"))

    found = [room for room in facts.rooms or () if fits(room)]
    best = max(found, key=lambda room: room.free_bytes, default=None)
    return best.mounted_on if best and best.free_bytes > 2 * (docker.free_bytes or 0) else "/mnt/new-disk"
