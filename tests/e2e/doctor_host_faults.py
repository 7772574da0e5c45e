"""Faults of the controller, of SSH and of a node's system, on light nodes and on full ones: real, and mended.

Each names the finding that must come of it. Used by test_doctor_lab_host.py and by the suite of faults.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from doctoring import AnyLab, Desk, Fault, node_of, on

from lab import LightLab
from lab.proc import until

Act = Callable[[AnyLab, Desk], object]


def shell(node: str, script: str) -> Act:
    """A script on a node."""
    return lambda lab, desk: on(lab, node, script)


def edit(old: str, new: str) -> Act:
    """Other words in the hostfile."""

    def act(lab: AnyLab, desk: Desk) -> None:
        text = desk.hosts.read_text()
        assert old in text, text
        desk.hosts.write_text(text.replace(old, new))

    return act


# What `shutdown -r +120` leaves, where systemd does the work.
_REBOOT = (
    "mkdir -p /run/systemd/shutdown; printf 'USEC=%s000000\nWARN_WALL=1\nMODE=reboot\n' $(($(date +%s) + 7195)) "
    ">/run/systemd/shutdown/scheduled"
)


def _lines(desk: Desk, drop: str = "", add: str = "") -> None:
    lines = [line for line in desk.hosts.read_text().splitlines() if not drop or not line.startswith(drop)]
    desk.hosts.write_text("\n".join([*lines, *([add] if add else [])]) + "\n")


def _stranger(lab: AnyLab, desk: Desk) -> None:
    lines = desk.known_hosts.read_text().splitlines(keepends=True)
    desk.known_hosts.write_text("".join(line for line in lines if not line.startswith("n2,")))


def _met(lab: AnyLab, desk: Desk) -> None:
    """The key that n2 presents by now is taken, as a person does who has compared it."""
    kind, blob = (node_of(lab, "n2").state / "ssh_host_ed25519_key.pub").read_text().split()[:2]
    lines = [line for line in lab.known_hosts.read_text().splitlines() if not line.startswith("n2,")]
    lab.known_hosts.write_text("\n".join([*lines, f"n2,{node_of(lab, 'n2').address} {kind} {blob}"]) + "\n")
    desk.known_hosts.write_text(lab.known_hosts.read_text())


def _own_key(lab: AnyLab, desk: Desk) -> None:
    """The key with which one node is reached lies open in the person's home."""
    key = desk.root / "id_lab"
    shutil.copy(lab.key, key)
    key.chmod(0o644)
    lines = desk.hosts.read_text().splitlines()
    of_n2 = next(line for line in lines if line.startswith("n2 "))
    _lines(desk, "n2 ", of_n2.replace(str(lab.key), str(key)))


def _sshd(lines: str) -> Act:
    """Other settings of n2's sshd, which reads them anew."""

    def act(lab: AnyLab, desk: Desk) -> None:
        assert isinstance(lab, LightLab)
        node = lab.node("n2")
        path = node.state / "sshd_config"
        ours = ("MaxSessions", "KexAlgorithms")
        kept = [line for line in path.read_text().splitlines() if not line.startswith(ours)]
        path.write_text("\n".join([lines, *kept]) + "\n")
        first = node._first()
        assert first is not None
        heard = (node.state / "console.log").stat().st_size
        first.signal(signal.SIGHUP)
        until(lambda: node._listens(heard), 10, "sshd of n2 to read its settings")

    return act


_IDLE = "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established"


def _group(kind: str) -> Path:
    """A cgroup of this machine's own, whichever version it has."""
    first = Path("/sys/fs/cgroup") / kind
    if first.is_dir():
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if f":{kind}:" in line)
        return Path(f"{first}{own.rpartition(':')[2]}") / "clusterft-lab-confined"
    (first.parent / "cgroup.subtree_control").write_text(f"+{kind}")
    return first.parent / "clusterft-lab-confined"


