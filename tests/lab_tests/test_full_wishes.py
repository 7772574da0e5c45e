"""What a full lab can be asked for beyond plain nodes: homes, NAT, logins, engines that fail."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import FullLab, FullNode, LabError
from lab_tests.logins import Logins
from lab_tests.promises import seconds_to_send
from lab_tests.test_full_lab import everything, make_tiny

pytestmark = pytest.mark.lab_full

_HOME = "/home/worker"


@pytest.fixture(scope="module")
def lab() -> Iterator[FullLab]:
    with FullLab.up(count=3, engine=("20.10", "26.1", "28.5"), homes="squashed", nat=("n3",)) as lab:
        yield lab
    assert everything(lab.id) == []


def test_every_node_has_what_real_ones_have(lab: FullLab) -> None:
    for node in lab.nodes:
        found = [node.run(["sh", "-c", f"command -v {name}"]).stdout for name in ("ssh", "ssh-keygen", "zstd")]
        assert found == ["/usr/bin/ssh\n", "/usr/bin/ssh-keygen\n", "/usr/bin/zstd\n"]


def as_worker(lab: FullLab, node: str, script: str) -> subprocess.CompletedProcess[str]:
    return lab.access.ssh(node, ["sh", "-c", script], timeout=60, options=["-l", "worker"])


def seen_by(one: FullNode, other: FullNode) -> str:
    """The address from which `one` sees a login of `other`."""
    keep = "umask 077; cat >k; trap 'rm -f k' EXIT; "
    ssh = "ssh -i k -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    script = f"{keep} {ssh} {one.address} 'echo ${{SSH_CONNECTION%% *}}'"
    done = other.run(["sh", "-c", script], stdin=other.access.key.read_text())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="class")
def gated() -> Iterator[FullLab]:
    with FullLab.up(count=2, homes="shared", bastion=True, max_startups="2:100:2") as lab:
        yield lab
    assert everything(lab.id) == []


class TestGatedFullLab(Logins):
    """A bastion, MaxStartups, passwords, and a home that all nodes share."""

    def test_workers_home_is_one(self, gated: FullLab) -> None:
        assert as_worker(gated, "n1", "echo seen >mark; id -u").stdout == "1000\n"
        assert as_worker(gated, "n2", "cat mark; id -u").stdout == "seen\n1000\n"
        one, two = (node.tree(_HOME) for node in gated.nodes)
        assert one == two
        assert one[_HOME] == "d 0700 worker:worker"
        assert one[f"{_HOME}/.ssh/authorized_keys"].startswith("f 0600 worker:worker ")
        gated.node("n2").reboot()
        assert gated.node("n2").tree(_HOME) == one
        assert gated.node("n1").tree("/home/guest") != one


def test_a_squashed_home_is_closed_to_root(lab: FullLab) -> None:
    for node in lab.nodes:
        for command in (["ls", _HOME], ["cat", f"{_HOME}/.profile"], ["touch", f"{_HOME}/x"]):
            done = node.run(command)
            assert done.returncode != 0
            assert "Permission denied" in done.stderr
    with pytest.raises(LabError, match="Permission denied"):
        lab.nodes[0].tree(_HOME)


def test_a_squashed_home_is_open_to_its_owner_and_shared(lab: FullLab) -> None:
    assert as_worker(lab, "n1", "umask 077; echo seen >mark; flock mark true").returncode == 0
    assert as_worker(lab, "n2", "cat mark").stdout == "seen\n"
    lab.node("n2").reboot()
    assert as_worker(lab, "n2", "cat mark; rm mark").stdout == "seen\n"
    assert f"{_HOME}/mark" not in lab.node("n1").tree(_HOME, person="worker")


def test_a_key_that_the_owner_takes_away_does_not_open(lab: FullLab) -> None:
    assert as_worker(lab, "n1", "mv .ssh/authorized_keys .ssh/kept").returncode == 0
    assert as_worker(lab, "n2", "true").returncode == 255
    lab.node("n1").inside(["setpriv", "--reuid=worker", "--regid=worker", "--clear-groups", *_BACK])
    assert as_worker(lab, "n2", "true").returncode == 0


_BACK = ["mv", f"{_HOME}/.ssh/kept", f"{_HOME}/.ssh/authorized_keys"]


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_an_engine_cannot_mount_from_a_squashed_home(lab: FullLab, name: str) -> None:
    make_tiny(lab.node(name))
    run = "docker run --rm --network=host -v {}:/x tiny sleep 0"
    assert as_worker(lab, name, run.format("/tmp")).returncode == 0
    done = as_worker(lab, name, "mkdir -p below; " + run.format(f"{_HOME}/below"))
    assert done.returncode != 0
    assert "error while creating mount source path" in done.stderr


def test_a_node_behind_nat_is_seen_by_another_address(lab: FullLab) -> None:
    one, _, three = lab.nodes
    outer = f"{three.address.rpartition('.')[0]}.113"
    assert three.address.endswith(".13")
    for _ in range(2):
        assert seen_by(one, three) == outer
        assert outer not in three.run(["ip", "address"]).stdout
        assert seen_by(three, one) == one.address
        three.reboot()
    three.leave_nat()
    assert seen_by(one, three) == three.address
    three.reboot()
    assert seen_by(one, three) == three.address


def test_an_engine_stops_and_starts(lab: FullLab) -> None:
    node = lab.node("n2")
    node.stop_engine()
    done = node.run(["docker", "ps"])
    assert done.returncode == 1
    assert "Cannot connect to the Docker daemon" in done.stderr or "failed to connect" in done.stderr
    node.start_engine()
    assert node.run(["docker", "ps"]).returncode == 0


def test_docker_can_be_missing_and_come_back(lab: FullLab) -> None:
    node = lab.node("n1")
    node.remove_docker()
    node.reboot()
    assert node.run(["sh", "-c", "command -v docker || command -v dockerd"]).stdout == ""
    node.install_docker()
    assert node.run(["docker", "ps"]).returncode == 0


def test_docker_can_lead_into_snap(lab: FullLab) -> None:
    node = lab.node("n3")
    node.snap_docker()
    assert node.run(["sh", "-c", "readlink -f $(command -v docker)"]).stdout.startswith("/snap/")
    assert node.run(["docker", "ps"]).returncode == 0


def test_an_engines_disk_can_be_too_small(lab: FullLab) -> None:
    node = lab.node("n1")
    make_tiny(node)
    bulk = "cd /tmp; head -c 40000000 /dev/urandom >bulk; tar -c bulk | docker import - bulk"
    node.engine_disk(30)
    try:
        assert node.run(["docker", "images", "--quiet"]).stdout == ""
        done = node.run(["sh", "-c", bulk], timeout=60)
        assert done.returncode != 0
        assert "no space left on device" in done.stderr
        node.reboot()
        assert node.run(["sh", "-c", bulk], timeout=60).returncode != 0
    finally:
        node.engine_disk(None)
    assert "tiny" in node.run(["docker", "images"]).stdout
    assert node.run(["sh", "-c", bulk], timeout=60).returncode == 0


def test_a_tree_shows_what_changed_and_nothing_else(lab: FullLab) -> None:
    node, places = lab.node("n1"), ("/root", "/home/guest", "/etc/ssh", "/nowhere")
    before = node.tree(*places)
    assert before["/nowhere"] == "absent"
    node.run(["sh", "-c", "mkdir -p .cache; touch .bash_history .cache/x"])
    assert node.tree(*places) == before
    node.run(["sh", "-c", "echo a >'a b'; ln -s 'a b' link; chmod 711 /home/guest"])
    changed = {path: words for path, words in node.tree(*places).items() if before.get(path) != words}
    node.run(["sh", "-c", "rm 'a b' link; chmod 700 /home/guest"])
    assert sorted(changed) == ["/home/guest", "/root/a b", "/root/link"]
    assert changed["/root/a b"].startswith("f 0644 root:root 2 87428fc5")
    assert changed["/root/link"] == "l 0777 root:root a b"


def test_an_engine_with_the_containerd_store() -> None:
    """Its images lie on the engine's own disk, and it builds, saves, loads and runs as others do."""
    with FullLab.up(count=1, engine="28.5c") as lab:
        node = lab.nodes[0]
        make_tiny(node)
        done = node.run(["sh", "-ec", _ROUND], timeout=120)
        assert done.returncode == 0, done.stderr
        assert "built" not in node.run(["docker", "images", "--format", "{{.Repository}}"]).stdout.split()
        assert (
            node.run(["docker", "load", "--input", "built.tar"], timeout=60).stdout
            == "Loaded image: built:latest\n"
        )
        node.reboot()
        ran = node.run(
            ["docker", "run", "--rm", "--network=host", "--ipc=host", "built", "sh", "-c", "read x <mark; echo $x"]
        )
        assert ran.stdout == "seen\n", ran.stderr
        assert "io.containerd.snapshotter.v1" in node.run(["docker", "info"]).stdout
        for limit in (64, None):
            node.engine_disk(limit)
            kept = node.run(["docker", "images", "--format", "{{.Repository}}"]).stdout.split()
            assert kept == ([] if limit else ["built"])


