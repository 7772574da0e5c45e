"""A look at how this machine meets the nodes: the keys and connections of its ssh, and the ways that are closed.

Of a node that did not let us in, some others are asked whether they reach it: then it is this machine's way
that is closed, and not the node that is off.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clusterft.checks import Survey
from clusterft.facts.desk import Closed, Desk, OpenKey, SharedLogin
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node
from clusterft.probing.at_once import begun
from clusterft.remote import Remote, Unreachable

if TYPE_CHECKING:
    from clusterft.remote.way import Ways

_SSH_PORT = 22
_HERE_SECONDS = 5.0  # for all that is asked of this machine: a master that is dead, a name server that is silent
_ASKED = 2  # other nodes for each that is not reached
_MOST = 4  # nodes that others are asked about; a switch that is off need not be asked about 64 times
_SECONDS = 6.0
_CLOSED = ("ssh.timeout", "ssh.no-route", "ssh.refused")
# Whatever the node has to open connections with, all at once; of each: its number, and whether an sshd said hello.
# A machine that hangs takes connections too, as its kernel does that.
_DIAL = r"""
dial() {
  if command -v bash && command -v timeout; then
    timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1" && head -c 4 <&3 | grep -q SSH-' "$1" "$2"
  elif command -v nc; then nc -w 3 "$1" "$2" | head -c 4 | grep -q SSH-
  else
    p='import socket, sys; sys.exit(socket.create_connection(sys.argv[1:3], 3).recv(4) != b"SSH-")'
    python3 -c "$p" "$1" "$2"
  fi >/dev/null 2>&1 </dev/null
}
command -v bash || command -v nc || command -v python3 || exit
n=0
while [ $# -gt 1 ]; do
  { dial "$1" "$2" && echo "dialled $n yes" || echo "dialled $n no"; } &
  n=$((n + 1)); shift 2
done
wait
"""


def look(desk: Desk, cluster: Cluster, fleet: Fleet, survey: Survey) -> Desk:
    """What is known of this machine, and this."""
    nodes = [node for node in cluster.active if node.transport == "ssh"]
    if not nodes:
        return desk
    from clusterft.remote import shared, way  # paramiko costs 0.1 s that a local cluster need not pay

    ways = way.Ways()
    inside = [node for node in nodes if node.name in survey.facts]
    until = time.monotonic() + _HERE_SECONDS
    read = begun(nodes, lambda node: shared.open_keys(ways, node))
    joined = begun(inside, lambda node: shared.groups(ways, node))
    placed = begun(_missed(nodes, survey), lambda node: _place(ways, node))
    keys: dict[str, tuple[int, list[str]]] = {}
    for node, found in read(until).items():
        for path, mode in found:
            keys.setdefault(path, (mode, []))[1].append(node.name)
    return desk._replace(
        open_keys=tuple(OpenKey(path, mode, tuple(names)) for path, (mode, names) in keys.items()),
        shared=tuple(SharedLogin(node.name, *found) for node, found in joined(until).items() if found),
        logins=tuple(fleet.login_seconds.values()),
        crowded=tuple(sorted(fleet.crowded)),
        closed=_closed([node.name for node in inside][:_ASKED], placed(until), fleet),
    )


def _missed(nodes: list[Node], survey: Survey) -> list[Node]:
    """Those that others are asked about, if there are others."""
    missed = {miss.node for miss in survey.unreached if miss.id in _CLOSED}
    return [node for node in nodes if survey.facts and node.name in missed and not node.jump][:_MOST]


def _closed(askers: list[str], placed: Mapping[Node, tuple[str, int] | None], fleet: Fleet) -> tuple[Closed, ...]:
    wanted = {node.name: place for node, place in placed.items() if place}
    if not wanted or not askers:
        return ()

    def ask(name: str, remote: Remote) -> dict[str, bool]:
        if name not in askers:
            return {}
        to = (word for address, port in wanted.values() for word in (address, str(port)))
        done = remote.run(("sh", "-c", _DIAL, "dial", *to), seconds=_SECONDS)
        said = dict(re.findall(r"^dialled (\d+) (yes|no)$", done.out, re.MULTILINE))
        return {node: said[str(n)] == "yes" for n, node in enumerate(wanted) if str(n) in said}

    answers = {name: one for name, one in fleet.each(ask).items() if not isinstance(one, Unreachable)}
    return tuple(
        Closed(
            node,
            address,
            port,
            _own_address(address),
            by=tuple(name for name in askers if answers.get(name, {}).get(node) is True),
            not_by=tuple(name for name in askers if answers.get(name, {}).get(node) is False),
        )
        for node, (address, port) in wanted.items()
    )


def _place(ways: Ways, node: Node) -> tuple[str, int] | None:
    """Address and port that ssh dials for it, which ~/.ssh/config may name; None where its name means nothing."""
    try:
        to = ways.to(node)
        port = int(to.port or _SSH_PORT)
        address = node.addr or socket.getaddrinfo(str(to.host), port, type=socket.SOCK_STREAM)[0][4][0]
    except (Unreachable, OSError):
        return None
    return str(address), port


def _own_address(address: str) -> str:
    """The one that the node would see us by; nothing is sent."""
    try:
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(kind, socket.SOCK_DGRAM) as asking:
            asking.connect((address, _SSH_PORT))
            return str(asking.getsockname()[0])
    except OSError:
        return ""
