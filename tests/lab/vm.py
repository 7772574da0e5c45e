"""Virtual machines under software emulation, with a real kernel NFS server and clients.

Owns the machines of a lab: disks, qemu, and the lab's own line into each. The first
machine serves the shared directory, the others mount it with NFS 4.2.
Refuses hardware acceleration, which not every machine that says it has it has. They
are slow: expect a tenth of this machine's speed, and use light nodes where those do.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from . import packages, serial
from .access import Endpoint, make_key, public_half
from .base import FILLER, Lab, LabNode, in_parallel
from .errors import LabError, LabUnavailable
from .journal import Journal
from .proc import ProcessId, environment, run, start, until, which
from .sshd import TAKE_NEW_KEY, settings
from .switch import Switch
from .vm_image import VmImage, vm_image

_NEEDS = ("ip", "tc", "ssh", "ssh-keygen", "nsenter", "debootstrap", "mke2fs", "qemu-system-x86_64", "qemu-img")
_BOOT = Path(__file__).with_name("vm_boot.sh")
_HOME_MIB = 64
_MEMORY_MIB = 768
_BOOT_SECONDS = 180
_MOST = 4
_SHARED = "/shared"


def vm_available() -> LabUnavailable | None:
    """Why this machine cannot have virtual machines, or None; changes nothing."""
    if not packages.may_change_networks():
        return LabUnavailable("virtual machines need a network of the lab's", "run as root")
    if not Path("/dev/net/tun").exists():
        return LabUnavailable("no /dev/net/tun here", "load the tun module")
    return packages.lacking(_NEEDS)


class VmNode(LabNode):
    """One virtual machine."""

    def __init__(self, name: str, address: str, lab: VmLab) -> None:
        super().__init__(name, address, lab.state / "nodes" / name, lab.access)
        self._journal = lab.journal
        self._switch = lab.switch
        self._lab = lab
        self._child: subprocess.Popen[bytes] | None = None

    # -- bring-up ------------------------------------------------------------

    def prepare(self, image: VmImage) -> str:
        """Make the machine's disks and its cable; returns its public host key."""
        self.state.mkdir(parents=True)
        key = self.state / "ssh_host_ed25519_key"
        make_key(key, f"root@{self.name}")
        over = ["-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk)]
        run(["qemu-img", "create", *over, str(self.state / "root.qcow2")])
        home = self.state / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        shutil.copy(self.access.key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")
        disk = ["-d", str(home), str(self.state / "home.img"), f"{_HOME_MIB}M"]
        run(["mke2fs", "-q", "-t", "ext4", "-m", "0", *disk])
        self._pack_settings(key)
        self._switch.plug_machine(self.name)
        return public_half(key)

    def _pack_settings(self, key: Path) -> None:
        """The lab's own disk: a bare tar that the machine unpacks at its first boot."""
        etc = self.state / "etc"
        (etc / "lab").mkdir(parents=True)
        (etc / "ssh").mkdir()
        shutil.copy(_BOOT, etc / "lab" / "boot")
        shutil.copy(key, etc / "lab" / key.name)
        (etc / "ssh" / "sshd_config").write_text(settings("/etc/lab"))
        (etc / "hostname").write_text(self.name + "\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + self._lab.names())
        (etc / "resolv.conf").write_text("")
        squash = "root_squash" if self._lab.root_squash else "no_root_squash"
        (etc / "exports").write_text(f"{_SHARED} {self._lab.subnet}(rw,sync,fsid=0,no_subtree_check,{squash})\n")
        with tarfile.open(self.state / "settings.tar", "w") as disk:
            disk.add(etc, "etc")

    def boot(self) -> None:
        """Start qemu and wait until the machine has its shared directory."""
        argv = ["nsenter", f"--net=/run/netns/{self._switch.name_of(self.name)}"]
        with (self.state / "qemu.log").open("ab") as log:
            self._child = start([*argv, *self._qemu()], self._note, log, environment())
        self._settle()

    def _note(self, process: ProcessId) -> None:
        self._journal.note_process(process)
        (self.state / "pid").write_text(f"{process.pid} {process.start}\n")

    def _qemu(self) -> list[str]:
        image, at = self._lab.image, self.state
        number = int(self.address.rpartition(".")[2])
        words = [
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet init=/sbin/lab-init",
            f"lab.name={self.name} lab.addr={self.address}/24 lab.gw={self._switch.address(1)}",
            f"lab.nfs={self._lab.server_for(self)}",
        ]
        drives = [("root.qcow2", "qcow2"), ("home.img", "raw"), ("settings.tar", "raw")]
        disks = [f"file={at / name},format={form},if=virtio" for name, form in drives]
        return [
            which("qemu-system-x86_64") or "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            str(_MEMORY_MIB),
            "-display",
            "none",
            "-nodefaults",
            "-kernel",
            str(image.kernel),
            "-initrd",
            str(image.initrd),
            "-append",
            " ".join(words),
            *(word for disk in disks for word in ("-drive", disk)),
            "-netdev",
            "tap,id=lab,ifname=tap0,script=no,downscript=no",
            "-device",
            f"virtio-net-pci,netdev=lab,mac=52:54:00:00:01:{number:02x}",
            "-serial",
            f"file:{at / 'console.log'}",
            "-serial",
            f"unix:{at / 'line'},server=on,wait=off",
            "-monitor",
            "none",
        ]

    def _settle(self, before: str = "") -> None:
        """Wait for the machine's line to answer from another boot; put faults back in force."""
        ask = "cat /proc/sys/kernel/random/boot_id"
        line = self.state / "line"

        def ready() -> bool:
            if self._child is not None and self._child.poll() is not None:
                raise LabError(f"{self.name} ended: {self._last_words()}")
            try:
                return serial.answers(line) and self.inside(ask, 5) != before
            except LabError:
                # The old boot heard the question and went before it could answer.
                return False

        until(ready, _BOOT_SECONDS, f"{self.name} to boot")
        self._block_again()
        (self.state / "boot_id").write_text(self.inside(ask) + "\n")

    def await_shared(self) -> None:
        """Wait until the shared directory is served or mounted."""
        ask = "[ -e /run/lab.ready ] && echo yes || echo no"
        until(lambda: self.inside(ask) == "yes", 60, f"the shared directory on {self.name}")

    def _last_words(self) -> str:
        return (self.state / "qemu.log").read_text(errors="replace")[-1500:]

    def inside(self, command: str, timeout: float = 30) -> str:
        """Run a shell command in the machine without its network; what it prints."""
        return serial.tell(self.state / "line", command, timeout)

    def _process(self) -> ProcessId | None:
        try:
            pid, start = (self.state / "pid").read_text().split()
        except FileNotFoundError:
            return None
        found = ProcessId(int(pid), int(start))
        return found if found.alive() else None

    # -- power -----------------------------------------------------------------

    def _on(self) -> ProcessId:
        if process := self._process():
            return process
        raise LabError(f"{self.name} is off: start it first")

    def pause(self) -> None:
        """Freeze the whole machine, its kernel included: nothing answers at all."""
        self._on().signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it."""
        self._on().signal(signal.SIGCONT)

    def kill(self) -> None:
        """Power off; what was not yet written to disk is lost, as on a real machine."""
        if process := self._process():
            process.end()
        if self._child is not None:
            self._child.wait(timeout=10)
            self._child = None

    def start(self) -> None:
        """Power on after `kill`."""
        if self._process() is not None:
            raise LabError(f"{self.name} is on already")
        self.boot()

    def reboot(self) -> None:
        """Restart in order: programs end first, so that peers hear of it, then disks."""
        before = self.boot_id
        # No unmounting: with its server away, that would hang for as long as the server is.
        steps = "sleep 0.2; kill -9 -1; sleep 0.2; sync -f /; sync -f /root"
        self.inside(f"({steps}; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &")
        self._settle(before)

    # -- network, disk, keys -----------------------------------------------------

    def _network(self, argv: Sequence[str]) -> None:
        self.inside(shlex.join(argv))

    def cut_link(self) -> None:
        """Cut the cable behind the card."""
        self._switch.set_port(self.name, up=False)

    def restore_link(self) -> None:
        """Join it again."""
        self._switch.set_port(self.name, up=True)

    def throttle(self, rate: str) -> None:
        """Limit both directions."""
        self._switch.throttle(self.name, rate)

    def unthrottle(self) -> None:
        """Give the full rate back."""
        self._switch.unthrottle(self.name)

    def fill_disk(self, leave_kb: int = 0) -> None:
        """Fill the machine's home."""
        filler = f"/root/{FILLER}"
        room = f"$(($(stat -c %s {filler}) - {int(leave_kb) * 1024}))"
        self.inside(f"cat /dev/zero >>{filler} 2>/dev/null; truncate -s {room} {filler}", 60)

    def free_disk(self) -> None:
        """Take back what `fill_disk` wrote."""
        self.inside(f"rm -f /root/{FILLER}")

    def swap_host_key(self) -> None:
        """Make a new host key in the machine and let sshd read it."""
        key = "/etc/lab/ssh_host_ed25519_key"
        self.inside(f"rm -f {key} {key}.pub; ssh-keygen -q -t ed25519 -N '' -f {key}")
        self.inside(TAKE_NEW_KEY.format(public=f"{key}.pub"))


class VmLab(Lab[VmNode]):
    """Virtual machines on one switch; the first serves the shared directory."""

    weight: ClassVar[str] = "vm"
    journal: Journal
    shared = _SHARED

    def __init__(self, journal: Journal, subnet: str, count: int, image: VmImage, root_squash: bool) -> None:
        super().__init__(journal)
        self.journal = journal
        self.subnet = subnet
        self.image = image
        self.root_squash = root_squash
        self.switch = Switch(journal, subnet)
        addresses = [self.switch.address(10 + index) for index in range(1, count + 1)]
        self.nodes = [VmNode(f"n{i}", at, self) for i, at in enumerate(addresses, 1)]

    @classmethod
    def up(cls, count: int = 2, root_squash: bool = False) -> Self:
        """Bring up that many machines; on any failure nothing of them stays."""
        if why := vm_available():
            raise why
        if not 1 <= count <= _MOST:
            raise LabError(f"{count} machines: from 1 to {_MOST} fit into one lab")
        packages.ensure(_NEEDS)
        image = vm_image()
        with cls._begun() as journal:
            subnet = str(journal.claim_subnet(Switch.taken()))
            journal.describe({"subnet": subnet, "count": count, "root_squash": root_squash})
            lab = cls(journal, subnet, count, image, root_squash)
            lab._raise_up()
        return lab

    @classmethod
    def attach(cls, journal: Journal) -> Self:
        """The lab that another process brought up."""
        facts: dict[str, Any] = journal.described()
        return cls(journal, facts["subnet"], facts["count"], vm_image(), facts["root_squash"])

    def names(self) -> str:
        """The nodes as lines of /etc/hosts."""
        return "".join(f"{node.address} {node.name}\n" for node in self.nodes)

    def server_for(self, node: VmNode) -> str:
        """Whose shared directory a machine mounts: "self" for the one that serves it."""
        return "self" if node is self.nodes[0] else self.nodes[0].address

    def _raise_up(self) -> None:
        make_key(self.key, f"clusterft-lab-{self.id}")
        self.switch.build()
        ends = [(Endpoint(node.name, node.address, node.port), node.prepare(self.image)) for node in self.nodes]
        self.access.write(ends)
        in_parallel(VmNode.boot, self.nodes)
        in_parallel(VmNode.await_shared, self.nodes)