# The build reads standard input: it needs no files of its own.
_ROUND = """
printf 'FROM tiny\\nRUN echo seen >/mark\\n' | docker build --network=host --tag built -
docker save built --output built.tar
docker image rm --force built tiny
"""


def test_six_throttled_nodes_each_have_their_rate_both_ways() -> None:
    mib, mbit = 3.0, 20
    with FullLab.up(count=6) as lab, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda node: node.throttle(f"{mbit}mbit"), lab.nodes))
        for to_node in (True, False):
            began = time.monotonic()
            took = list(pool.map(lambda n: seconds_to_send(lab, n.name, mib, to_node=to_node), lab.nodes))  # noqa: B023
            rates = [mib * 8 * 1.048576 / seconds for seconds in took]
            assert all(0.5 < rate / mbit < 1.2 for rate in rates), rates
            assert time.monotonic() - began < 2 * max(took), "the nodes took turns"


def test_wishes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(LabError, match="homes 'none': one of own, shared, squashed"):
        FullLab.up(count=1, homes="none")
    with pytest.raises(LabError, match="no node 'n9'"):
        FullLab.up(count=1, nat=("n9",))


def test_mounts_are_shown_to_the_nodes_containers_too_and_to_read_only(tmp_path: Path) -> None:
    data = tmp_path / "some data"
    data.mkdir()
    (data / "x").write_text("from outside\n")
    with pytest.raises(LabError, match="absolute path"):
        FullLab.up(count=1, mounts=("nowhere",))
    with FullLab.up(count=1, mounts=(str(data),)) as lab:
        node = lab.nodes[0]
        assert node.run(["cat", f"{data}/x"]).stdout == "from outside\n"
        make_tiny(node)
        seen = ["docker", "run", "--rm", f"--volume={data}:{data}", "tiny", "sh", "-c"]
        inside = node.run([*seen, f'read -r line <"{data}/x"; echo "$line"; echo no >"{data}/x"'])
        assert inside.stdout == "from outside\n"
        assert "Read-only file system" in inside.stderr
    assert (data / "x").read_text() == "from outside\n"


