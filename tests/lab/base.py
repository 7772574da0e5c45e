"""What every lab and every node can do, whatever its weight.

Owns the life of a lab (claim, bring up, take down, also on a signal) and the
protocol of a node with its faults. Refuses to know how a node is made: that is
the business of light.py, full.py and vm.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from .access import Access, Endpoint
from .errors import LabError
from .journal import Journal, undo_orphans

FILLER = ".lab-filler"
# What a shell leaves of itself is not told.
_TREE = r"""
set -e
skip='-name .bash_history -o -name .cache'
for path; do
    if ! words=$(LC_ALL=C stat -- "$path" 2>&1); then
        case $words in *"No such file"*) printf '%s\tabsent\n' "$path"; continue ;; esac
        echo "$words" >&2
        exit 1
    fi
    find "$path" \( $skip \) -prune -o -type d -printf '%p\td %#m %u:%g\n' \
        -o -type f -printf '%p\tf %#m %u:%g %s\n' -o -printf '%p\t%y %#m %u:%g %l\n'
    find "$path" \( $skip \) -prune -o -type f -exec sha256sum {} + | sed 's/^\([0-9a-f]*\)  /\1\t/'
done
"""


class LabNode(ABC):
    """One machine of the lab, and what can befall it.

    Blocked ports, cut links and throttles are the network's faults, not the node's:
    they outlive its reboot, until they are taken back.
    """

    port = 22

    def __init__(self, name: str, address: str, state: Path, access: Access) -> None:
        self.name = name
        self.address = address
        self.state = state
        self.access = access

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.address})"

    @property
    def boot_id(self) -> str:
        """The boot id that the node itself would report."""
        return (self.state / "boot_id").read_text().strip()

    def run(
        self, argv: Sequence[str], timeout: float = 20, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node through ssh with pinned host keys.

        The exit status is the command's, or 255 when ssh failed. A node that never
        answers raises subprocess.TimeoutExpired.
        """
        return self.access.ssh(self.name, argv, timeout=timeout, stdin=stdin)

    def block_port(self, port: int | str, action: str = "drop") -> None:
        """Keep others from a port: "drop" is silence, "reject" refuses, "prohibit" says so."""
        refusals = {
            "drop": ["DROP"],
            "reject": ["REJECT", "--reject-with", "tcp-reset"],
            "prohibit": ["REJECT", "--reject-with", "icmp-host-prohibited"],
        }
        if action not in refusals:
            raise LabError(f"action {action!r}: one of {', '.join(refusals)}")
        rule = [*self._arriving(), "-p", "tcp", "--dport", str(port), "-j", *refusals[action]]
        self._network(["iptables", "-w", "-I", "INPUT", *rule])
        self._remember_blocked([*self._blocked(), rule])

    def unblock_ports(self) -> None:
        """Open every port that was blocked; other rules on the node stay."""
        for rule in self._blocked():
            self._network(["iptables", "-w", "-D", "INPUT", *rule])
        self._remember_blocked([])

    def _block_again(self) -> None:
        for rule in self._blocked():
            self._network(["iptables", "-w", "-I", "INPUT", *rule])

    def _blocked(self) -> list[list[str]]:
        try:
            found: list[list[str]] = json.loads((self.state / "blocked").read_text())
        except FileNotFoundError:
            return []
        return found

    def _remember_blocked(self, rules: list[list[str]]) -> None:
        (self.state / "blocked").write_text(json.dumps(rules))

    def hide(self) -> None:
        """Be silent to the controller, for good: other nodes are the only way in."""
        (self.state / "hidden").touch()
        self._network(["iptables", "-w", "-I", "INPUT", "-s", self._host(1), "-j", "DROP"])

    def behind_nat(self) -> None:
        """Give connections from here another address, as others see it; inbound ones stay right."""
        (self.state / "nat").touch()
        outer, subnet = self._outer(), f"{self._host(0)}/24"
        # The node says that the address is its own, though it has no such address: a route
        # that leads away from the card makes the kernel answer for it.
        steps = f"""
            [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || echo 1 >/proc/sys/net/ipv4/ip_forward
            ip route replace {outer}/32 dev lo && ip neigh replace proxy {outer} dev eth0 &&
            iptables -w -t nat -I POSTROUTING -o eth0 -d {subnet} -j SNAT --to-source {outer}
        """
        self._network(["sh", "-ec", steps])

    def leave_nat(self) -> None:
        """Take it back; connections that are open keep the address they have."""
        outer, subnet = self._outer(), f"{self._host(0)}/24"
        rule = ["POSTROUTING", "-o", "eth0", "-d", subnet, "-j", "SNAT", "--to-source", outer]
        self._network(["iptables", "-w", "-t", "nat", "-D", *rule])
        self._network(["ip", "neigh", "del", "proxy", outer, "dev", "eth0"])
        self._network(["ip", "route", "del", f"{outer}/32", "dev", "lo"])
        (self.state / "nat").unlink()

    def endpoint(self, bastion: LabNode) -> Endpoint:
        """Where its sshd answers, and behind which node if the controller cannot reach it."""
        hidden = (self.state / "hidden").exists()
        return Endpoint(self.name, self.address, self.port, jump=f"root@{bastion.address}" if hidden else "")

    def _host(self, number: int) -> str:
        return f"{self.address.rpartition('.')[0]}.{number}"

    def _outer(self) -> str:
        """The address that peers see when the node is behind NAT."""
        return self._host(100 + int(self.address.rpartition(".")[2]))

    def _bewitch_again(self) -> None:
        """Put the network's faults back on a node whose restart forgot them."""
        self._block_again()
        if (self.state / "nat").exists():
            self.behind_nat()
        if (self.state / "hidden").exists():
            self.hide()

    def tree(self, *paths: str, person: str = "root") -> dict[str, str]:
        """What is below these directories, to compare before and after.

        A path leads to its type, mode, owner, and size and hash or what it points to. What a
        shell leaves of itself (.bash_history, .cache) is not told. A path that is not there is.
        """
        done = self.access.ssh(self.name, ["sh", "-c", _TREE, "tree", *paths], timeout=60, options=["-l", person])
        if done.returncode != 0:
            raise LabError(f"{self.name}: {done.stderr.strip()}")
        told: dict[str, str] = {}
        for one, other in (line.split("\t", 1) for line in done.stdout.splitlines()):
            if one[0] == "/":
                told[one] = other
            else:
                told[other] += f" {one}"
        return dict(sorted(told.items()))

    def _arriving(self) -> list[str]:
        """What narrows a firewall rule to traffic from others."""
        return ["!", "-i", "lo"]

    @abstractmethod
    def _network(self, argv: Sequence[str]) -> None:
        """Run a network tool on the node without needing its network."""

    @abstractmethod
    def cut_link(self) -> None:
        """Pull the network cable."""

    @abstractmethod
    def restore_link(self) -> None:
        """Plug the network cable in again."""

    @abstractmethod
    def throttle(self, rate: str) -> None:
        """Limit the link to a rate such as "10mbit", in both directions."""

    @abstractmethod
    def unthrottle(self) -> None:
        """Give the link its full rate back."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze every process; the kernel still accepts connections, and nothing answers."""

    @abstractmethod
    def resume(self) -> None:
        """Thaw it."""

    @abstractmethod
    def kill(self) -> None:
        """Power off: processes vanish without a word to their peers."""

    @abstractmethod
    def start(self) -> None:
        """Power on after `kill`, with a new boot id and the old files."""

    @abstractmethod
    def reboot(self) -> None:
        """Restart: new boot id, processes gone, files kept."""

    @abstractmethod
    def fill_disk(self, leave_kb: int = 0) -> None:
        """Leave only that many KiB free on the disk that holds the node's home."""

    @abstractmethod
    def free_disk(self) -> None:
        """Take back what `fill_disk` wrote."""

    @abstractmethod
    def swap_host_key(self) -> None:
        """Let sshd present a key that is not the pinned one."""


