"""The network layer of doctor's look at a node: what is asked, and what the answers say. Pure.

Who listens on the rendezvous port is known by name where this user may look into the process, else not at all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from clusterft.facts.frames import whole
from clusterft.facts.health.asked import Asked

_OURS = "clusterft_trainer"  # in the command line of every process of a run
# Prints something where a run is at work; grep does not find itself.
RUNNING = f"grep -ls '[{_OURS[0]}]{_OURS[1:]}' /proc/[0-9]*/cmdline | head -n 4"

# The sockets that listen on a port by their number, then the processes that hold one of these.
_LISTENERS = r"""
echo seen
n=$(cat /proc/net/tcp /proc/net/tcp6 | awk -v p="$(printf ':%04X' {port})" \
  '$4 == "0A" && substr($2, length($2) - 4) == p {{ printf "%ssocket:[%s]", s, $10; s = " " }}')
echo "sockets $n"
[ "$n" ] && {{ hear 4 ls -ln /proc/[0-9]*/fd | awk -v n="$n" '
  BEGIN {{ k = split(n, a, " "); for (i = 1; i <= k; i++) w[a[i]] }}
  /^\/proc\// {{ split($1, d, "/"); p = d[3] }} $NF in w && !(p in t) {{ t[p]; print p }}' |
  head -n 8 | while read -r p; do
    echo "process $p $(tr '\0\n' '  ' </proc/$p/cmdline | cut -c1-300)"
  done; }}
"""
_RULES = r"""
echo seen; command -v iptables >/dev/null && echo iptables && limit 5 iptables -S INPUT | head -n 200 &&
  limit 5 iptables -S OUTPUT | head -n 200
command -v nft >/dev/null && r=$(limit 5 nft list ruleset) && echo nft && printf '%s\n' "$r" |
  awk '/^table / { t = $2 " " $3 } /^[ \t]*chain / { c = $2 }
    / hook (input|output) / { print "chain", t, c, $0 }' |
  head -n 60
"""


class Neighbour(NamedTuple):
    """What the kernel believes of an address on the same wire."""

    ip: str
    interface: str
    mac: str


class Listener(NamedTuple):
    """A process that listens on the rendezvous port."""

    pid: int
    command: str

    @property
    def ours(self) -> bool:
        """Whether it belongs to a run of clusterft."""
        return _OURS in self.command


class Refusal(NamedTuple):
    """A route that sends nothing: unreachable, blackhole, prohibit or throw."""

    line: str  # as ip tells it
    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    @property
    def words(self) -> str:
        """What `ip route del` needs: how it is refused, where, and in which table."""
        kind, to, *rest = self.line.split()
        pairs = zip(rest, rest[1:], strict=False)
        return " ".join((kind, to, *(word for pair in pairs if pair[0] in ("table", "metric") for word in pair)))


class Rule(NamedTuple):
    """A line of `ip rule`: which table is asked, and when."""

    line: str  # as ip tells it
    version: int
    priority: int
    table: str


class Chain(NamedTuple):
    """A place in the kernel's packet filter where rules begin."""

    family: str  # ip, ip6, inet
    table: str
    name: str
    hook: str  # input, output
    policy: str  # accept, drop, or empty where it is not said