def _confined(kind: str, old: str, new: str, value: int) -> Act:
    """Logins of n2 live in a cgroup with a limit, as with MemoryMax or TasksMax of a slice."""

    def act(lab: AnyLab, desk: Desk) -> None:
        assert isinstance(lab, LightLab)
        first, group = lab.node("n2")._first(), _group(kind)
        assert first is not None
        group.mkdir()
        file = group / old if (group / old).exists() else group / new
        file.write_text(str(value))
        (group / "cgroup.procs").write_text(str(first.pid))

    return act


def _freed(kind: str) -> Act:
    """All that is in it goes back to where this program is."""

    def act(lab: AnyLab, desk: Desk) -> None:
        group = _group(kind)

        def empty() -> bool:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (group.parent / "cgroup.procs").write_text(pid)
            return not (group / "cgroup.procs").read_text()

        until(empty, 10, "the cgroup to be empty")
        group.rmdir()

    return act


def _account(changed: str, ends: str) -> Act:
    """PAM reads root's line of n2's shadow: when its password was changed, in days, and when the account ends."""

    def act(lab: AnyLab, desk: Desk) -> None:
        shadow = node_of(lab, "n2").state / "shadow"
        others = shadow.read_text().splitlines()[1:]
        shadow.write_text("\n".join([f"root:*:{changed}:0:99999:7::{ends}:", *others]) + "\n")
        _sshd("UsePAM yes")(lab, desk)

    return act


def _shell_of_root(path: str) -> Act:
    """As /etc/passwd of n2 has it."""

    def act(lab: AnyLab, desk: Desk) -> None:
        passwd = node_of(lab, "n2").state / "passwd"
        first, *others = passwd.read_text().splitlines()
        passwd.write_text("\n".join([f"{first.rpartition(':')[0]}:{path}", *others]) + "\n")

    return act


def _account_well(lab: AnyLab, desk: Desk) -> None:
    _account("19000", "")(lab, desk)
    _sshd("UsePAM no")(lab, desk)


def _without_key(lab: AnyLab, desk: Desk) -> None:
    on(lab, "n2", "mv ~/.ssh/authorized_keys ~/.ssh/kept")


def _with_key(lab: AnyLab, desk: Desk) -> None:
    """Not over SSH: nobody is let in."""
    assert isinstance(lab, LightLab)
    home = lab.node("n2").home / ".ssh"
    (home / "kept").rename(home / "authorized_keys")


def _unplug(lab: AnyLab, desk: Desk) -> None:
    """Some time ago: what remembers the card's address would be believed for another 10 s."""
    node = node_of(lab, "n2")
    node.cut_link()
    subprocess.run(["ip", "neigh", "flush", "to", node.address], check=True, timeout=10)


def _from_here(action: str) -> Act:
    """Only what comes from the controller is dropped."""

    def act(lab: AnyLab, desk: Desk) -> None:
        node = node_of(lab, "n2")
        here = node.address.rpartition(".")[0] + ".1"
        node._network(["iptables", "-w", action, "INPUT", "-s", here, "-p", "tcp", "--dport", "22", "-j", "DROP"])

    return act


def _large(action: str) -> Act:
    """As on a way whose MTU is smaller than n2 believes."""
    rule = ["OUTPUT", "-p", "tcp", "--sport", "22", "-m", "length", "--length", "600:65535", "-j", "DROP"]
    return lambda lab, desk: node_of(lab, "n2")._network(["iptables", "-w", action, *rule])


_FREEZE = """
f=$(mktemp /var/tmp/doctoring-XXXXXX); truncate -s 16M $f; mkfs.ext4 -q $f; mkdir -p /run/frozen
mount -o loop $f /run/frozen; rm $f; fsfreeze -f /run/frozen
setsid dd if=/dev/zero of=/run/frozen/x bs=4k count=1 >/dev/null 2>&1 </dev/null &
sleep 0.5
"""
_THAW = "fsfreeze -u /run/frozen; sleep 0.5; umount -l /run/frozen"

