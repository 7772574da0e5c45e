"""What `docker version` and `docker info` say -> Docker. Pure; an answer that is no JSON is kept as its words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from clusterft.facts import storage

State = Literal["ok", "absent", "down", "denied"]
_SOCKET_OF_SYSTEM = "/run/containerd/"  # a containerd that is not the engine's own keeps images elsewhere
_SILENT = "no answer to `docker version` within 4 s"


@dataclass(frozen=True, slots=True)
class Docker:
    """The engine as the SSH user meets it. Beside `state`, `path` and `words` all is unknown unless it is ok."""

    state: State
    command: tuple[str, ...] = ()  # what to put before a docker subcommand
    path: str | None = None  # the command, links resolved
    snap: bool = False
    words: str = ""  # its own words when it is not ok, and warnings when it is
    version: str | None = None
    api: str | None = None
    arch: str | None = None  # as images name it: amd64, arm64
    root: str | None = None
    driver: str | None = None
    runtimes: tuple[str, ...] | None = None
    default_runtime: str | None = None  # what starts a container that asks for none
    cdi: tuple[str, ...] | None = None  # devices that the engine itself lists, such as nvidia.com/gpu=all
    rootless: bool | None = None
    remapped: bool | None = None  # users of containers are others on the node (userns-remap)
    seccomp: str | None = None  # the profile of containers: default, builtin, unconfined, or the path of a file
    store: str | None = None  # where images lie: the root, or the root of the system's containerd
    free_bytes: int | None = None  # room of the store
    free_inodes: int | None = None
    mounted_on: str | None = None  # the filesystem of the store


def parse(sections: dict[str, str]) -> Docker | None:
    """The engine of one node; None when nothing at all can be said."""
    paths = sections["docker.path"].splitlines()
    if not paths:
        return None
    if paths == ["none"]:
        return Docker("absent", words="there is no docker command")
    path = paths[-1]
    snap = any(each.startswith("/snap/") for each in paths) or path.endswith("/snap")
    how, _, said = sections["docker.version"].partition("\n")
    if how not in ("docker", "sudo"):
        return None
    command = ("docker",) if how == "docker" else ("sudo", "-n", "docker")
    version, words = _answer(said)
    if version is None or not isinstance(version.get("ApiVersion"), str):
        denied = "permission denied" in words.lower()
        return Docker("denied" if denied else "down", path=path, snap=snap, words=words or _SILENT)
    info, more = _answer(sections["docker.info"])
    info = info or {}
    root, containerd = _text(info, "DockerRootDir"), _containerd(info)
    store, room = root, storage.disk(root or "", sections["docker.root"])
    if containerd and _address(info).startswith(_SOCKET_OF_SYSTEM) and sections["docker.store"].strip():
        store, room = "/var/lib/containerd", storage.disk("/var/lib/containerd", sections["docker.store"])
    return Docker(
        state="ok",
        command=command,
        path=path,
        snap=snap or bool(root and root.startswith("/var/snap/")),
        words="\n".join(each for each in (words, more) if each),
        version=_text(version, "Version"),
        api=version["ApiVersion"],
        arch=_text(version, "Arch"),
        root=root,
        driver=_text(info, "Driver"),
        runtimes=_keys(info.get("Runtimes")),
        default_runtime=_text(info, "DefaultRuntime"),
        cdi=_devices(info.get("DiscoveredDevices")),
        rootless=_secured(info.get("SecurityOptions"), "name=rootless"),
        remapped=_secured(info.get("SecurityOptions"), "name=userns"),
        seccomp=_seccomp(info.get("SecurityOptions")),
        store=store,
        free_bytes=room.free_bytes if room else None,
        free_inodes=room.free_inodes if room else None,
        mounted_on=room.mounted_on if room else None,
    )


def _answer(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object among the lines, and the other lines: warnings, or the reason why there is none."""
    found: dict[str, Any] | None = None
    words = []
    for line in text.splitlines():
        value = _json(line)
        if isinstance(value, dict):
            found = value
        elif line.strip() and line.strip() != "null":
            words.append(line.strip())
    return found, "\n".join(words)


def _json(line: str) -> object:
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _text(of: dict[str, Any], key: str) -> str | None:
    value = of.get(key)
    return value if isinstance(value, str) and value else None


def _containerd(info: dict[str, Any]) -> bool | None:
    """Whether images lie with containerd: its snapshotters say so in the driver's status."""
    status = info.get("DriverStatus")
    if not isinstance(status, list):
        return None
    return any("io.containerd.snapshotter" in str(part) for row in status if isinstance(row, list) for part in row)


def _address(info: dict[str, Any]) -> str:
    """The socket of containerd; engines before 27 do not tell, and a socket in the usual place is then theirs."""
    containerd = info.get("Containerd")
    address = containerd.get("Address") if isinstance(containerd, dict) else None
    return address if isinstance(address, str) else _SOCKET_OF_SYSTEM


def _keys(value: object) -> tuple[str, ...] | None:
    return tuple(sorted(str(key) for key in value)) if isinstance(value, dict) else None


def _devices(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(str(each["ID"]) for each in value if isinstance(each, dict) and "ID" in each)


def _secured(value: object, word: str) -> bool | None:
    if not isinstance(value, list):
        return None
    return any(word in str(each) for each in value)


def _seccomp(value: object) -> str | None:
    """`name=seccomp,profile=...`; an engine without seccomp lists none."""
    for each in value if isinstance(value, list) else ():
        name, _, profile = str(each).partition(",profile=")
        if name == "name=seccomp":
            return profile or None
    return None
