"""Images of full nodes: one per engine version, built once and kept; settings make several kinds of it.

Owns where an image comes from, in this order: the engine, the cache directory, a
build. The base is pulled where a registry can be reached, and made with debootstrap
where it cannot. Refuses to name a package server: it uses those of this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import packages
from .engine import LABEL, cache_dir, docker
from .errors import LabError, LabUnavailable
from .proc import run

_CONTEXT = Path(__file__).with_name("node_image")


@dataclass(frozen=True, slots=True)
class EngineKind:
    """The Debian release that carries an engine, the packages that make it up, its daemon.json."""

    version: str
    suite: str
    packages: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def daemon_json(self) -> str:
        """What dockerd reads as /etc/docker/daemon.json; empty: there is no such file."""
        return json.dumps(self.settings) if self.settings else ""


# The c of 28.5c: images are in the containerd store, as newer engines keep them unasked.
ENGINES = {
    "20.10": EngineKind("20.10", "bookworm", "docker.io"),
    "26.1": EngineKind("26.1", "trixie", "docker.io docker-cli"),
    "28.5": EngineKind("28.5", "sid", "docker.io docker-cli"),
    "28.5c": EngineKind("28.5", "sid", "docker.io docker-cli", {"features": {"containerd-snapshotter": True}}),
}
# Debian's unstable index is dated to a week or two, and mirrors that keep a snapshot of
# it hold an older one. Its signature is checked all the same.
_APT_OPTIONS = {"sid": "-o Acquire::Check-Valid-Until=false"}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def node_image(engine: str) -> str:
    """The tag of the node image with that engine; builds it if nobody has yet."""
    if engine not in ENGINES:
        raise LabError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    kind = ENGINES[engine]
    tag = f"clusterft-lab-node:{kind.version}-{_digest(kind.suite, kind.packages)}"
    with (cache_dir() / f"node-{kind.version}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not _has(tag) and not _load(tag):
            _build(tag, kind.suite, kind.packages)
            _store(tag)
            _forget_older(tag)
    return tag


def _digest(suite: str, carriers: str) -> str:
    whole = hashlib.sha256(f"{suite} {carriers}".encode())
    for path in sorted(_CONTEXT.iterdir()):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:12]


def _has(tag: str) -> bool:
    return bool(docker("image", "ls", "--quiet", tag))


def _archive(tag: str) -> Path:
    return cache_dir() / (re.sub(r"[^\w.-]", "-", tag) + ".tar")


def _load(tag: str) -> bool:
    archive = _archive(tag)
    if not archive.exists():
        return False
    docker("load", "--input", str(archive), timeout=180)
    return _has(tag)


def _store(tag: str) -> None:
    """Keep a copy for an engine that starts empty; older images of that engine go."""
    archive = _archive(tag)
    fresh = archive.with_name(archive.name + ".new")
    docker("save", "--output", str(fresh), tag, timeout=180)
    for old in archive.parent.glob(archive.name.rpartition("-")[0] + "-*.tar"):
        old.unlink()
    fresh.replace(archive)


def _forget_older(tag: str) -> None:
    """Remove earlier node images of the same engine; one that a lab still uses stays."""
    family = tag.rpartition("-")[0]
    tags = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", tag.partition(":")[0])
    for old in tags.split():
        if old != tag and old.rpartition("-")[0] == family:
            docker("image", "rm", old, check=False)


def _build(tag: str, suite: str, carriers: str) -> None:
    base = base_image(suite)
    arguments = {"BASE": base, "ENGINE_PACKAGES": carriers}
    arguments["APT_OPTIONS"] = _APT_OPTIONS.get(suite, "")
    arguments |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
    given = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
    # The host's network, so that a build reaches whatever package server this machine reaches.
    docker(
        "build",
        "--quiet",
        "--force-rm",
        "--network=host",
        "--label",
        f"{LABEL}=image",
        *given,
        "--tag",
        tag,
        str(_CONTEXT),
        timeout=600,
    )


def base_image(suite: str) -> str:
    """debian:SUITE-slim, from the engine, the cache, a registry, or debootstrap."""
    tag = f"debian:{suite}-slim"
    if _has(tag) or _load(tag):
        return tag
    try:
        docker("pull", "--quiet", tag, timeout=90)
    except LabError as error:
        if not packages.can_install():
            raise LabUnavailable(
                f"{tag} is neither here nor can it be pulled ({str(error).splitlines()[-1]})",
                "docker load an image of that name, or run as root on Debian",
            ) from error
        _bootstrap(suite, tag)
    _store(tag)
    return tag


def _bootstrap(suite: str, tag: str) -> None:
    """Make the base from Debian's packages."""
    packages.ensure(["debootstrap"])
    work = Path(tempfile.mkdtemp(prefix="clusterft-lab-base-"))
    try:
        root, archive = work / "root", work / "base.tar"
        run(["debootstrap", "--variant=minbase", suite, str(root), *packages.debian_mirror()], timeout=600)
        for litter in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / litter, ignore_errors=True)
        run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(archive), "."], timeout=120)
        docker("import", "--change", 'CMD ["bash"]', str(archive), tag, timeout=120)
    finally:
        shutil.rmtree(work)