@dataclass(frozen=True, slots=True)
class NetworkHealth:
    """What could be read; None where it could not."""

    neighbours: tuple[Neighbour, ...] | None = None
    wireless: frozenset[str] | None = None  # interfaces
    listening: bool | None = None  # whether anybody listens on the rendezvous port
    listeners: tuple[Listener, ...] = ()  # of those, who may be known
    running: bool | None = None  # whether a run of clusterft is at work on the node
    chains: tuple[Chain, ...] | None = None  # only root may know
    iptables: bool | None = None  # whether the command is there
    refusals: tuple[Refusal, ...] | None = None  # routes that send nothing; None: there is no ip command
    rules: tuple[Rule, ...] = ()  # of policy routing
    refusing: frozenset[str] | None = None  # INPUT, OUTPUT: those in which iptables drops or rejects something


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    return {
        "net.neighbours": "echo seen; ip -o neigh",
        # The kernel's own for IPv6 lie on lo.
        "net.refusals": "ip route show table all | head -n 1 | grep -q . && echo seen; for f in 4 6; do "
        "echo family $f; ip -$f route show table all | "
        "grep -E '^(unreachable|blackhole|prohibit|throw) ' | grep -v ' dev lo' | head -n 40; "
        "ip -$f rule show | head -n 60; done",
        "net.wireless": "[ -d /sys/class/net ] && echo seen; ls -d /sys/class/net/*/wireless",
        "net.running": f"[ -r /proc/self/cmdline ] && echo seen; {RUNNING}",
    }


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds."""
    return {"net.listeners": _LISTENERS.format(port=int(asked.port)), "net.rules": _RULES}


def parse(said: Mapping[str, str], asked: Asked) -> NetworkHealth:
    """From the sections' texts."""
    wireless, running, listeners = (said[f"net.{key}"] for key in ("wireless", "running", "listeners"))
    rules = said["net.rules"].splitlines()
    sockets = re.search(r"^sockets (.*)$", listeners, re.MULTILINE)
    return NetworkHealth(
        neighbours=_neighbours(said["net.neighbours"]),
        wireless=frozenset(re.findall(r"^/sys/class/net/([^/\n]+)/wireless$", wireless, re.MULTILINE))
        if wireless.startswith("seen")
        else None,
        listening=bool(sockets.group(1).strip()) if sockets else None,
        listeners=_listeners(listeners),
        running="/proc/" in running if running.startswith("seen") else None,
        chains=tuple(_chains(rules)) if "nft" in rules else None,
        iptables="iptables" in rules if "seen" in rules else None,
        refusals=tuple(_refusals(said["net.refusals"])) if said["net.refusals"].startswith("seen") else None,
        rules=tuple(_policy(said["net.refusals"])),
        refusing=_refusing(said["net.rules"]),
    )


def _neighbours(text: str) -> tuple[Neighbour, ...] | None:
    """`ip -o neigh`: 10.0.0.2 dev eth0 lladdr 02:.. REACHABLE; without an answer there is no lladdr."""
    if not text.startswith("seen"):
        return None
    rows = re.findall(r"^([0-9a-fA-F.:]+) dev (\S+) lladdr ([0-9a-f:]{17}) .*?(\S+)\s*$", text, re.MULTILINE)
    return tuple(Neighbour(ip, device, mac) for ip, device, mac, state in rows if state not in ("FAILED", "NOARP"))


def _refusals(text: str) -> Iterator[Refusal]:
    """unreachable 10.0.0.5 [table 100] [metric 4]; also default, and networks."""
    pattern = re.compile(r"(?:unreachable|blackhole|prohibit|throw) (default|[0-9a-fA-F.:]+(?:/\d{1,3})?)(?: .*)?")
    wide = "0.0.0.0/0"
    for line in text.splitlines():
        wide = "::/0" if line == "family 6" else wide
        if found := pattern.fullmatch(line):
            to = wide if found[1] == "default" else found[1]
            with contextlib.suppress(ValueError):  # what looks like an address and is none
                yield Refusal(line.strip(), ipaddress.ip_network(to, strict=False))


def _policy(text: str) -> Iterator[Rule]:
    """5270: from all lookup 52"""
    version = 4
    for line in text.splitlines():
        version = 6 if line == "family 6" else version
        if found := re.fullmatch(r"(\d{1,10}):\s+((?:not )?from .*\blookup (\S+).*)", line):
            yield Rule(f"{found[1]}: {found[2].strip()}", version, whole(found[1]) or 0, found[3])


def _listeners(text: str) -> tuple[Listener, ...]:
    rows = re.findall(r"^process (\d{1,10}) ?(.*)$", text, re.MULTILINE)
    return tuple(Listener(whole(pid) or 0, command.strip()) for pid, command in rows)


def _refusing(text: str) -> frozenset[str] | None:
    """-P INPUT DROP, -A OUTPUT ... -j REJECT; a chain of one's own may do it too, which is not followed."""
    if not re.search(r"^-P (INPUT|OUTPUT) ", text, re.MULTILINE):
        return None
    rows = re.findall(r"^-(?:P|A) (INPUT|OUTPUT) (?:.*-j )?(?:DROP|REJECT)\b", text, re.MULTILINE)
    return frozenset(rows)


def _chains(lines: list[str]) -> list[Chain]:
    """chain inet filter INPUT type filter hook input priority filter; policy drop;"""
    found = []
    for line in lines:
        match = re.match(
            r"chain (\w+) (\S+) (\S+)\s+type filter hook (input|output) priority [^;]*;(?:\s*policy (\w+);)?", line
        )
        if match:
            family, table, name, hook, policy = match.groups()
            found.append(Chain(family, table, name, hook, policy or ""))
    return found
