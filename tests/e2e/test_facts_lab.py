"""The probe on real nodes with three engines, as four users; what hangs there costs its own section alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterft import checks, facts, hosts
from clusterft.checks import Survey, UpDemand
from clusterft.facts import Asked, NodeFacts
from lab import FullLab, FullNode

pytestmark = [pytest.mark.lab_full, pytest.mark.long]

WORD = "5eed5eed5eed5eed"
ENGINES = {"n1": "20.10", "n2": "26.1", "n3": "28.5"}
USERS = ("root", "worker", "sudoer", "guest")


@pytest.fixture(scope="module")
def lab() -> Iterator[FullLab]:
    with FullLab.up(count=len(ENGINES), engine=list(ENGINES.values())) as made:
        yield made


def look(lab: FullLab, node: str, user: str = "root") -> NodeFacts:
    """The facts of one node, over SSH and in one round trip."""
    asked = Asked(WORD, tuple(each.address for each in lab.nodes), (lab.shared,), time.time())
    text = facts.script(WORD, peers=asked.peers, disks=asked.disks)
    way = ["ssh", "-F", str(lab.ssh_config), "-l", user, node, "sh"]
    done = subprocess.run(way, input=text.encode(), capture_output=True, timeout=30)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return facts.parse(node, done.stdout.decode(), Asked(WORD, asked.peers, asked.disks, asked.sent, time.time()))


def survey(lab: FullLab, user: str) -> Survey:
    """All nodes as one user."""
    text = "".join(f"{name} slots=1\n" for name in ENGINES)
    cluster = hosts.parse(text, path=Path("lab"), name="lab")
    return Survey(cluster, {name: look(lab, name, user) for name in ENGINES}, (), {})


OWN = ("ps ", "sleep infinity", "/sbin/docker-init", "sshd", "dockerd", "containerd")


def traces(node: FullNode) -> list[str]:
    """Processes other than the node's own, and the files of places where a program would leave some."""
    running = node.inside(["ps", "-eo", "args="]).splitlines()
    files = node.inside(["sh", "-c", "ls -A /tmp /var/tmp /root /home/*"]).splitlines()
    return sorted(line for line in running if not line.startswith(OWN)) + files


def nothing_stays(node: FullNode, before: list[str]) -> None:
    """A process that was told to end, and its parent, take a moment."""
    deadline = time.monotonic() + 3
    while (after := traces(node)) != before:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.1)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("user", USERS)
def test_each_user_learns_how_the_engine_can_be_used(lab: FullLab, name: str, user: str) -> None:
    node = lab.node(name)
    before = traces(node)
    found = look(lab, name, user)
    nothing_stays(node, before)
    assert (found.user, found.hostname, found.login_address) == (user, name, node.address)
    assert found.docker and found.docker.path == "/usr/bin/docker"
    if user == "guest":
        assert (found.docker.state, found.docker.command) == ("denied", ())
        return
    assert found.docker.state == "ok"
    # What is said to work does work, and tells the same.
    argv = [*found.docker.command, "version", "--format", "{{.Server.Version}} {{.Server.APIVersion}}"]
    way = ["ssh", "-F", str(lab.ssh_config), "-l", user, name]
    said = subprocess.run(
        [*way, " ".join(f"'{word}'" for word in argv)], capture_output=True, text=True, timeout=30
    )
    assert said.stdout.split() == [found.docker.version, found.docker.api]
    assert found.docker.version and found.docker.version.startswith(ENGINES[name])
    room = int(node.inside(["df", "--output=avail", "-k", "/var/lib/docker"]).split()[1]) * 1024
    assert found.docker.free_bytes and abs(found.docker.free_bytes - room) < 2**31  # others use this disk too


def test_a_node_is_seen_as_it_is(lab: FullLab) -> None:
    node = lab.node("n1")
    found = look(lab, "n1")
    assert found.boot_id == node.inside(["cat", "/proc/sys/kernel/random/boot_id"])
    assert found.clock_offset is not None and abs(found.clock_offset) < 2
    assert found.addresses and node.address in [address.ip for address in found.addresses]
    assert found.mtus["eth0"] == int(node.inside(["cat", "/sys/class/net/eth0/mtu"]))
    assert {peer: link for peer, link, _ in found.routes} == {
        each.address: "lo" if each is node else "eth0" for each in lab.nodes
    }
    assert found.home_room and found.home_room.mount and found.home_room.mount.fstype == "tmpfs"
    assert [disk.directory for disk in found.disks] == [lab.shared] and found.disks[0].writable
    assert found.listening and 22 in found.listening and found.tools and {"sshd", "sudo"} <= found.tools


@pytest.mark.parametrize(("user", "verdict"), [("root", set()), ("sudoer", set()), ("guest", {"dk.perm"})])
def test_three_engines_in_one_cluster_are_judged_together(lab: FullLab, user: str, verdict: set[str]) -> None:
    found = [each for each in checks.judge_up(survey(lab, user), UpDemand("cpu")) if each.status == "fail"]
    assert {each.id for each in found} == verdict
    assert all(each.nodes == tuple(ENGINES) for each in found), "one finding for all nodes"


def test_a_full_home_blocks_its_own_node(lab: FullLab) -> None:
    lab.node("n2").fill_disk(leave_kb=100)
    try:
        found = checks.judge_up(survey(lab, "root"), UpDemand("cpu"))
    finally:
        lab.node("n2").free_disk()
    assert checks.blocked_nodes(found) == {"n2"}
    assert {each.id for each in found if each.status == "fail"} == {"os.disk-full"}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("user", ["worker", "sudoer"])
def test_an_engine_that_hangs_is_down_and_nothing_of_the_probe_stays(lab: FullLab, name: str, user: str) -> None:
    node = lab.node(name)
    before = traces(node)
    node.inside(["pkill", "-STOP", "-x", "dockerd"])
    try:
        began = time.monotonic()
        found = look(lab, name, user)
        assert time.monotonic() - began < 12
        nothing_stays(node, before)
    finally:
        node.inside(["pkill", "-CONT", "-x", "dockerd"])
    assert found.docker and (found.docker.state, found.docker.command) == ("down", ())
    assert found.docker.words == "no answer to `docker version` within 4 s"
    assert found.boot_id and found.memory and found.addresses and found.home_room, "all else is known"
    assert look(lab, name, user).docker.state == "ok"  # type: ignore[union-attr]


def test_a_stopped_engine_says_why(lab: FullLab) -> None:
    node = lab.node("n3")
    node.inside(["sh", "-c", "pkill -x dockerd; while pgrep -x dockerd >/dev/null; do sleep 0.1; done"])
    try:
        found = {user: look(lab, "n3", user).docker for user in ("root", "worker", "sudoer")}
        judged = checks.judge_up(survey(lab, "root"), UpDemand("cpu"))
    finally:
        node.reboot()
    assert {user: docker and docker.state for user, docker in found.items()} == dict.fromkeys(found, "down")
    assert [(each.id, each.nodes) for each in judged if each.status == "fail"] == [("dk.down", ("n3",))]
