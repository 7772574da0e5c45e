"""A look at how this machine meets the nodes: the keys and connections of its ssh, and the ways that are closed.

Of a node that did not let us in, some others are asked whether they reach it: then it is this machine's way
that is closed, and not the node that is off.
"""

from __future__ import annotations

import re
import socket

from clusterft.checks import Survey
from clusterft.facts.desk import Closed, Desk, OpenKey, SharedLogin
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster, Node
from clusterft.remote import Remote, Unreachable

_SSH_PORT = 22
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
    keys: dict[str, tuple[int, list[str]]] = {}
    for node in nodes:
        for path, mode in shared.open_keys(ways, node):
            keys.setdefault(path, (mode, []))[1].append(node.name)
    logins = [(node.name, shared.groups(ways, node)) for node in nodes if node.name in survey.facts]
    return desk._replace(
        open_keys=tuple(OpenKey(path, mode, tuple(names)) for path, (mode, names) in keys.items()),
        shared=tuple(SharedLogin(name, *found) for name, found in logins if found),
        logins=tuple(fleet.login_seconds.values()),
        crowded=tuple(sorted(fleet.crowded)),
        closed=_closed(nodes, fleet, survey),
    )


def _closed(nodes: list[Node], fleet: Fleet, survey: Survey) -> tuple[Closed, ...]:
    missed = {miss.node for miss in survey.unreached if miss.id in _CLOSED}
    targets = [node for node in nodes if node.name in missed and not node.jump][:_MOST]
    known = ((node, _address(node)) for node in targets)
    wanted = {node.name: (address, node.port or _SSH_PORT) for node, address in known if address}
    askers = [node.name for node in nodes if node.name in survey.facts][:_ASKED]
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


def _address(node: Node) -> str | None:
    if node.addr:
        return node.addr
    try:
        return socket.gethostbyname(node.name)
    except OSError:
        return None


def _own_address(address: str) -> str:
    """The one that the node would see us by; nothing is sent."""
    try:
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(kind, socket.SOCK_DGRAM) as asking:
            asking.connect((address, _SSH_PORT))
            return str(asking.getsockname()[0])
    except OSError:
        return ""
