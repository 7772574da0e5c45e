"""Containers that reach each other by name: real sshds at `/run/clusterft`, as root and as somebody else."""

from __future__ import annotations

import base64
import io
import subprocess
import tarfile
import time
from collections.abc import Iterator

import pytest

from clusterft.plan.container import HOME, Person
from clusterft.provision import worlds
from clusterft.provision.worlds import Box, World
from lab import LightLab

pytestmark = pytest.mark.lab_light

ENV = {
    "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "SPOKEN": "several words,  and  more",
    "QUOTES": 'a "b" \'c\' `d` $e \\f \\" #g',
    "HASH": "#not a comment",
    "EMPTY": "",
    "ENDS": "in a backslash\\",
    "FAR": "日本語 é",
    "EQUALS": "a=b=c",
}
_PEOPLE = {"root": Person(0, 0, "root"), "somebody": Person(64322, 64322, "somebody")}
_BOXES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Each node stands for a container on it: /run is its own."""
    with LightLab.up(count=3) as made:
        yield made


class Boxes:
    """The containers of one run: files in place, sshds started."""

    def __init__(self, lab: LightLab, who: str) -> None:
        self.lab, self.person = lab, _PEOPLE[who]
        boxes = tuple(Box(node.name, node.address, 2, listen=node.address) for node in lab.nodes)
        self.world = World("rack", "astolfo-1", self.person, 2299, boxes, ENV)
        self.keys = worlds.fresh_keys([box.node for box in boxes], "astolfo-1")
        entries = worlds.entries(self.world, self.keys)
        for name in _BOXES:
            self.put(name, entries[name])
            start = f"setsid {self.su} /usr/sbin/sshd -D -e -f {worlds.SSHD_CONFIG} </dev/null >/run/box.log 2>&1"
            self.as_root(name, f"{start} & echo $! >/run/box.pid")

    @property
    def su(self) -> str:
        """What makes somebody of root."""
        one = self.person
        return f"setpriv --reuid {one.uid} --regid {one.gid} --clear-groups --inh-caps=-all" if one.uid else ""

    def put(self, name: str, entries: tuple[worlds.Entry, ...]) -> None:
        """As the engine's archive API would, directories included."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in ("run/clusterft", "run/clusterft/ssh"):
                directory = tarfile.TarInfo(path)
                directory.type, directory.mode = tarfile.DIRTYPE, 0o700
                directory.uid = directory.gid = self.person.uid
                tar.addfile(directory)
            for entry in entries:
                info = tarfile.TarInfo(str(entry.path).lstrip("/"))
                info.size, info.mode, info.uid, info.gid = len(entry.data), entry.mode, entry.uid, entry.gid
                tar.addfile(info, io.BytesIO(entry.data))
        argv = ["ssh", "-F", str(self.lab.ssh_config), name, "tar -xpf - -C /"]
        subprocess.run(argv, input=packed.getvalue(), check=True, timeout=20)

    def as_root(self, name: str, script: str) -> str:
        """What a shell line prints on a node."""
        done = self.lab.node(name).run(["sh", "-c", script])
        assert done.returncode == 0, done.stderr + self.lab.node(name).run(["cat", "/run/box.log"]).stdout
        return done.stdout

    def ssh(self, name: str, peer: str, command: str) -> subprocess.CompletedProcess[str]:
        """Log in from one container to another, as the run's user."""
        argv = ["ssh", "-F", str(worlds.CONFIG), peer, command]
        deadline = time.monotonic() + 10  # for the first one: sshd has only just been started
        while True:
            done = self.lab.node(name).run(["sh", "-c", f'{self.su} "$@"', "sh", *argv])
            if "Connection refused" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(0.1)

    def end(self) -> None:
        """No sshd, no file."""
        for name in _BOXES:
            self.as_root(name, "kill $(cat /run/box.pid) && rm -r /run/clusterft")


@pytest.fixture(scope="module", params=["root", "somebody"])
def boxes(lab: LightLab, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    """The run, by either kind of user; the hosts' own SSH is of no use to it."""
    for node in lab.nodes:
        line = _PEOPLE["somebody"].passwd_line().replace(str(HOME), "/run").replace("/bin/bash", "/bin/sh")
        if line not in (node.state / "passwd").read_text():
            with (node.state / "passwd").open("a") as passwd:
                passwd.write(line)
        (node.home / ".ssh" / "config").write_text("Host *\n  HostName 192.0.2.1\n")
    made = Boxes(lab, request.param)
    yield made
    made.end()


def test_every_pair_by_name_without_a_question(boxes: Boxes) -> None:
    for name in _BOXES:
        for peer in _BOXES:
            done = boxes.ssh(name, peer, "uname -n; id -u")
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{peer}\n{boxes.person.uid}\n", "")
    address = boxes.lab.node("n2").address
    assert boxes.ssh("n1", address, "uname -n").stdout == "n2\n", "by its address, too"


def test_a_session_has_the_environment_of_the_image(boxes: Boxes) -> None:
    found = boxes.ssh("n1", "n2", "env -0 | base64 -w0").stdout
    pairs = base64.b64decode(found).decode().rstrip("\0").split("\0")
    have = dict(pair.split("=", 1) for pair in pairs)
    assert {name: have.get(name) for name in ENV} == ENV


def test_what_is_there_is_private(boxes: Boxes) -> None:
    found = boxes.as_root("n1", "find /run/clusterft -printf '%m %U:%G %y\\n' | sort -u").splitlines()
    owner = f"{boxes.person.uid}:{boxes.person.gid}"
    assert found == [f"600 {owner} f", f"700 {owner} d"]


def test_another_run_s_keys_open_nothing(boxes: Boxes) -> None:
    other = worlds.entries(boxes.world, worlds.fresh_keys(_BOXES, "other"))["n3"]
    mine = worlds.entries(boxes.world, boxes.keys)["n3"]
    boxes.put("n3", tuple(one for one in other if one.path.name == "id_ed25519"))
    assert "Permission denied" in boxes.ssh("n3", "n1", "true").stderr
    boxes.put("n3", tuple(one for one in other if one.path.name == "known_hosts") + mine[:1])
    assert "Host key verification failed" in boxes.ssh("n3", "n1", "true").stderr
    boxes.put("n3", mine)
    assert boxes.ssh("n3", "n1", "true").returncode == 0


def test_forwarding_is_off_and_files_go_through(boxes: Boxes) -> None:
    argv = f"-F {worlds.CONFIG} -W 127.0.0.1:22 n2"
    done = boxes.lab.node("n1").run(["sh", "-c", f"{boxes.su} timeout 5 ssh {argv} </dev/null"])
    assert done.returncode != 0 and "SSH-2.0" not in done.stdout
    sftp = f"echo 'put /etc/hostname /dev/null' | {boxes.su} sftp -F {worlds.CONFIG} -b - n2"
    assert boxes.lab.node("n1").run(["sh", "-c", sftp]).returncode == 0
