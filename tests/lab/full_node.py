"""One full node: a container with an sshd and a Docker engine of its own.

Owns the container, its engine's disk, its keys, and its faults, which are made inside
it. Refuses to know the other nodes: network, homes and images are the lab's (full.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .access import make_key, private_file, public_half
from .base import FILLER, LabNode
from .engine import LABEL, docker
from .errors import LabError
from .node_image import ENGINES
from .proc import run, until
from .sshd import TAKE_NEW_KEY, settings

if TYPE_CHECKING:
    from .full import FullLab

SHARED = "/shared"
# Where the home of `worker` comes from. What a volume holds is made by the node at its boot,
# so an engine need not copy the image's into it, which several nodes at once would do.
_HOMES = {
    "own": "",
    "shared": "--volume={volume}:/home/worker:nocopy",
    "squashed": "--volume={volume}:/export/worker:nocopy --device=/dev/fuse",
}
HOMES = tuple(_HOMES)
# Whether it can be frozen -> how a node has the shared directory.
_SHARED_BY = {
    False: f"--volume={{volume}}:{SHARED}",
    True: "--volume={volume}:/export/shared --device=/dev/fuse",
}
_READY = (
    "until [ ! -e /usr/sbin/dockerd ] || docker version >/dev/null 2>&1; do sleep 0.1; done; "
    "until grep -q ':0016 .* 0A ' /proc/net/tcp; do sleep 0.1; done; cat /proc/sys/kernel/random/boot_id"
)
_MAY = (
    "--cap-add=SYS_ADMIN",
    "--cap-add=SYS_PTRACE",  # to enter a container whose user is not root
    "--cap-add=NET_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
)


class FullNode(LabNode):
    """A container that looks like a machine with a Docker engine."""

    def __init__(self, name: str, address: str, engine: str, image: str, lab: FullLab) -> None:
        super().__init__(name, address, lab.state / "nodes" / name, lab.access)
        self.container = f"{lab.prefix}-{name}"
        self._journal = lab.journal
        self._label = f"{LABEL}={lab.id}"
        self.engine = engine
        self.image = image
        self._wishes = lab.wishes

    # -- bring-up ------------------------------------------------------------

    def create(self, network: str, neighbours: Sequence[str]) -> str:
        """Make the container with its disks and keys; returns its public host key."""
        self.state.mkdir(parents=True)
        engine = f"{self.container}-engine"
        self._journal.note("volume", engine)
        docker("volume", "create", "--label", self._label, engine)
        self._journal.note("container", self.container)
        docker(
            "create",
            "--name",
            self.container,
            "--hostname",
            self.name,
            "--label",
            self._label,
            "--init",
            "--cgroupns=host",
            *_MAY,
            "--network",
            network,
            "--ip",
            self.address,
            *(f"--add-host={one}" for one in neighbours),
            "--shm-size=512m",
            "--tmpfs=/run:exec,mode=755,size=64m",
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
            f"--volume={engine}:/var/lib/docker",
            f"--volume={self.container}-home:/root",
            *_SHARED_BY[self._wishes.hangs].format(volume=f"{network}-shared").split(),
            *_HOMES[self._wishes.homes].format(volume=f"{network}-home").split(),
            *(f"--volume={path}:{path}:ro" for path in self._wishes.mounts),
            self.image,
        )
        self._give_host_key()
        squashed = self._wishes.homes == "squashed"
        self._give("authorized_keys", self.access.authorized)
        self._give("password", self.access.password)
        self._give("sshd_config", settings("/etc/lab", self._wishes.max_startups, squashed=squashed), "/etc/ssh")
        if daemon := ENGINES[self.engine].daemon_json:
            self._give("daemon.json", daemon, "/etc/docker")
        return public_half(self.state / "ssh_host_ed25519_key")

    def _give(self, name: str, text: str, place: str = "/etc/lab") -> None:
        path = self.state / name
        private_file(path, text)
        # Each user copies the keys for himself; the password is for root to read.
        path.chmod(0o600 if name == "password" else 0o644)
        docker("cp", "--quiet", str(path), f"{self.container}:{place}/{name}")

    def _give_host_key(self) -> None:
        key = self.state / "ssh_host_ed25519_key"
        make_key(key, f"root@{self.name}")
        for half in (key, key.with_suffix(".pub")):
            docker("cp", "--quiet", str(half), f"{self.container}:/etc/lab/{half.name}")

    def boot(self) -> None:
        """Start the container and wait for its sshd and its engine."""
        docker("start", self.container)
        self._settle()

    def _settle(self) -> None:
        """Wait until the node is ready, and put the network's faults in force again."""
        try:
            boot_id = self.inside(["sh", "-c", _READY], timeout=60)
        except LabError as error:
            last = run(["docker", "logs", "--tail", "20", self.container], check=False)
            raise LabError(f"{self.name} did not boot: {error}\n{last.stderr}") from error
        (self.state / "boot_id").write_text(boot_id + "\n")
        # An engine gives a container a new network at every start, without our faults.
        self._bewitch_again()
        if rate := self._remembered("rate"):
            self.throttle(rate)
        if self._remembered("cut"):
            self.cut_link()

    def inside(self, argv: Sequence[str], timeout: float = 30) -> str:
        """Run a command in the node without its network; what it prints."""
        return docker("exec", self.container, *argv, timeout=timeout)

    def bring(self, source: Path, target: str) -> None:
        """Copy a file, or what is in a directory, to a place on the node; its owner is root."""
        self.inside(["mkdir", "-p", target if source.is_dir() else str(PurePosixPath(target).parent)])
        docker("cp", f"{source}/." if source.is_dir() else str(source), f"{self.container}:{target}")

    # -- network ---------------------------------------------------------------

    def _remembered(self, fault: str) -> str:
        path = self.state / fault
        return path.read_text() if path.exists() else ""

    def _network(self, argv: Sequence[str]) -> None:
        self.inside(argv)

    def cut_link(self) -> None:
        """Take the card down."""
        (self.state / "cut").write_text("yes")
        self.inside(["ip", "link", "set", "eth0", "down"])

    def restore_link(self) -> None:
        """Bring the card up again, with the default route that went with it."""
        (self.state / "cut").unlink(missing_ok=True)
        gateway = self.address.rpartition(".")[0] + ".1"
        self.inside(["sh", "-c", f"ip link set eth0 up && ip route replace default via {gateway}"])

    def throttle(self, rate: str) -> None:
        """Shape both directions."""
        self._shape(f"qdisc replace dev CARD root tbf rate {rate} burst 64kb latency 100ms")
        (self.state / "rate").write_text(rate)

    def unthrottle(self) -> None:
        """Take the limits away."""
        (self.state / "rate").unlink(missing_ok=True)
        self._shape("qdisc replace dev CARD root noqueue")

    def _shape(self, words: str) -> None:
        """Run tc on the node's card, and on the other end of its cable.

        The other end is a card of the engine's machine, which only a container in that
        machine's network can change without root here.
        """
        index = self.inside(["cat", "/sys/class/net/eth0/iflink"])
        find = f"$(ip -o link | sed -n 's/^{index}: \\([^@:]*\\).*/\\1/p')"
        self.inside(["tc", *words.replace("CARD", "eth0").split()])
        docker(
            "run",
            "--rm",
            "--network=host",
            "--cap-add=NET_ADMIN",
            "--label",
            self._label,
            self.image,
            "sh",
            "-c",
            "tc " + words.replace("CARD", find),
        )

    # -- power -----------------------------------------------------------------

    def pause(self) -> None:
        """Freeze the container and all that its engine runs."""
        docker("pause", self.container)

    def resume(self) -> None:
        """Thaw it."""
        docker("unpause", self.container)

    def kill(self) -> None:
        """Power off; the link goes first, so that no peer hears the sockets close."""
        if docker("inspect", "--format", "{{.State.Paused}}", self.container) == "true":
            self.resume()
        self.inside(["ip", "link", "set", "eth0", "down"])
        docker("kill", self.container)

    def start(self) -> None:
        """Power on after `kill`."""
        if docker("inspect", "--format", "{{.State.Running}}", self.container) == "true":
            raise LabError(f"{self.name} is on already")
        self.boot()

    def reboot(self) -> None:
        """Restart the container."""
        docker("restart", "--time", "1", self.container)
        self._settle()

    # -- engine ------------------------------------------------------------------

    def stop_engine(self) -> None:
        """Stop the engine and its containers; a reboot starts it again."""
        self.inside(["sh", "-c", "[ ! -e /run/docker.pid ] || kill $(cat /run/docker.pid)"])
        gone = ["sh", "-c", "[ -e /run/docker.pid ] || echo gone"]
        until(lambda: self.inside(gone) == "gone", 30, f"the engine of {self.name} to stop")

    def start_engine(self) -> None:
        """Start it after `stop_engine`, and wait until it answers."""
        self.inside(["lab-engine"])
        self.inside(["sh", "-c", _READY], timeout=60)

    def remove_docker(self) -> None:
        """Take the engine and its programs off the node; a reboot does not bring them back."""
        self.stop_engine()
        self.inside(["sh", "-c", "mkdir /opt/docker; mv /usr/bin/docker /usr/sbin/dockerd /opt/docker"])

    def install_docker(self) -> None:
        """Bring them back; the images are still there."""
        self.inside(["sh", "-c", "cd /opt/docker; mv docker /usr/bin/; mv dockerd /usr/sbin/; rmdir /opt/docker"])
        self.start_engine()

    def snap_docker(self) -> None:
        """Let `docker` lead into /snap, as the snap package does; the engine stays what it is."""
        steps = "mkdir -p /snap/docker/current/bin /snap/bin; mv /usr/bin/docker /snap/docker/current/bin/"
        links = "ln -s /snap/docker/current/bin/docker /snap/bin/docker; ln -s /snap/bin/docker /usr/bin/docker"
        self.inside(["sh", "-ec", f"{steps}; {links}"])

    def engine_disk(self, limit_mb: int | None) -> None:
        """Put the engine's files on an empty disk of that size, or None: back where they were.

        The small disk is memory: a reboot empties it.
        """
        self.stop_engine()
        undo = (
            "rm -f /etc/lab/engine_mib; ! grep -q '^lab /var/lib/docker ' /proc/mounts || umount /var/lib/docker"
        )
        limit = "" if limit_mb is None else f"; echo {int(limit_mb)} >/etc/lab/engine_mib"
        self.inside(["sh", "-ec", undo + limit])
        self.start_engine()

    # -- shared directory and processors -----------------------------------------

    def freeze_shared(self) -> None:
        """Whatever touches the shared directory from here hangs until thawed or killed, as with a dead server.

        For labs with `hangs`. A reboot thaws it.
        """
        self._shared_server("STOP")

    def thaw_shared(self) -> None:
        """Let those go on."""
        self._shared_server("CONT")

    def _shared_server(self, signal: str) -> None:
        if not self._wishes.hangs:
            raise LabError(f"the shared directory of {self.name} cannot hang: bring the lab up with hangs=True")
        self.inside(["sh", "-c", f"kill -{signal} $(cat /run/lab-shared.pid)"])

    def slow(self, cpus: float) -> None:
        """Let the node and its containers have that many processors' time, also after a reboot."""
        docker("update", "--cpu-period=100000", f"--cpu-quota={int(float(cpus) * 100000)}", self.container)

    def full_speed(self) -> None:
        """Take that limit away."""
        docker("update", "--cpu-quota=-1", self.container)

    # -- disk and keys -----------------------------------------------------------

    def fill_disk(self, leave_kb: int = 0) -> None:
        """Fill the node's home."""
        room = "$(($(stat -c %s {0}) - {1}))"
        filler = f"/root/{FILLER}"
        script = f"cat /dev/zero >>{filler} 2>/dev/null; "
        script += f"truncate -s {room.format(filler, int(leave_kb) * 1024)} {filler}"
        self.inside(["sh", "-c", script])

    def free_disk(self) -> None:
        """Take back what `fill_disk` wrote."""
        self.inside(["rm", "-f", f"/root/{FILLER}"])

    def swap_host_key(self) -> None:
        """Make a new host key and let sshd read it."""
        self._give_host_key()
        public = "/etc/lab/ssh_host_ed25519_key.pub"
        take = f"chmod 600 {public.removesuffix('.pub')}; " + TAKE_NEW_KEY.format(public=public)
        self.inside(["sh", "-c", take])
