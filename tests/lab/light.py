"""Light nodes: a network namespace and an sshd each, dozens of them on one machine.

Owns what makes such a node look like a machine of its own: network, process ids,
hostname, boot id, machine id, /run, /dev/shm, root's home on a small disk, host keys.
The rest of the filesystem is this machine's, so the repository's own Python runs there.
Refuses to hide that: files written outside the home and the shared directory are
seen by all nodes, and there is no Docker engine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from . import packages
from .access import make_key, private_file, public_half
from .base import FILLER, Lab, LabNode, fill, fresh_boot_id, in_parallel
from .errors import LabError, LabUnavailable
from .journal import Journal, labs_root
from .proc import ProcessId, children_of, environment, in_namespace, run, start, until, which
from .sshd import PATIENT, TYPIST, settings
from .switch import Switch

_NEEDS = ("ip", "tc", "iptables", "sshd", "ssh", "ssh-keygen", "nsenter", "unshare", "mount", "openssl")
_BOOT = Path(__file__).with_name("light_boot.sh")
_HOME_MIB = 256
_MOST = 200
# Nobody's on Debian, Ubuntu, Fedora: above the people, below the overflow id.
_TYPIST_ID = 64321


def light_available() -> LabUnavailable | None:
    """Why this machine cannot have light nodes, or None; looks only, changes nothing."""
    if not packages.is_root():
        return LabUnavailable("light nodes change the network", "run as root")
    if not packages.may_change_networks():
        return LabUnavailable(
            "root may not change networks and mounts here",
            "on a container, add the capabilities SYS_ADMIN and NET_ADMIN",
        )
    return packages.lacking(_NEEDS)


class LightNode(LabNode):
    """A network namespace, a process namespace in it, and an sshd as its first process."""

    def __init__(self, name: str, address: str, lab: LightLab) -> None:
        super().__init__(name, address, lab.state / "nodes" / name, lab.access)
        self.home = self.state / "home"
        self._shared = lab.shared
        self._journal = lab.journal
        self._switch = lab.switch
        self._max_startups = lab.max_startups
        self._netns = lab.switch.name_of(name)
        self._child: subprocess.Popen[bytes] | None = None

    # -- bring-up ------------------------------------------------------------

    def prepare(self, authorized: str, typed: str) -> str:
        """Make the node's files, with the typist's password hashed; returns its public host key."""
        self.home.mkdir(parents=True)
        self._journal.note("mount", str(self.home))
        size = f"size={_HOME_MIB}m,mode=700"
        run(["mount", "-t", "tmpfs", "-o", size, "clusterft-lab", str(self.home)])
        (self.home / ".ssh").mkdir(mode=0o700)
        private_file(self.home / ".ssh" / "authorized_keys", authorized)
        make_key(self.state / "ssh_host_ed25519_key", f"root@{self.name}")
        (self.state / "sshd_config").write_text(settings(self.state, self._max_startups))
        (self.state / "passwd").write_text(_passwd(self.home, self.state / TYPIST))
        (self.state / TYPIST).mkdir(mode=0o700)
        os.chown(self.state / TYPIST, _TYPIST_ID, _TYPIST_ID)
        lines = f"root:*:19000:0:99999:7:::\n{TYPIST}:{typed}:19000:0:99999:7:::\n"
        private_file(self.state / "shadow", lines)
        # No name server can be reached: an empty file fails at once instead of after 10 s.
        (self.state / "resolv.conf").write_text("")
        (self.state / "hostname").write_text(self.name + "\n")
        (self.state / "machine-id").write_text(uuid.uuid4().hex + "\n")
        return public_half(self.state / "ssh_host_ed25519_key")

    def boot(self) -> None:
        """Start the node's first process under a new boot id, and wait for its sshd."""
        fresh_boot_id(self.state)
        inside = ["sh", str(_BOOT), str(self.state), self._shared, str(labs_root()), self.name]
        argv = [
            "nsenter",
            f"--net=/run/netns/{self._netns}",
            "unshare",
            "--fork",
            "--pid",
            "--kill-child",
            "--mount",
            "--propagation",
            "slave",
            "--uts",
            "--ipc",
            *inside,
            which("sshd") or "/usr/sbin/sshd",
        ]
        with (self.state / "console.log").open("ab") as log:
            heard = log.tell()
            self._child = start(argv, self._journal.note_process, log, _bare_environment())
        until(lambda: self._listens(heard) or self._gave_up(), 20, f"sshd of {self.name}")
        if self._gave_up():
            raise LabError(f"{self.name} did not boot: {self._last_words()}")
        first = self._first_of(self._child.pid)
        (self.state / "pid").write_text(f"{first.pid} {first.start}\n")

    def _first_of(self, outer: int) -> ProcessId:
        """The process that has pid 1 inside the node."""
        first = next(iter(children_of(outer)), None)
        if first is None:
            raise LabError(f"{self.name} died while booting: {self._last_words()}")
        return first

    def _gave_up(self) -> bool:
        return self._child is not None and self._child.poll() is not None

    def _last_words(self) -> str:
        return (self.state / "console.log").read_text(errors="replace")[-1500:]

    def _listens(self, heard: int) -> bool:
        """Whether sshd reported for duty since; asking the network would fail on a cut link."""
        with (self.state / "console.log").open("rb") as log:
            log.seek(heard)
            return b"Server listening on 0.0.0.0 port 22" in log.read()

    # -- processes -------------------------------------------------------------

    def _first(self) -> ProcessId | None:
        try:
            pid, start = (self.state / "pid").read_text().split()
        except FileNotFoundError:
            return None
        first = ProcessId(int(pid), int(start))
        return first if first.alive() else None

    def processes(self) -> list[ProcessId]:
        """Every process of the node, its first one included."""
        first = self._first()
        if first is None:
            return []
        return in_namespace("pid", os.stat(f"/proc/{first.pid}/ns/pid").st_ino)

    def _end_all(self) -> None:
        inhabitants = self.processes()
        if first := self._first():
            # The kernel kills the rest of a process namespace with its first process.
            first.signal(signal.SIGKILL)
        until(lambda: not any(one.alive() for one in inhabitants), 10, f"{self.name} to die")
        if self._child is not None:
            self._child.wait(timeout=10)
            self._child = None

    def pause(self) -> None:
        """Freeze every process with SIGSTOP, until none is left running."""

        def frozen() -> bool:
            running = [one for one in self.processes() if one.state() not in "TtZ"]
            for one in running:
                one.signal(signal.SIGSTOP)
            return not running

        if self._first() is None:
            raise LabError(f"{self.name} is off: start it first")
        until(frozen, 10, f"the processes of {self.name} to stop")

    def resume(self) -> None:
        """Thaw every process."""
        for one in self.processes():
            one.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Power off; the link goes first, so that no peer hears the sockets close."""
        self._switch.set_port(self.name, up=False)
        self._end_all()

    def start(self) -> None:
        """Power on after `kill`."""
        if self._first() is not None:
            raise LabError(f"{self.name} is on already")
        self._switch.set_port(self.name, up=not (self.state / "cut").exists())
        self.boot()

    def reboot(self) -> None:
        """Restart; peers see their connections close, as in an orderly reboot."""
        self._end_all()
        self.boot()

    # -- network, disk, keys -----------------------------------------------------

    def _network(self, argv: Sequence[str]) -> None:
        run(["nsenter", f"--net=/run/netns/{self._netns}", *argv])

    def cut_link(self) -> None:
        """Take the carrier away."""
        (self.state / "cut").touch()
        self._switch.set_port(self.name, up=False)

    def restore_link(self) -> None:
        """Give the carrier back."""
        (self.state / "cut").unlink(missing_ok=True)
        self._switch.set_port(self.name, up=True)

    def throttle(self, rate: str) -> None:
        """Limit both directions."""
        self._switch.throttle(self.name, rate)

    def unthrottle(self) -> None:
        """Give the full rate back."""
        self._switch.unthrottle(self.name)

    def fill_disk(self, leave_kb: int = 0) -> None:
        """Fill the node's home."""
        fill(self.home, leave_kb)

    def free_disk(self) -> None:
        """Take back what `fill_disk` wrote."""
        (self.home / FILLER).unlink(missing_ok=True)

    def swap_host_key(self) -> None:
        """Make a new host key and let sshd read it; connections that are open stay."""
        first = self._first()
        if first is None:
            raise LabError(f"{self.name} is off: start it first")
        make_key(self.state / "ssh_host_ed25519_key", f"root@{self.name}")
        heard = (self.state / "console.log").stat().st_size
        first.signal(signal.SIGHUP)
        until(lambda: self._listens(heard), 10, f"{self.name} to take its new key")


