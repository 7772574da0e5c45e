"""The checks of the ssh layer: can every node be asked at all, and does ssh give what it should."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from clusterft.checks import catalogue, controller
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination
from clusterft.checks.ways import walls
from clusterft.facts.desk import Closed
from clusterft.findings import Finding

_OWN = ("ssh.key-perms", "ssh.maxsessions", "ssh.noisy-shell")  # judged where the node was reached, too
_IDS = tuple(one.id for one in catalogue.ALL if one.layer == "ssh" and "facts" in one.found and one.id not in _OWN)
_SHOWN = 3  # lines of what a shell prints
# id -> (what is touched by its fix, whether that wants root on the node)
_TOUCHES = {
    "ssh.dns": ("the hostfile", False),
    "ssh.refused": ("sshd of the node, or the hostfile", True),
    "ssh.timeout": ("power or firewall of the node", True),
    "ssh.no-route": ("power or firewall of the node", True),
    "ssh.hostkey-changed": ("which machine is believed to be the node", False),
    "ssh.hostkey-unknown": ("which machine is believed to be the node", False),
    "ssh.auth": ("who may log in to the node", False),
    "ssh.maxstartups": ("sshd of the node", True),
    "ssh.maxsessions": ("sshd of the node", True),
    "ssh.handshake": ("sshd of the node", True),
    "ssh.devnull": ("/dev/null of the node", True),
    "ssh.kex-hang": ("the MTU of a network card", True),
    "ssh.noisy-shell": ("the startup files of the shell on the node", False),
}


def unreached(seen: Examination) -> Iterator[Finding]:
    """ssh.*: in ssh's own words, for whoever could not be asked; and what other nodes see of it."""
    closed = {one.node: one for one in seen.desk.closed}
    # Of a route that is missing, the time to failure has told which of its causes it is: the fix says so. Where an
    # answer is missing or cut off, no startup file is known to be the reason.
    open_ = ("ssh.no-route", "ssh.noisy-shell")
    causes = {entry.id: entry.cause for entry in catalogue.ALL if entry.id not in open_}
    for found in controller.unreached(seen.survey):
        touches, root = _TOUCHES.get(found.id, ("", False))
        shut = {} if found.cause else closed  # who is known to have answered is not shut off from here
        said = [_seen_by_others(shut[node]) for node in found.nodes if node in shut]
        ways = tuple(dict.fromkeys(_open(shut[node]) for node in found.nodes if node in shut and shut[node].by))
        off = not all(node in shut and shut[node].by for node in found.nodes)
        yield replace(
            found,
            evidence="\n".join((found.evidence, *(line for line in said if line))),
            cause=found.cause or causes.get(found.id, "")
            if off
            else "it is up, and a firewall stops what comes from this machine",
            fix=(*ways, *(found.fix if off or found.id == "ssh.refused" else ())),
            needs_root=root,
            blast_radius=touches,
        )
    for miss in seen.survey.unreached:  # whoever was not let in has not passed what would have come after
        for identity in _IDS:
            if identity != miss.id:
                yield Finding(identity, "skipped", (miss.node,), f"({miss.id})")


def key_perms(seen: Examination) -> Iterator[Finding]:
    """ssh.key-perms: clusterft can use such a key; ssh, scp and rsync refuse to."""
    for key in seen.desk.open_keys:
        yield Finding(
            id="ssh.key-perms",
            status="warn",
            nodes=key.nodes,
            summary="others may read the private key that logs in, so ssh refuses to use it",
            evidence=f"{key.mode:04o} {key.path}",
            cause="copied from elsewhere, or made under a loose umask",
            fix=(f"on this machine: chmod 600 {shlex.quote(key.path)}",),
            blast_radius="this file",
        )


def max_sessions(seen: Examination) -> Iterator[Finding]:
    """ssh.maxsessions: not even two commands at once have a channel; clusterft waits, and other tools fail."""
    for node in seen.desk.crowded:
        yield Finding(
            id="ssh.maxsessions",
            status="warn",
            nodes=(node,),
            summary="its sshd has too few channels for one connection, so commands wait for each other",
            evidence="sshd refused a further channel while two commands ran",
            cause="MaxSessions in sshd_config is below its default, 10",
            fix=(
                "sudo sed -i 's/^ *MaxSessions .*/MaxSessions 10/' /etc/ssh/sshd_config "
                "/etc/ssh/sshd_config.d/*.conf",
                "sudo systemctl reload ssh   (sshd on Fedora, Arch and SUSE)",
            ),
            needs_root=True,
            blast_radius="sshd of the node",
        )


def noisy_shell(seen: Examination) -> Iterator[Finding]:
    """ssh.noisy-shell: what a startup file prints is taken for the answer of every command."""
    for node, health in seen.health.items():
        if health.host.noise:
            lines = health.host.noise.splitlines()
            yield Finding(
                id="ssh.noisy-shell",
                status="warn",
                nodes=(node,),
                summary="the shell prints something before every command, and scp or rsync take it for data",
                evidence="\n".join(line[:200] for line in lines[:_SHOWN]),
                cause="an echo in ~/.bashrc, ~/.zshenv or a file that they read",
                fix=("put this before it, in ~/.bashrc: [[ $- == *i* ]] || return",),
                blast_radius="the startup files of the shell on the node",
            )


def _seen_by_others(one: Closed) -> str:
    if one.by:
        return (
            f"{', '.join(one.by)} can reach sshd at {one.address} port {one.port}: "
            "it is the way from this machine that is closed"
        )
    if one.not_by:
        return f"{', '.join(one.not_by)} cannot reach sshd at {one.address} port {one.port} either"
    return ""


def _open(one: Closed) -> str:
    return walls.unseen(one.node, one.own or "this machine's address", one.port)


CHECKS: tuple[Check, ...] = (
    Check(_IDS, unreached, reads=()),
    Check(("ssh.key-perms",), key_perms, reads=()),
    Check(("ssh.maxsessions",), max_sessions),
    Check(("ssh.noisy-shell",), noisy_shell, reads=("facts", "health")),
)