N = TypeVar("N", bound=LabNode)


class Lab(ABC, Generic[N]):
    """Some nodes, the files to reach them, and the promise that nothing of it stays."""

    weight: ClassVar[str]
    nodes: list[N]
    shared: str

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.state = journal.state
        self.access = Access(journal.state)
        self.hostfile = self.access.hostfile
        self.ssh_config = self.access.ssh_config
        self.known_hosts = self.access.known_hosts
        self.key = self.access.key
        self.nodes = []

    @classmethod
    @abstractmethod
    def attach(cls, journal: Journal) -> Self:
        """The lab that another process brought up."""

    @property
    def id(self) -> str:
        """The lab's name in `status`, and part of the name of everything it makes."""
        return self._journal.id

    def node(self, name: str) -> N:
        """The node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"no node {name!r} in lab {self.id}: {[n.name for n in self.nodes]}")

    def down(self) -> None:
        """Unmake the lab; a second interrupt has to wait until nothing is left."""
        with _deaf_to_signals():
            self._journal.undo()

    def keep(self) -> None:
        """Let the lab outlive this process, until somebody takes it down."""
        self._journal.own(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @classmethod
    @contextlib.contextmanager
    def _begun(cls) -> Iterator[Journal]:
        """A fresh journal; whatever goes wrong while it is used is undone."""
        # What cannot be cleared up now must not keep a new lab from coming up;
        # `down --all` says what it is.
        with contextlib.suppress(LabError):
            undo_orphans()
        _sigterm_raises()
        journal = Journal.create(cls.weight)
        try:
            yield journal
        except BaseException:
            with _deaf_to_signals():
                journal.undo()
            raise


def in_parallel(act: Callable[[N], object], nodes: Sequence[N], width: int = 8) -> None:
    """Do something to all nodes, a few at a time; the first failure is the one raised."""
    with ThreadPoolExecutor(width) as pool:
        waiting = [pool.submit(act, node) for node in nodes]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _sigterm_raises() -> None:
    """Turn SIGTERM into an exception, so that `with` blocks unwind; kinder handlers stay."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if _main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, leave)


@contextlib.contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back, so that a second Ctrl-C cannot leave half a lab."""
    if not _main_thread():
        yield
        return
    held: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        held.append(number)

    # A signal mask would not do: another thread of this process could take the signal.
    before = {one: signal.signal(one, remember) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    for number in held:
        os.kill(os.getpid(), number)


def fresh_boot_id(state: Path) -> str:
    """A new boot id in a node's own directory."""
    fresh = str(uuid.uuid4())
    (state / "boot_id").write_text(fresh + "\n")
    return fresh


def fill(directory: Path, leave_kb: int) -> None:
    """Write a file until the filesystem is full, then give back what is to be left."""
    filler = directory / FILLER
    block = bytes(1 << 20)
    with filler.open("ab", buffering=0) as out:
        while True:
            try:
                if out.write(block) < len(block):
                    block = block[: max(len(block) // 2, 4096)]
            except OSError:
                if len(block) == 4096:
                    break
                block = block[: len(block) // 2]
    os.truncate(filler, max(filler.stat().st_size - leave_kb * 1024, 0))