class LightLab(Lab[LightNode]):
    """Light nodes on one switch."""

    weight: ClassVar[str] = "light"
    journal: Journal
    switch: Switch

    def __init__(self, journal: Journal, subnet: str, count: int, max_startups: str = PATIENT) -> None:
        super().__init__(journal)
        self.max_startups = max_startups
        self.journal = journal
        self.shared = str(self.state / "shared")
        self.switch = Switch(journal, subnet)
        addresses = [self.switch.address(10 + index) for index in range(1, count + 1)]
        self.nodes = [LightNode(f"n{i}", at, self) for i, at in enumerate(addresses, 1)]

    @classmethod
    def up(cls, count: int = 3, *, bastion: bool = False, max_startups: str = PATIENT) -> Self:
        """Bring up that many nodes; on any failure nothing of them stays.

        With `bastion`, the controller reaches n1, and the rest through it.
        """
        if why := light_available():
            raise why
        if not 1 <= count <= _MOST:
            raise LabError(f"{count} light nodes: from 1 to {_MOST} fit into one lab")
        packages.ensure(_NEEDS)
        with cls._begun() as journal:
            subnet = str(journal.claim_subnet(Switch.taken()))
            journal.describe({"subnet": subnet, "count": count, "max_startups": max_startups})
            lab = cls(journal, subnet, count, max_startups)
            lab._raise_up(bastion)
        return lab

    @classmethod
    def attach(cls, journal: Journal) -> Self:
        """The lab that another process brought up."""
        facts: dict[str, Any] = journal.described()
        return cls(journal, facts["subnet"], facts["count"], facts["max_startups"])

    def _raise_up(self, bastion: bool) -> None:
        self.access.make_secrets(f"clusterft-lab-{self.id}")
        authorized = self.access.authorized
        typed = run(["openssl", "passwd", "-6", "-stdin"], stdin=self.access.password).stdout.strip()
        Path(self.shared).mkdir(mode=0o755)
        self.switch.build()
        names = "".join(f"{node.address} {node.name}\n" for node in self.nodes)
        publics: dict[str, str] = {}
        turn = threading.Lock()

        def one(node: LightNode) -> None:
            publics[node.name] = node.prepare(authorized, typed)
            (node.state / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            with turn:
                # The kernel serialises changes of the network; queueing here is cheaper.
                self.switch.plug(node.name, node.address)
            node.boot()
            if bastion and node is not self.nodes[0]:
                node.hide()

        in_parallel(one, self.nodes)
        self.access.write((node.endpoint(self.nodes[0]), publics[node.name]) for node in self.nodes)


def _passwd(home: Path, typist: Path) -> str:
    """This machine's accounts, with root at home in the node, and one who has a password only."""
    shell = "/bin/bash" if shutil.which("bash", path="/bin:/usr/bin") else "/bin/sh"
    lines = Path("/etc/passwd").read_text().splitlines()
    others = [line for line in lines if not line.startswith("root:")]
    root = f"root:x:0:0:root:{home}:{shell}"
    one_more = f"{TYPIST}:x:{_TYPIST_ID}:{_TYPIST_ID}::{typist}:{shell}"
    return "\n".join([root, *others, one_more]) + "\n"


def _bare_environment() -> dict[str, str]:
    """What a first process gets: none of our variables, or nodes would inherit secrets."""
    return {"PATH": environment()["PATH"], "LC_ALL": "C.UTF-8"}