def test_a_shared_directory_can_hang_on_one_node_and_can_be_full() -> None:
    with FullLab.up(count=2, hangs=True, shared_mib=8) as lab:
        one, two = lab.nodes
        assert one.run(["sh", "-c", f"echo hello >{lab.shared}/x"]).returncode == 0
        one.freeze_shared()
        waiting = one.run(["sh", "-c", f"timeout -s KILL 1 cat {lab.shared}/x; echo $?"])
        assert waiting.stdout == "137\n"
        assert two.run(["cat", f"{lab.shared}/x"]).stdout == "hello\n"
        one.thaw_shared()
        assert one.run(["cat", f"{lab.shared}/x"]).stdout == "hello\n"
        full = two.run(["dd", "if=/dev/zero", f"of={lab.shared}/big", "bs=1M"])
        assert "No space left on device" in full.stderr
        assert one.run(["stat", "-c", "%s", f"{lab.shared}/big"]).stdout > "7"
        one.freeze_shared()
        one.reboot()
        assert one.run(["cat", f"{lab.shared}/x"]).stdout == "hello\n"
    with FullLab.up(count=1) as lab, pytest.raises(LabError, match="cannot hang"):
        lab.nodes[0].freeze_shared()


def test_a_slow_node_is_slow_and_its_containers_too(lab: FullLab) -> None:
    node = lab.node("n2")
    make_tiny(node)
    argv = ["docker", "run", "--rm", "--network=host", "tiny"]
    count = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"

    def seconds() -> float:
        began = time.monotonic()
        assert node.run([*argv, "sh", "-c", count], timeout=120).returncode == 0
        return time.monotonic() - began

    before = seconds()
    node.slow(0.1)
    try:
        assert seconds() > 2 * before
    finally:
        node.full_speed()
