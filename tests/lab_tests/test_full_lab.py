"""The full lab keeps its promises: nodes with a Docker engine of their own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from lab import FullLab, FullNode, LabError
from lab.engine import LABEL, docker
from lab.node_image import ENGINES
from lab.proc import until
from lab_tests.promises import Promises, traces

pytestmark = pytest.mark.lab_full

# An image of a few megabytes without a registry: a shell, and the libraries it needs.
_TINY = """
set -e
mkdir -p /tmp/tiny && cd /tmp/tiny
cp --parents -L $(ldd /bin/sh /bin/sleep | grep -o '/[^ :]*' | sort -u) .
tar -c . | docker import - tiny >/dev/null
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[FullLab]:
    with FullLab.up(count=3) as lab:
        yield lab


def everything(lab_id: str) -> list[str]:
    """What of a lab is left on the machine and in its engine."""
    mine = ["--filter", f"label={LABEL}={lab_id}", "--quiet"]
    found = docker("ps", "--all", *mine).split()
    found += docker("volume", "ls", *mine).split()
    found += docker("network", "ls", *mine).split()
    return traces(lab_id) + found


def make_tiny(node: FullNode) -> None:
    done = node.run(["sh", "-c", _TINY], timeout=60)
    assert done.returncode == 0, done.stderr


class TestFullLab(Promises):
    """What all weights promise."""

    def another(self, count: int) -> FullLab:
        return FullLab.up(count)


@pytest.mark.long
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_the_engine_can_be_chosen(engine: str) -> None:
    with FullLab.up(count=1, engine=engine) as lab:
        node = lab.nodes[0]
        version = node.run(["docker", "version", "--format", "{{.Server.Version}}"]).stdout
        assert version.startswith(ENGINES[engine].version + ".")
        make_tiny(node)
        ran = node.run(["docker", "run", "--rm", "--network=host", "tiny", "sleep", "0"])
        assert ran.returncode == 0, ran.stderr


def test_an_image_goes_from_node_to_node(lab: FullLab) -> None:
    one, two = lab.nodes[:2]
    make_tiny(one)
    both = [["ssh", "-F", str(lab.ssh_config), node.name] for node in (one, two)]
    saved = subprocess.run([*both[0], "docker save tiny"], capture_output=True, timeout=60)
    loaded = subprocess.run([*both[1], "docker load"], input=saved.stdout, capture_output=True, timeout=60)
    assert b"Loaded image: tiny" in loaded.stdout


def test_a_pause_freezes_the_nodes_containers_and_a_reboot_keeps_images(lab: FullLab) -> None:
    node = lab.nodes[2]
    make_tiny(node)
    tick = f"while :; do echo tick >>{lab.shared}/ticks; sleep 0.05; done"
    run = ["docker", "run", "--detach", "--name", "clock", f"--volume={lab.shared}:{lab.shared}"]
    started = node.run([*run, "tiny", "sh", "-c", tick], timeout=60)
    assert started.returncode == 0, started.stderr

    def ticks() -> int:
        return len(lab.nodes[0].run(["cat", f"{lab.shared}/ticks"]).stdout.split())

    until(lambda: ticks() > 5, 10, "the clock to tick")
    node.pause()
    try:
        before = ticks()
        time.sleep(0.5)
        assert ticks() == before
    finally:
        node.resume()
    until(lambda: ticks() > before + 5, 10, "the clock to tick again")
    node.reboot()
    before = ticks()
    states = node.run(["docker", "ps", "--all", "--format", "{{.Names}} {{.State}}"]).stdout
    assert states == "clock exited\n"
    assert ticks() == before
    assert "tiny" in node.run(["docker", "image", "ls"]).stdout


@pytest.mark.parametrize(
    ("person", "command", "status"),
    [
        ("worker", "docker ps", 0),
        ("sudoer", "docker ps", 1),
        ("sudoer", "sudo -n docker ps", 0),
        ("guest", "docker ps", 1),
        ("guest", "sudo -n docker ps", 1),
    ],
)
def test_people_with_more_and_less_rights(lab: FullLab, person: str, command: str, status: int) -> None:
    done = lab.access.ssh("n1", command.split(), timeout=20, options=["-l", person])
    assert done.returncode == status, done.stderr


def test_a_node_outlives_its_engine(lab: FullLab) -> None:
    node = lab.nodes[0]
    stop = "kill $(cat /run/docker.pid); while docker version >/dev/null 2>&1; do sleep 0.1; done"
    assert node.run(["sh", "-c", stop]).returncode == 0
    assert node.run(["docker", "ps"]).returncode == 1
    node.reboot()
    assert node.run(["docker", "ps"]).returncode == 0


def test_down_leaves_nothing() -> None:
    with FullLab.up(count=2) as lab:
        make_tiny(lab.nodes[0])
        lab.nodes[0].run(["docker", "run", "--detach", "tiny", "sleep", "303"])
        lab.nodes[1].pause()
        ids = docker("ps", "--no-trunc", "--filter", f"label={LABEL}={lab.id}", "--quiet").split()
        assert len(ids) == 3
        assert everything(lab.id)
    assert everything(lab.id) == []
    groups = subprocess.run(["find", "/sys/fs/cgroup", "-type", "d"], capture_output=True, text=True)
    assert [line for line in groups.stdout.splitlines() if any(one in line for one in ids)] == []


def test_a_failure_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    boot, seen = FullNode.boot, []

    def fail_second(node: FullNode) -> None:
        boot(node)
        seen.append(node.state.parent.parent.name)
        if len(seen) == 2:
            raise LabError("made to fail")

    monkeypatch.setattr(FullNode, "boot", fail_second)
    with pytest.raises(LabError, match="made to fail"):
        FullLab.up(count=3)
    assert everything(seen[0]) == []


def test_engines_of_several_kinds_in_one_lab() -> None:
    kinds = ("20.10", "26.1", "28.5c")
    with FullLab.up(count=4, engine=kinds) as lab:
        nodes = FullLab.attach(lab.journal).nodes
        found = [node.run(["docker", "info", "--format", _KIND]).stdout.split() for node in nodes]
    assert [node.engine for node in nodes] == [*kinds, "20.10"]
    assert [version.rpartition(".")[0] for version, _ in found] == ["20.10", "26.1", "28.5", "20.10"]
    assert [driver for _, driver in found] == ["overlay2", "overlay2", "overlayfs", "overlay2"]


_KIND = "{{.ServerVersion}} {{.Driver}}"
