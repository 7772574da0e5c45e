"""What is said when a shipment does not reach a node: findings with evidence and what mends it. Pure."""

from __future__ import annotations

import shlex

from clusterft.findings import Finding, Outcome
from clusterft.remote import Unreachable

_AGAIN = "then run the same command again: it goes on from the bytes that are there"
_MOVE_ROOT = (
    "docker image prune   (on the node)",
    'or give Docker another disk: {"data-root": "/mnt/big/docker"} in /etc/docker/daemon.json, '
    "then sudo systemctl restart docker; it stops the node's containers and leaves old images behind",
)


def state(have: int, total: int) -> str:
    """How far it was."""
    return f"{mib(have)} of {mib(total)} had arrived"


def mib(count: int) -> str:
    """A size for people."""
    return f"{count / (1 << 20):.1f} MiB" if count < 10 << 20 else f"{count >> 20} MiB"


def unreachable(node: str, error: Unreachable) -> Finding:
    """A call that the node did not answer."""
    summary = f"{node} could not be reached during the shipment"
    return _fail(error.id, node, summary, error.what, error.fix or (f"is {node} up and reachable?", _AGAIN))


def silent(node: str, how_far: str, seconds: float) -> Finding:
    """A node that stopped in the middle."""
    evidence = f"no sign of life for {seconds:g} s; {how_far}"
    return _fail("ssh.timeout", node, f"{node} stopped answering half-way", evidence, _look_at(node))


def gone(node: str, how_far: str, said: str) -> Finding:
    """A connection that ended in the middle."""
    evidence = f"{said or 'the connection ended'}; {how_far}"
    return _fail("ssh.timeout", node, f"the connection to {node} ended half-way", evidence, _look_at(node))


def usurped(node: str) -> Finding:
    """Two shipments of one session: the later one goes on."""
    summary = f"another clusterft has begun the same shipment to {node}"
    return _fail("ship.usurped", node, summary, "the session on the node has another owner", ("let that one end",))


def no_way(node: str, how_far: str, said: str) -> Finding:
    """Nobody is left from whom the node could get its bytes."""
    evidence = f"{how_far}; the last try said: {said or 'nothing'}"
    fix = (f"look at the way to {node}: clusterft ssh {node}", _AGAIN)
    return _fail("ship.no-way", node, f"no way to bring the rest to {node}", evidence, fix)


def full(node: str, how_far: str) -> Finding:
    """The disk filled up in the middle, although there was room at the start."""
    evidence = f"No space left on device; {how_far}"
    return _fail("os.disk-full", node, f"the disk of {node} filled up half-way", evidence, (*_MOVE_ROOT, _AGAIN))


def no_room(node: str, place: str, free: int, needed: int) -> Finding:
    """Not begun: it could not end well."""
    evidence = f"{place}: {mib(free)} free, {mib(needed)} needed"
    fix = (*_MOVE_ROOT,) if place.startswith("docker") else (f"make room in {place}",)
    return _fail("os.disk-full", node, f"no room on {node}", evidence, fix)


def foreign(node: str, path: str) -> Finding:
    """A directory of ours that is somebody else's, or a link."""
    summary = f"{path} on {node} is not this user's own directory"
    return _fail("fs.foreign", node, summary, f"ls -ld {path}", (f"ls -ld {path}; remove it if it is not needed",))


def mute(node: str, said: str) -> Finding:
    """The engine does not answer."""
    denied = "permission denied" in said.lower()
    fix = (
        ("sudo usermod -aG docker $USER   (on the node; that makes the user root there), then log in again",)
        if denied
        else ("sudo systemctl enable --now docker   (on the node)",)
    )
    return _fail("dk.perm" if denied else "dk.down", node, f"Docker does not answer on {node}", said, fix)


def alien(node: str, image: str, engine: str) -> Finding:
    """An image for other machines."""
    summary = f"the image is for {image}, {node} is {engine}"
    fix = ("take the node out of the hostfile, or build the image on a machine of its kind",)
    return _fail("dk.arch", node, summary, f"docker version says {engine}", fix)


def differs(node: str, expected: str, found: str) -> Finding:
    """The identity gate: what was loaded is not what was sent."""
    summary = f"the image on {node} is not the one that was sent"
    return _fail("dk.image-drift", node, summary, f"expected {expected}, found {found}", (_AGAIN,))


def refused(node: str, said: str) -> Finding:
    """The engine would not have the whole image either."""
    return _fail("dk.load", node, f"the engine of {node} did not load the image", said, ("docker info", _AGAIN))


def may_go_on(outcome: Outcome) -> bool:
    """Whether what has arrived there is kept for the next try."""
    return isinstance(outcome, Finding) and outcome.id.startswith(("ssh.", "ship."))


def in_the_way(node: str, where: str, names: str) -> Finding:
    """A directory where a file shall be, or the other way round: never removed."""
    fix = (f"look at it on {node}, and remove or rename it there",)
    return _fail("fs.in-the-way", node, f"of another kind in {where} on {node}: {names}", names, fix)


def not_writable(node: str, where: str) -> Finding:
    """The user may not write there."""
    fix = (f"sudo mkdir -p {shlex.quote(where)} && sudo chown $USER {shlex.quote(where)}   (on {node})",)
    return _fail("fs.not-writable", node, f"{where} cannot be written on {node}", f"test -w {where}: no", fix)


def not_stowed(node: str, where: str, said: str) -> Finding:
    """All bytes came, and could not be put into their place."""
    return _fail("fs.not-writable", node, f"not everything could be put into {where} on {node}", said, (_AGAIN,))


def _look_at(node: str) -> tuple[str, ...]:
    return (f"look at {node}: is it on, and is its network up?", _AGAIN)


def _fail(identity: str, node: str, summary: str, evidence: str, fix: tuple[str, ...]) -> Finding:
    return Finding(id=identity, status="fail", nodes=(node,), summary=summary, evidence=evidence, fix=fix)