SSH: tuple[Fault, ...] = (
    Fault("wrong key", "ssh.auth", _without_key, _with_key, ("ssh-copy-id -p 22 root@", "chmod go-w ~ ~/.ssh")),
    Fault(
        "wrong port",
        "ssh.refused",
        edit(".12 user=root port=22", ".12 user=root port=2222"),
        edit("port=2222", "port=22"),
        ("check port= in the hostfile",),
        evidence=(":2222: connection refused",),
    ),
    Fault(
        "unknown name",
        "ssh.dns",
        lambda lab, desk: _lines(desk, "n2 ", "n2.nowhere.invalid slots=1 user=root"),
        lambda lab, desk: _lines(desk, "n2.nowhere", lab.hostfile.read_text().splitlines()[1]),
        ("give addr= in the hostfile",),
        nodes=("n2.nowhere.invalid",),
    ),
    Fault(
        "changed host key",
        "ssh.hostkey-changed",
        lambda lab, desk: node_of(lab, "n2").swap_host_key(),
        _met,
        ("on the console of n2: ssh-keygen -lf /etc/ssh/ssh_host_", "if it does: ssh-keygen -R"),
        evidence=("SHA256:",),
    ),
    Fault(
        "unknown host key",
        "ssh.hostkey-unknown",
        _stranger,
        _met,
        ("on the console of n2: ssh-keygen -lf /etc/ssh/ssh_host_", "if it does: clusterft up --hosts "),
        evidence=("SHA256:",),
    ),
    Fault(
        "cable pulled",
        "ssh.no-route",
        _unplug,
        lambda lab, desk: node_of(lab, "n2").restore_link(),
        ("power the node on, check its cable",),
        evidence=("n1, n3 cannot reach sshd at",),
    ),
    Fault(
        "port 22 dropped",
        "ssh.timeout",
        lambda lab, desk: node_of(lab, "n2").block_port(22),
        lambda lab, desk: node_of(lab, "n2").unblock_ports(),
        ("power the node on; open its ssh port",),
        evidence=("no answer within 10 s", "n1, n3 cannot reach sshd at"),
    ),
    Fault(
        "port 22 dropped for this machine alone",
        "ssh.timeout",
        _from_here("-I"),
        _from_here("-D"),
        ("on n2: sudo ufw prepend allow from", "to any port 22 proto tcp"),
        evidence=("n1, n3 can reach sshd at", "the way from this machine"),
    ),
    Fault(
        "port 22 reset",
        "ssh.refused",
        lambda lab, desk: node_of(lab, "n2").block_port(22, "reject"),
        lambda lab, desk: node_of(lab, "n2").unblock_ports(),
        ("systemctl enable --now ssh",),
    ),
    Fault(
        "port 22 prohibited",
        "ssh.no-route",
        lambda lab, desk: node_of(lab, "n2").block_port(22, "prohibit"),
        lambda lab, desk: node_of(lab, "n2").unblock_ports(),
        ("firewall-cmd --permanent --add-service=ssh",),
        evidence=("no route to host after 0.",),
    ),
    Fault(
        "paused",
        "ssh.timeout",
        lambda lab, desk: node_of(lab, "n2").pause(),
        lambda lab, desk: node_of(lab, "n2").resume(),
        ("look at its console",),
        evidence=("took the connection, and said nothing",),
    ),
    Fault(
        "shell that talks",
        "ssh.noisy-shell",
        shell("n2", "echo 'echo Welcome to n2, have a nice day' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("[[ $- == *i* ]] || return",),
        evidence=("have a nice day",),
        status="warn",
    ),
    Fault(
        "shell that ends every command",
        "ssh.noisy-shell",
        shell("n2", "printf 'export A=1\\nexec no-such-shell\\n' >~/.bashrc"),
        lambda lab, desk: (lab.node("n2").home / ".bashrc").unlink(),  # no command gets through
        ("[[ $- == *i* ]] || return", "install no-such-shell", "sftp "),
        evidence=(".bashrc, line 2: exec: no-such-shell: not found",),
    ),
    Fault(
        "little memory for logins",
        "os.memory-limit",
        _confined("memory", "memory.limit_in_bytes", "memory.max", 400 << 20),
        _freed("memory"),
        ("sudo tee /sys/fs/cgroup", "MemoryMax=infinity"),
        evidence=("may use 400 MiB of its memory", "clusterft-lab-confined"),
        options=(),
    ),
    Fault(
        "few processes for logins",
        "os.nproc",
        _confined("pids", "pids.max", "pids.max", 100),
        _freed("pids"),
        ("sudo tee /sys/fs/cgroup", "TasksMax=infinity"),
        evidence=("may have 100 processes", "clusterft-lab-confined"),
        options=(),
    ),
    Fault(
        "sshd that knows the newest key exchange alone",
        "ssh.handshake",
        _sshd("KexAlgorithms sntrup761x25519-sha512@openssh.com"),
        _sshd("MaxSessions 10"),
        ("sshd -T | grep -i '^KexAlgorithms'", "add ,curve25519-sha256"),
        evidence=("no acceptable kex algorithm",),
    ),
    Fault(
        "idle connections that are forgotten",
        "os.conntrack",
        shell("n2", f"{_IDLE}=120"),
        shell("n2", f"{_IDLE}=432000"),
        ("nf_conntrack_tcp_timeout_established=432000",),
        evidence=("idle for 120 s",),
        status="warn",
    ),
    Fault(
        "half a processor for logins",
        "os.cpu-limit",
        _confined("cpu", "cpu.cfs_quota_us", "cpu.max", 50_000),
        _freed("cpu"),
        ("sudo tee /sys/fs/cgroup", "CPUQuota="),
        evidence=("may use 0.5 of", "clusterft-lab-confined"),
        status="warn",
        options=("--quick",),
    ),
    Fault(
        "few addresses for logins",
        "os.memory-limit",
        shell("n2", "echo 'ulimit -v 500000' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("grep -n 'ulimit.*-v' ~/.bashrc",),
        evidence=("Max address space (ulimit -v) of a login: 488 MiB",),
        also=("run.import",),  # of the job's Python, which finds no memory
        options=(),
    ),
    Fault(
        "little time for processes",
        "os.cpu-limit",
        shell("n2", "echo 'ulimit -t 900' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("grep -n 'ulimit.*-t' ~/.bashrc", "remove that line"),
        evidence=("killed once it has used 900 s",),
    ),
    Fault(
        "small data segments for logins",
        "os.memory-limit",
        shell("n2", "echo 'ulimit -d 400000' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("grep -n 'ulimit.*-d' ~/.bashrc",),
        evidence=("Max data size (ulimit -d) of a login: 391 MiB",),
    ),
    Fault(
        "logins that give way to all others",
        "os.cpu-limit",
        shell("n2", "renice -n 19 -p $(pgrep -o sshd) >/dev/null"),
        shell("n2", "renice -n 0 -p $(pgrep -o sshd) >/dev/null"),
        ("sudo renice -n 0 -p $(pgrep -o sshd)", "Nice="),
        evidence=("have nice 19",),
        status="warn",
    ),
    Fault(
        "logins on one processor",
        "os.cpu-limit",
        shell("n2", "taskset -acp 0 $(pgrep -o sshd) >/dev/null"),
        shell("n2", "taskset -acp 0-$(($(getconf _NPROCESSORS_ONLN) - 1)) $(pgrep -o sshd) >/dev/null"),
        ("sudo taskset -acp 0-", "CPUAffinity="),
        evidence=("may run on 1 of ",),
        status="warn",
    ),
    Fault(
        "reboot that is due",
        "os.shutdown",
        shell("n2", _REBOOT),
        shell("n2", "rm -r /run/systemd/shutdown"),
        ("sudo shutdown -c",),
        evidence=("goes down (reboot) in 120 min",),
        status="warn",
    ),
    Fault(
        "few ports for connections",
        "os.portrange",
        shell("n2", "echo 40000 40063 >/proc/sys/net/ipv4/ip_local_port_range"),
        shell("n2", "echo 32768 60999 >/proc/sys/net/ipv4/ip_local_port_range"),
        ("net.ipv4.ip_local_port_range=32768 60999",),
        evidence=("has 64 ports",),
        status="warn",
    ),
    Fault(
        "firewall without a rule for lo",
        "net.loopback",
        shell("n2", "iptables -A INPUT -i lo -j DROP"),
        shell("n2", "iptables -D INPUT -i lo -j DROP"),
        ("sudo iptables -I INPUT -i lo -j ACCEPT",),
        evidence=("cannot reach itself",),
        options=("--only", "net.loopback"),
    ),
    Fault(
        "lo down",
        "net.loopback",
        shell("n2", "ip link set lo down"),
        shell("n2", "ip link set lo up"),
        ("on n2: sudo ip link set lo up",),
        evidence=("lo is down",),
        options=("--only", "net.loopback"),
    ),
    Fault(
        "small files alone for logins",
        "fs.file-size",
        shell("n2", "echo 'ulimit -f 1000000' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("on n2: ulimit -f   must say unlimited", "grep -n 'ulimit.*-f' ~/.bashrc"),
        evidence=("File too large", "no file of 7 GiB, as a model is"),
        options=(),
    ),
    Fault(
        "password that must be changed",
        "ssh.auth",
        _account("0", ""),
        _account_well,
        ("ssh -t root@", " passwd ", "sudo chage -d $(date +%F) root"),
        evidence=("Password change required", "has to be changed before anything else"),
    ),
    Fault(
        "account without a shell",
        "ssh.auth",
        _shell_of_root("/bin/false"),
        _shell_of_root("/bin/bash"),
        ("sudo chsh -s /bin/bash root",),
        evidence=("ends at once without a word, exit 1", "/bin/false"),
    ),
    Fault(
        "account whose shell is not installed",
        "ssh.auth",
        _shell_of_root("/usr/bin/zsh-that-is-gone"),
        _shell_of_root("/bin/bash"),
        ("sudo journalctl -u ssh -n 20",),
    ),
    Fault(
        "account that is over",
        "ssh.auth",
        _account("19000", "1"),
        _account_well,
        ("sudo chage -E -1 root",),
        evidence=("account has expired", "has an end, which has passed"),
    ),
    Fault(
        "key that others may read",
        "ssh.key-perms",
        _own_key,
        lambda lab, desk: (desk.root / "id_lab").chmod(0o600),
        ("chmod 600 ",),
        evidence=("0644 ",),
        status="warn",
    ),
    Fault(
        "large packets lost",
        "ssh.kex-hang",
        _large("-I"),
        _large("-D"),
        ("compare the MTU", "mtu 1500"),
        evidence=("it said hello, and nothing more",),
    ),
    Fault(
        "few channels",
        "ssh.maxsessions",
        _sshd("MaxSessions 1"),
        _sshd("MaxSessions 10"),
        ("MaxSessions 10",),
        status="warn",
    ),
)

CONTROLLER: tuple[Fault, ...] = (
    Fault(
        "one machine twice",
        "ctl.same-host-twice",
        lambda lab, desk: _lines(desk, add=lab.hostfile.read_text().splitlines()[1].replace("n2 ", "again ", 1)),
        lambda lab, desk: _lines(desk, "again "),
        ("delete all but one of n2, again",),
        nodes=("n2", "again"),
    ),
    Fault(
        "one name for two machines",
        "ctl.same-hostname",
        shell("n2", "hostname n1"),
        shell("n2", "hostname n2"),
        ("on n2: sudo hostnamectl set-hostname n2",),
        nodes=("n1", "n2"),
        status="warn",
    ),
)

HOST: tuple[Fault, ...] = (
    Fault(
        "full disk",
        "os.disk-full",
        lambda lab, desk: node_of(lab, "n2").fill_disk(),
        lambda lab, desk: node_of(lab, "n2").free_disk(),
        ("du -xh",),
        evidence=("0 MiB of 256 MiB free",),
    ),
    Fault(
        "no inodes",
        "os.inodes",
        shell("n2", "mount -t tmpfs -o nr_inodes=2000 few /var/tmp && cd /var/tmp && seq 1995 | xargs touch"),
        shell("n2", "umount /var/tmp"),
        ("du -x --inodes /var/tmp",),
        evidence=("of 2000 inodes free",),
    ),
    Fault(
        "home read-only",
        "os.ro-fs",
        shell("n2", "mount -o remount,bind,ro ~"),
        shell("n2", "mount -o remount,bind,rw ~"),
        ("mount -o remount,rw /",),
        evidence=("ro,",),
        also=("fs.home", "fs.squash", "fs.not-writable"),
    ),
    Fault(
        "small /dev/shm",
        "os.shm",
        shell("n2", "mount -o remount,size=64m /dev/shm"),
        shell("n2", "mount -o remount,size=50% /dev/shm"),
        ("mount -o remount,size=50% /dev/shm",),
        status="warn",
        evidence=("64 MiB",),
    ),
    Fault(
        "leftovers of a run",
        "os.shm",
        shell("n2", "mount -o remount,size=1g /dev/shm; head -c 30000000 /dev/zero >/dev/shm/nccl-Ab12Cd"),
        shell("n2", "rm /dev/shm/nccl-*; mount -o remount,size=50% /dev/shm"),
        ("rm /dev/shm/nccl-*",),
        evidence=("nccl-Ab12Cd 29 MiB",),
        status="warn",
    ),
    Fault(
        "process that hangs",
        "os.hung-task",
        shell("n2", _FREEZE),
        shell("n2", _THAW),
        ("dmesg", "fsfreeze -u"),
        evidence=(" dd waits in ",),
        status="warn",
    ),
    Fault(
        "port in the range of connections",
        "os.portrange",
        shell("n2", "echo 20000 60999 >/proc/sys/net/ipv4/ip_local_port_range"),
        shell("n2", "echo 29500 >/proc/sys/net/ipv4/ip_local_reserved_ports"),
        ("net.ipv4.ip_local_reserved_ports=29500",),
        status="warn",
        evidence=("20000 60999",),
    ),
    Fault(
        "two cards in one subnet",
        "os.rp-filter",
        shell(
            "n2",
            "a=$(ip -o -4 addr show eth0 | awk '{print $4}'); "
            "ip link add eth1 type veth peer name eth2; ip link set eth2 up; "
            "ip addr add ${a%.*}.213/24 dev eth1; ip link set eth1 up; "
            "for c in all eth0 eth1; do echo 1 >/proc/sys/net/ipv4/conf/$c/rp_filter; done",
        ),
        shell("n2", "ip link del eth1; for c in all eth0; do echo 0 >/proc/sys/net/ipv4/conf/$c/rp_filter; done"),
        ("net.ipv4.conf.eth1.rp_filter=2",),
        evidence=("eth0", "eth1"),
        status="warn",
        also=("net.dup-route", "net.dup-ip", "nccl.bridge", "net.wrong-nic"),
    ),
    Fault(
        "no limit of the stack",
        "os.stack",
        shell("n2", "echo 'ulimit -s unlimited' >~/.bashrc"),
        shell("n2", "rm ~/.bashrc"),
        ("soft stack 8192",),
        status="warn",
    ),
)

LIGHT: tuple[Fault, ...] = (*SSH, *CONTROLLER, *HOST)


def _other_user(lab: AnyLab, desk: Desk) -> None:
    of_n2 = next(line for line in desk.hosts.read_text().splitlines() if line.startswith("n2 "))
    _lines(desk, "n2 ", of_n2.replace("user=worker", "user=guest"))


def _shared_login(lab: AnyLab, desk: Desk) -> None:
    """A person's ssh keeps a connection open, and then they are made a member of a group."""
    control = desk.root / "cm"
    config = desk.root / ".ssh" / "config"
    node = node_of(lab, "n2")
    config.write_text(
        f"Host n2\n  HostName {node.address}\n  User worker\n  IdentityFile {lab.key}\n  ControlPath {control}\n"
    )
    way = ["ssh", "-F", str(config), "-o", f"UserKnownHostsFile={lab.known_hosts}", "-o", "BatchMode=yes"]
    subprocess.run([*way, "-fNM", "n2"], check=True, timeout=20, env=desk.env)
    on(lab, "n2", "groupadd -f cards && usermod -aG cards worker")


def _own_login(lab: AnyLab, desk: Desk) -> None:
    config = desk.root / ".ssh" / "config"
    subprocess.run(["ssh", "-F", str(config), "-O", "exit", "n2"], check=True, timeout=20, env=desk.env)
    on(lab, "n2", "gpasswd -d worker cards")


_PIECES = "/etc/systemd/logind.conf.d"
FULL: tuple[Fault, ...] = (
    Fault(
        "sleeps when idle",
        "os.suspend",
        shell("n2", f"mkdir -p {_PIECES}; printf '[Login]\\nIdleAction=suspend\\n' >{_PIECES}/idle.conf"),
        shell("n2", "mkdir -p /etc/systemd/system; ln -s /dev/null /etc/systemd/system/sleep.target"),
        ("systemctl mask sleep.target",),
        evidence=("IdleAction=suspend in /etc/systemd/logind.conf.d/idle.conf",),
        status="warn",
    ),
    Fault(
        "clears up after people",
        "os.removeipc",
        shell("n2", f"mkdir -p {_PIECES}; printf '[Login]\\nRemoveIPC=yes\\n' >{_PIECES}/tidy.conf"),
        shell("n2", f"printf '[Login]\\nRemoveIPC=no\\n' >{_PIECES}/zz-clusterft.conf"),
        ("RemoveIPC=no", "zz-clusterft.conf"),
        evidence=("RemoveIPC=yes in", "tidy.conf"),
        status="warn",
        user="worker",
        runtime="docker",
    ),
    Fault(
        "no room for Docker",
        "os.disk-full",
        lambda lab, desk: lab.node("n2").engine_disk(200),
        lambda lab, desk: lab.node("n2").engine_disk(None),
        ("docker image prune",),
        runtime="docker",
        evidence=("/var/lib/docker",),
    ),
    Fault(
        "another UID",
        "os.uid",
        _other_user,
        edit("user=guest", "user=worker"),
        ("log in as users with one UID",),
        status="warn",
        user="worker",
    ),
    Fault(
        "closed by /etc/nologin",
        "ssh.auth",
        shell("n2", "echo Maintenance until noon >/etc/nologin"),
        shell("n2", "rm -f /etc/nologin"),
        ("sudo rm -f /etc/nologin",),
        evidence=("Maintenance until noon", "nobody but root"),
        user="worker",
    ),
    Fault(
        "account without a shell",
        "ssh.auth",
        shell("n2", "usermod -s /usr/sbin/nologin worker"),
        shell("n2", "usermod -s /bin/bash worker"),
        ("sudo chsh -s /bin/bash worker",),
        evidence=("This account is currently not available", "has no shell"),
        user="worker",
    ),
    Fault(
        "ssh that remembers old groups",
        "ctl.stale-mux",
        _shared_login,
        _own_login,
        ("ssh -O stop -S", " n2 "),
        evidence=("cards",),
        status="warn",
        user="worker",
    ),
)
