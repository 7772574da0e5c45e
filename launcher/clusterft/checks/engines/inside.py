"""What a container that was started could not do in it: begin a thread, or have memory. Pure.

No limit of the login counts there. A C library begins threads with clone3 and goes back to clone for ENOSYS alone;
a seccomp profile of an older time answers EPERM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clusterft.checks.engines.words import last
from clusterft.checks.examination import Examination
from clusterft.facts import Docker
from clusterft.facts.box import NO_LIMIT, Box, Threads
from clusterft.findings import Finding

_OWN = ("default", "builtin")  # Docker's own profile, by the engine's age
_UNCONFINED = "unconfined"
_KNOWS_CLONE3 = (20, 10, 10)  # the first engine whose own profile does
_RESTART = "sudo systemctl restart docker"
_LIMITED = (
    "grep -n -e default-ulimits -e default-pids-limit -e cgroup-parent /etc/docker/daemon.json   (what limits it)",
    f"take that out, then: {_RESTART}",
)


def found(seen: Examination, name: str, box: Box) -> Finding:
    """dk.box, of a container that runs."""
    facts = seen.survey.facts.get(name)
    engine = facts.docker if facts else None
    return _starved(name, box) if box.refused == "starved" else _threadless(seen, name, box, engine)


def _threadless(seen: Examination, name: str, box: Box, engine: Docker | None) -> Finding:
    told = box.threads or Threads()
    cause, fix = _why(engine, told)
    return Finding(
        id="dk.box",
        status="fail",
        nodes=(name,),
        summary="a container of the image starts, and no thread can be begun in it",
        evidence="\n".join((last(box.words), *_told(told), *_profiles(seen, name, engine))),
        cause=cause,
        fix=fix,
        needs_root=True,
        blast_radius="all containers of the node, which stop when Docker restarts",
    )


def _why(engine: Docker | None, told: Threads) -> tuple[str, tuple[str, ...]]:
    """Cause and fix: what the kernel answered in there comes before what the engine tells of itself."""
    profile = engine.seccomp if engine else None
    own = profile if profile and profile not in (*_OWN, _UNCONFINED) else None
    if told.clone3 in ("EPERM", "EACCES"):
        return _forbidden(engine, own, "answers clone3 with EPERM, and then no thread begins")
    if told.clone3 is None and (own or _old(engine)):
        return _forbidden(engine, own, "may forbid clone3, with which threads begin")
    if limits := tuple(_limits(told)):
        return f"as it seems, a limit of the container's: {', '.join(limits)}", _LIMITED
    return _forbidden(engine, own, "may forbid a call that threads need") if own else ("", _LIMITED)


def _forbidden(engine: Docker | None, own: str | None, how: str) -> tuple[str, tuple[str, ...]]:
    """By seccomp: a profile that was set, an engine older than the call, or what the engine is built on."""
    if own:
        out = f'take "seccomp-profile": "{own}" out of /etc/docker/daemon.json (or dockerd\'s own command)'
        return f"Docker's seccomp profile for containers, {own}, {how}", (f"{out}, then: {_RESTART}",)
    if engine and _old(engine):
        newer = "install Docker Engine 20.10.10 or later: https://docs.docker.com/engine/install/"
        return f"the seccomp profile of Docker {engine.version}, which does not know clone3, {how}", (newer,)
    newer = "sudo apt-get install --only-upgrade libseccomp2 containerd.io runc   (or what the system calls them)"
    return f"the seccomp filter of its containers {how}, as with an old runc or libseccomp", (newer, _RESTART)


def _old(engine: Docker | None) -> bool:
    version = _version(engine.version) if engine else ()
    return bool(version) and version < _KNOWS_CLONE3 and engine is not None and engine.seccomp in _OWN


def _version(text: str | None) -> tuple[int, ...]:
    found = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text or "")
    return tuple(int(part) for part in found.groups()) if found else ()


def _limits(told: Threads) -> Iterator[str]:
    if told.processes not in (None, NO_LIMIT):
        yield f"{told.processes} processes of one user (ulimit -u)"
    if told.pids is not None:
        yield f"{told.pids} processes (pids.max)"


def _told(told: Threads) -> Iterator[str]:
    """What the kernel said in there."""
    if told.clone3:
        yield f"in the container: clone3 ends with {told.clone3}"
    yield from (f"in the container: at most {one}" for one in _limits(told))


def _profiles(seen: Examination, name: str, engine: Docker | None) -> Iterator[str]:
    """Of this engine, and of those that have another one."""
    if engine is None or engine.seccomp is None:
        return
    yield f"{name}: Docker {engine.version}, seccomp profile {engine.seccomp}"
    for other, facts in seen.survey.facts.items():
        profile = facts.docker.seccomp if facts.docker else None
        if profile and (profile in _OWN) != (engine.seccomp in _OWN):
            yield f"{other}: Docker {facts.docker.version if facts.docker else ''}, seccomp profile {profile}"


def _starved(name: str, box: Box) -> Finding:
    return Finding(
        id="dk.box",
        status="fail",
        nodes=(name,),
        summary="a container of the image starts, and Python in it gets no memory",
        evidence=last(box.words),
        cause="a limit of Docker's on its containers, or a node whose memory is taken",
        fix=(
            "free -m   (what is left on the node)",
            "grep -n -e default-ulimits -e cgroup-parent /etc/docker/daemon.json   (what limits containers)",
        ),
        needs_root=True,
        blast_radius="nothing yet",
    )
