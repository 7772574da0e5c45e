"""What the controller remembers of a cluster between commands: its hostfile, what `up` was told, what came of it.

Only `up` writes here, and `doctor --fix` the addresses; `down` takes it away. A file appears whole or not at all.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from clusterft import commands, hosts, places
from clusterft.apply import record
from clusterft.apply.record import Note
from clusterft.errors import UsageError
from clusterft.hosts import Cluster
from clusterft.places import ClusterPlaces
from clusterft.remote import private
from clusterft.ship import ImageParts

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The contents of settings.json."""

    id: str = ""  # of this cluster as this controller made it: in the names of its images
    image: dict[str, Any] | None = None  # the image: block, as ImageSpec wrote it
    tag: str | None = None  # what every node that is up calls the image
    tried: str | None = None  # config digest of the image that passed its self-test
    parts: ImageParts | None = None  # so that a second `up` need not take the image apart again
    device: Literal["cuda", "cpu"] = "cuda"
    shared: str | None = None
    nodes: tuple[str, ...] = ()  # up at last sight
    with_image: bool = True  # False: its job runs processes, and describes no image


def cluster_places(cluster: str) -> ClusterPlaces:
    """Where this controller keeps a cluster."""
    return ClusterPlaces(places.controller_home(), cluster)


def load(where: ClusterPlaces) -> Settings | None:
    """What `up` left; None before the first one."""
    try:
        body = json.loads(where.settings.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be read: {error}", where=str(where.settings), remedy="clusterft up   writes it anew"
        ) from None
    try:
        if body["schema"] != SCHEMA:
            raise ValueError(f"schema {body['schema']}")
        parts = body["parts"]
        return Settings(
            **{name: body[name] for name in ("id", "image", "tag", "tried", "device", "shared")},
            nodes=tuple(body["nodes"]),
            with_image=bool(body.get("with_image", True)),  # versions before this one brought it always
            parts=parts and ImageParts.from_dict(parts),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is not what this version writes ({type(error).__name__}: {error})"
        raise UsageError(what, where=str(where.settings), remedy="clusterft up   writes it anew") from None


def load_if_sound(where: ClusterPlaces) -> Settings | None:
    """For `up`, which writes it anew: what cannot be read counts as nothing."""
    try:
        return load(where)
    except UsageError:
        return None


def save(where: ClusterPlaces, settings: Settings) -> bool:
    """Write it down; whether that changed anything."""
    parts = settings.parts and settings.parts.to_dict()
    plain = {field.name: getattr(settings, field.name) for field in fields(settings)}
    body = {"schema": SCHEMA, **plain, "parts": parts}
    return write(where.settings, json.dumps(body, indent=2) + "\n")


def pin(where: ClusterPlaces, node: str, address: str) -> None:
    """Dial a node at this address from now on, unless its hostfile says another one."""
    body = {"schema": SCHEMA, "addresses": {**_addresses(where), node: address}}
    write(where.addresses, json.dumps(body, indent=2) + "\n")


def remember(where: ClusterPlaces, cluster: Cluster) -> tuple[str, ...]:
    """Keep the hostfile, and make this the cluster of commands that name none; what changed."""
    changes = []
    if write(where.hostfile, cluster.path.read_text(encoding="utf-8-sig")):
        changes.append("hostfile kept")
    if write(places.default_cluster(places.controller_home()), where.cluster + "\n"):
        changes.append(f"{where.cluster} is the default cluster")
    return tuple(changes)


def find(path: Path | None, name: str | None) -> Cluster:
    """The cluster that a command means: a hostfile, a name that `up` knows, the one of the last `up` or run."""
    commands.meant(path, name)
    if path is not None:
        return _pinned(hosts.load(path, name=name))
    chosen = name or _default()
    if chosen is None and (note := _last_run()):
        return of_run(note)
    if chosen is None:
        raise UsageError("no cluster is named", remedy="give --hosts FILE, or run: clusterft up --hosts FILE")
    where = cluster_places(chosen)
    if not where.hostfile.is_file():
        known = sorted(p.parent.name for p in places.controller_home().glob("*/hostfile"))
        remedy = f"known: {', '.join(known)}" if known else "run: clusterft up --hosts FILE"
        raise UsageError(f'no cluster "{chosen}" was brought up from here', remedy=remedy)
    return _pinned(hosts.load(where.hostfile, name=chosen))


def of_run(note: Note) -> Cluster:
    """The cluster of a run that was started from here."""
    path = Path(note.hostfile)
    if not path.is_file():  # it may have gone since; `up` keeps a copy
        return find(None, note.cluster)
    commands.meant(path, None if note.cluster == path.stem else note.cluster)
    return _pinned(hosts.load(path, name=note.cluster))


def forget(where: ClusterPlaces) -> tuple[str, ...]:
    """Take it all away but the pins: a host key once compared stays compared."""
    changes = []
    for path in (
        where.settings,
        where.addresses,
        where.hostfile,
        where.key,
        where.key.with_suffix(".pub"),
        where.baseline,
    ):
        if path.exists():
            path.unlink()
            changes.append(f"{path.name} removed")
    default = places.default_cluster(places.controller_home())
    if _default() == where.cluster:
        default.unlink()
        changes.append(f"{where.cluster} is no longer the default cluster")
    return tuple(changes)


def write(path: Path, text: str) -> bool:
    """Write a private file; False if it said that already."""
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return False
    private.write(path, text.encode("utf-8"))
    return True


def any_default() -> bool:
    """Whether a command may leave the cluster out."""
    return _default() is not None or _last_run() is not None


def _pinned(cluster: Cluster) -> Cluster:
    """With the addresses that were settled here."""
    known = _addresses(cluster_places(cluster.name))
    nodes = (
        replace(node, addr=known[node.name], settled=True) if node.addr is None and node.name in known else node
        for node in cluster.nodes
    )
    return replace(cluster, nodes=tuple(nodes)) if known else cluster


def _addresses(where: ClusterPlaces) -> dict[str, str]:
    try:
        body = json.loads(where.addresses.read_text(encoding="utf-8"))
        return {str(node): str(ipaddress.ip_address(ip)) for node, ip in body["addresses"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"rm {where.addresses}   and let doctor --fix settle them anew"
        raise UsageError(f"cannot be read: {error!r}", where=str(where.addresses), remedy=remedy) from None


def _last_run() -> Note | None:
    """Without an `up`, the cluster of the newest run is the last one."""
    return next(iter(record.notes()), None)


def _default() -> str | None:
    path = places.default_cluster(places.controller_home())
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None
