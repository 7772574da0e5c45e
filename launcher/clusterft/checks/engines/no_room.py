"""What is full where an engine has no room to start a container: by the path in its own words. Pure.

Owns that images are only to blame where they lie on that very filesystem.
"""

from __future__ import annotations

from clusterft.checks import docker_room
from clusterft.checks.engines.words import last
from clusterft.checks.examination import Examination
from clusterft.checks.sizes import size
from clusterft.facts import Docker
from clusterft.facts import box as answers
from clusterft.facts.box import Box
from clusterft.facts.storage import Disk
from clusterft.findings import Finding

_FULL = 4 * 2**20  # bytes; an engine that is refused a small file has less
_FEW_INODES = 16
_MEMORY = ("/run", "/dev/shm", "/tmp")
_KERNEL = ("/sys/", "/proc/")  # no disk's: there it means that the kernel makes no more of what was asked for


def found(seen: Examination, name: str, box: Box) -> Finding:
    """os.disk-full or os.inodes with the filesystem that is full; dk.box where none is known to be."""
    path, facts = answers.full(box.words), seen.survey.facts.get(name)
    engine = facts.docker if facts else None
    if path.startswith(_KERNEL):
        return _of_kernel(name, path, last(box.words))
    at = box.room.mounted_on if box.room else _guessed(path)
    if box.room and box.room.free_inodes is not None and box.room.free_inodes < _FEW_INODES:
        return _files(name, box, box.room)
    if box.room and box.room.free_bytes >= _FULL:
        return _roomy(name, path, box, box.room)
    ours = _holds(engine, path, at)
    where = f": {at} is full" if box.room else f": {at} seems to be full" if at else ""
    return Finding(
        id="os.disk-full",
        status="fail",
        nodes=(name,),
        summary=f"Docker has no room to start a container{where}",
        evidence="\n".join((last(box.words), *_room(box.room))),
        fix=_fix(at, ours=ours, known=engine is not None),
        needs_root=True,
        blast_radius="Docker's images" if ours else f"what is removed from {at or 'that disk'}",
    )


def keys(name: str, words: str) -> Finding:
    """dk.box: the quota of keys in the kernel, of which each container takes one."""
    return Finding(
        id="dk.box",
        status="fail",
        nodes=(name,),
        summary="no container can be started: the kernel keeps no more keys for Docker's user",
        evidence=words,
        cause="each container has a key in the kernel, and kernel.keys.maxkeys is reached; no disk is full",
        fix=(
            "sudo sysctl -w kernel.keys.root_maxkeys=1000000 kernel.keys.maxkeys=20000",
            "the same in /etc/sysctl.d/99-keys.conf, for the next boot",
        ),
        needs_root=True,
        blast_radius="a limit of the kernel",
    )


def _fix(at: str, *, ours: bool, known: bool) -> tuple[str, ...]:
    if not at:  # the engine has not named a path
        look = "df -h; df -i   (what is at 100 %)"
        return (look, f"if that is where Docker keeps its images: {docker_room.PRUNE}")
    biggest = (
        f"sudo du -xah {at} | sort -h | tail -n 20   names what is big"
        if at != "/"
        else "sudo du -xh / --max-depth=3 | sort -h | tail -n 20   names what is big"
    )
    if ours:
        return (docker_room.PRUNE, biggest)
    return (biggest, f"then remove what is not needed of that, and stop what writes it to {at}")


def _holds(engine: Docker | None, path: str, at: str) -> bool:
    """Whether images lie on what is full."""
    roots = [one for one in (engine.root, engine.store) if one] if engine else ["/var/lib/docker"]
    within = any(f"{path}/".startswith(f"{root.rstrip('/')}/") for root in roots)
    return within or bool(engine and engine.mounted_on and engine.mounted_on == at)


def _guessed(path: str) -> str:
    """The filesystem of a path that was not looked at: by custom, else the path's own beginning."""
    return next((one for one in _MEMORY if path.startswith(f"{one}/")), "/".join(path.split("/")[:4]))


def _room(room: Disk | None) -> tuple[str, ...]:
    if room is None:
        return ()
    inodes = f", {room.free_inodes} inodes" if room.free_inodes is not None else ""
    return (f"df: {size(max(0, room.free_bytes))}{inodes} free on {room.mounted_on}",)


def _files(name: str, box: Box, room: Disk) -> Finding:
    return Finding(
        id="os.inodes",
        status="fail",
        nodes=(name,),
        summary=f"Docker has no room to start a container: no more files can be made on {room.mounted_on}",
        evidence="\n".join((last(box.words), *_room(room))),
        cause="very many small files",
        fix=(f"sudo du -x --inodes {room.mounted_on} | sort -n | tail -n 20   names where they lie",),
        needs_root=True,
        blast_radius=f"what is removed from {room.mounted_on}",
    )


def _roomy(name: str, path: str, box: Box, room: Disk) -> Finding:
    """The filesystem has room by now: a quota, or something that came and went."""
    return Finding(
        id="os.disk-full",
        status="fail",
        nodes=(name,),
        summary="Docker says that it has no room to start a container",
        evidence="\n".join((last(box.words), *_room(room))),
        cause="a quota of that directory, a limit of the kernel's (mounts, watches), or it was full for a moment",
        fix=(
            f"sudo df -h {path}; sudo df -i {path}   (the nearest directory of it that is there)",
            "sysctl fs.mount-max fs.inotify.max_user_instances fs.inotify.max_user_watches",
            "sudo journalctl -u docker -n 50   (why)",
        ),
        needs_root=True,
        blast_radius="nothing yet",
    )


def _of_kernel(name: str, path: str, words: str) -> Finding:
    return Finding(
        id="dk.box",
        status="fail",
        nodes=(name,),
        summary="no container can be started: the kernel refuses what Docker asks of it",
        evidence=words,
        cause=f"{path} lies on no disk: the kernel has no more cgroups, or the one above it gives no processors",
        fix=(
            "cat /proc/cgroups   (num_cgroups in the ten thousands: many are left over, which a reboot ends)",
            "sudo journalctl -u docker -n 50   (why)",
        ),
        needs_root=True,
        blast_radius="nothing yet",
    )
