"""The image on real engines: every node gets it, only what it lacks travels; whatever breaks, the others go on."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from shipping import MIB, Harbour, Made, layer, made

from clusterft import ship
from clusterft.findings import Finding
from clusterft.remote.local import LocalRemote
from clusterft.ship import Shipment, docks, layout
from lab import FullLab

pytestmark = pytest.mark.lab_full

BASE = layer("base", 6 * MIB, "base")
LIBRARIES = layer("libraries", 3 * MIB, "libraries")
_STORE = """
mkdir -p /etc/docker && echo '{"features": {"containerd-snapshotter": true}}' >/etc/docker/daemon.json
"""
_WORK = "/var/tmp/clusterft-0/ship"  # root's scratch of the cluster


@pytest.fixture(scope="module")
def harbour() -> Iterator[Harbour]:
    """Three nodes with an engine of each kind, and a person of each kind that may use it."""
    with FullLab.up(count=4, engine=("20.10", "26.1", "28.5")) as lab:
        store = lab.nodes[2]  # the newest engine with the store that newer ones have by default
        store.inside(["sh", "-c", _STORE])
        store.reboot()
        yield Harbour(lab, {"n2": "worker", "n3": "sudoer"})


@pytest.fixture(scope="module")
def image() -> Iterator[Made]:
    with made("clusterft-test:one", [BASE, LIBRARIES, layer("code", 20_000, 1)]) as one:
        yield one


@pytest.fixture
def trio() -> Iterator[Harbour]:
    """Three nodes to break."""
    with FullLab.up(count=3) as lab:
        yield Harbour(lab)


@pytest.fixture(scope="module")
def large() -> Iterator[Made]:
    """Large enough for a slow link to be broken half-way."""
    with made("clusterft-test:large", [layer("large", 16 * MIB, "large"), layer("code", 20_000, 1)]) as one:
        yield one


class Background:
    """A shipment in a thread of its own."""

    def __init__(self, harbour: Harbour, image: Made) -> None:
        self._found: list[Shipment | BaseException] = []
        self._harbour, self._image = harbour, image
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._harbour.bring(self._image))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._found.append(error)

    def reaches(self, node: str, least: int) -> None:
        """Wait until that many bytes are on the node, half-way."""
        deadline = time.monotonic() + 60
        while arriving(self._harbour, node) < least:
            assert self._thread.is_alive(), self.end()
            assert time.monotonic() < deadline, self._harbour.said[-9:]
            time.sleep(0.1)

    def end(self) -> Shipment:
        """What came of it."""
        self._thread.join(120)
        assert self._found, "the shipment did not end"
        if isinstance(self._found[0], BaseException):
            raise self._found[0]
        return self._found[0]


def arriving(harbour: Harbour, node: str) -> int:
    """Bytes of unfinished blobs on a node."""
    return int(inside(harbour, node, f"cat {_WORK}/*/blobs/sha256/*.part 2>/dev/null | wc -c"))


def inside(harbour: Harbour, node: str, script: str) -> str:
    """Run a shell line on a node without its network."""
    return harbour.lab.node(node).inside(["sh", "-c", script])


def slow(harbour: Harbour, rate: str = "24mbit") -> None:
    """Log in, then slow all links down."""
    with harbour.fleet():
        pass
    for node in harbour.lab.nodes:
        node.throttle(rate)


def test_engines_of_all_kinds_get_the_same_image(harbour: Harbour, image: Made) -> None:
    first = harbour.bring(image)
    nodes = [node.name for node in harbour.lab.nodes]
    assert all(isinstance(first.outcomes[node], tuple) and first.outcomes[node] for node in nodes), first
    assert first.parts == image.parts
    assert [node for node in nodes if not harbour.has(node, image)] == []
    assert first.sent == image.size, "each byte once"
    assert first.whole == {}, "no engine needed what it had"

    again = harbour.bring(image, first.parts)
    assert again.outcomes == dict.fromkeys(nodes, ()) and again.sent == 0
    # Another controller, that knows nothing of the first time.
    assert harbour.bring(image).outcomes == dict.fromkeys(nodes, ())

    code = layer("code", 50_000, 2)
    with made("clusterft-test:changed", [BASE, LIBRARIES, code]) as changed:
        third = harbour.bring(changed, first.parts)
        assert third.sent == len(code) and third.whole == {}
        assert [node for node in nodes if not harbour.has(node, changed)] == []
    assert {node: harbour.litter(node) for node in nodes} == {node: "" for node in nodes}
    assert {event.node for event in harbour.said if event.done and event.done == event.total} == set(nodes)


def test_a_node_that_lost_its_layers_gets_only_those(harbour: Harbour, image: Made) -> None:
    harbour.bring(image)
    harbour.on("n1", f"docker image rm -f {image.reference} && docker image prune -af")
    with made("clusterft-test:two", [BASE, LIBRARIES, layer("other", 30_000, 3)]) as other:
        done = harbour.bring(other)
        assert done.sent == other.size and all(harbour.has(node.name, other) for node in harbour.lab.nodes)


@pytest.mark.long
def test_only_leftovers_of_the_same_user_and_cluster_are_taken_away(harbour: Harbour, image: Made) -> None:
    harbour.bring(image)
    with harbour.fleet() as fleet:
        targets = harbour.convoy(fleet).targets
    other = "clusterft-arriving:" + "f" * 16 + "-1"
    for node, target in targets.items():
        for name in (docks.passing(target.scratch, "dead"), other):
            harbour.on(node, f"docker tag {image.reference} {name}")
    assert harbour.bring(image).outcomes == dict.fromkeys(targets, ())
    for node in targets:
        left = harbour.on(node, "docker image ls --format '{{.Repository}}:{{.Tag}}' clusterft-arriving")
        harbour.on(node, f"docker image rm {other}")
        assert left.split() == [other], node


def test_an_engine_that_refuses_the_name_says_so_at_once(harbour: Harbour, image: Made) -> None:
    harbour.bring(image)
    refusing = 'if [ "$1" = tag ]; then echo not this name >&2; exit 1; fi; exec docker "$@"'
    with made("clusterft-test:refused", [BASE, LIBRARIES, layer("refused", 9000, 9)]) as refused:
        with harbour.fleet() as fleet:
            convoy = harbour.convoy(fleet)
            target = dataclasses.replace(convoy.targets["n1"], command=("sh", "-c", refusing, "docker"))
            convoy = dataclasses.replace(convoy, targets={"n1": target})
            done = ship.image(convoy, refused.reference, ship.Origin(LocalRemote()))
        found = done.outcomes["n1"]
        assert isinstance(found, Finding) and found.id == "dk.load" and "not this name" in found.evidence, found
        assert done.whole == {} and not harbour.has("n1", refused)
    assert harbour.litter("n1") == ""


def test_half_an_image_under_its_name_is_mended(harbour: Harbour, image: Made) -> None:
    """The containerd store says "Loaded image" although a layer is missing."""
    harbour.bring(image)
    harbour.on("n3", f"docker image rm -f {image.reference}; docker image prune -af")
    half = layout.packed(image.parts.documents(image.reference)).decode("latin1")
    node = harbour.lab.node("n3")
    said = node.access.ssh("n3", ["docker", "load"], timeout=30, stdin=half).stdout
    assert "Loaded image" in said, "the lie that this is about"
    assert isinstance(harbour.bring(image).outcomes["n3"], tuple)
    assert harbour.has("n3", image)


def test_another_architecture_and_a_missing_engine_are_named(harbour: Harbour, image: Made) -> None:
    harbour.lab.node("n4").stop_engine()
    try:
        outcome = harbour.bring(image).outcomes["n4"]
    finally:
        harbour.lab.node("n4").start_engine()
    assert isinstance(outcome, Finding) and outcome.id == "dk.down", outcome
    with made("clusterft-test:alien", [layer("a", 10, 1)], platform="s390x") as other:
        found = harbour.bring(other).outcomes
    assert {f.id for f in found.values() if isinstance(f, Finding)} == {"dk.arch"} and len(found) == 4


@pytest.mark.long
def test_what_can_be_squeezed_travels_squeezed_on_slow_links(trio: Harbour) -> None:
    if not shutil.which("zstd"):
        pytest.skip("zstd is not here; apt install zstd")
    words = b"".join(b"%d of many words\n" % (i * 7919 % 100_003) for i in range(2_000_000))[: 20 * MIB]
    with made("clusterft-test:words", [layer("noise", MIB, "noise"), layer("words", 20 * MIB, words)]) as image:
        slow(trio)
        trio.on("n3", "mv /usr/bin/zstd /usr/bin/zstd.away")
        assert trio.bring(image).sent == image.size, "one node cannot, so nothing is squeezed"
        trio.on("n3", "mv /usr/bin/zstd.away /usr/bin/zstd")
        for name in ("n1", "n2", "n3"):
            trio.on(name, f"docker image rm {image.reference}")
        done = trio.bring(image)
        assert done.sent < image.size / 2, done
        assert all(trio.has(node.name, image) for node in trio.lab.nodes)
        assert [trio.litter(node.name) for node in trio.lab.nodes] == ["", "", ""]


@pytest.mark.long
def test_a_relay_that_dies_half_way(trio: Harbour, large: Made) -> None:
    slow(trio)
    shipping = Background(trio, large)
    shipping.reaches("n3", 3 * MIB)
    trio.lab.node("n2").kill()
    done = shipping.end()
    dead = done.outcomes["n2"]
    assert isinstance(dead, Finding) and dead.nodes == ("n2",) and dead.id == "ssh.timeout", dead
    assert all(trio.has(node, large) for node in ("n1", "n3"))
    assert done.sent < 1.1 * large.size, "n3 went on from n1, not from the controller"
    # Back again, it goes on from the bytes that it has.
    trio.lab.node("n2").start()
    trio.lab.node("n2").unthrottle()
    again = trio.bring(large)
    assert again.outcomes["n1"] == () and trio.has("n2", large)
    assert 0 < again.sent < large.size - 2 * MIB
    assert trio.litter("n2") == ""


@pytest.mark.long
def test_a_node_that_freezes_half_way(trio: Harbour, large: Made) -> None:
    slow(trio)
    shipping = Background(trio, large)
    shipping.reaches("n3", 2 * MIB)
    trio.lab.node("n1").pause()  # the one that all others hang on
    try:
        done = shipping.end()
    finally:
        trio.lab.node("n1").resume()
    frozen = done.outcomes["n1"]
    assert isinstance(frozen, Finding) and frozen.id == "ssh.timeout" and "n1" in frozen.summary, frozen
    assert all(trio.has(node, large) for node in ("n2", "n3"))


@pytest.mark.long
def test_a_controller_that_dies_half_way_loads_nothing_and_goes_on_later(trio: Harbour, large: Made) -> None:
    slow(trio)
    # A process of its own, killed without a chance to clean up.
    controller = multiprocessing.get_context("fork").Process(target=trio.bring, args=(large,))
    controller.start()
    while arriving(trio, "n3") < 4 * MIB:
        assert controller.is_alive()
        time.sleep(0.1)
    assert controller.pid is not None
    os.kill(controller.pid, signal.SIGKILL)
    controller.join()
    assert [trio.on(node.name, "docker image ls -aq") for node in trio.lab.nodes] == ["", "", ""]
    done = trio.bring(large)
    assert all(trio.has(node.name, large) for node in trio.lab.nodes), done
    assert done.sent < large.size - 3 * MIB, "the bytes of the first time were used"
    assert [trio.litter(node.name) for node in trio.lab.nodes] == ["", "", ""]


@pytest.mark.long
def test_disks_without_room(trio: Harbour, large: Made) -> None:
    slow(trio)
    for name, size in (("n1", "8m"), ("n2", "200m")):
        inside(trio, name, f"mount -t tmpfs -o size={size} tmpfs /var/tmp")
    shipping = Background(trio, large)
    shipping.reaches("n2", 2 * MIB)
    inside(trio, "n2", "cat /dev/zero >/var/tmp/others 2>/dev/null || :")
    done = shipping.end()
    none, later = done.outcomes["n1"], done.outcomes["n2"]
    assert isinstance(none, Finding) and none.id == "os.disk-full", none
    assert "MiB free" in none.evidence and "needed" in none.evidence
    assert isinstance(later, Finding) and later.id == "os.disk-full" and "half-way" in later.summary, later
    assert trio.has("n3", large)
    assert trio.on("n2", "ls /var/tmp") == "others\n"


@pytest.mark.parametrize(
    "head", ["n1", pytest.param("n2", marks=pytest.mark.long), pytest.param("n3", marks=pytest.mark.long)]
)
def test_an_image_built_on_the_head_never_passes_through_the_controller(harbour: Harbour, head: str) -> None:
    """Each kind of engine lays its `docker save` out in its own way."""
    nodes = [node.name for node in harbour.lab.nodes]
    with made(f"clusterft-test:on-{head}", [BASE, layer(head, 2 * MIB, head)]) as image:
        save = subprocess.run(["docker", "save", image.reference], capture_output=True, check=True).stdout
        ssh = ["ssh", "-F", str(harbour.lab.ssh_config), head]
        subprocess.run([*ssh, "docker load"], input=save, check=True, capture_output=True)
        with harbour.fleet() as fleet:
            convoy = harbour.convoy(fleet)
            command = convoy.targets[head].command
            done = ship.image(convoy, image.reference, ship.Origin(fleet.remotes[head], command, head))
        assert done.sent == 0 and done.outcomes[head] == (), done
        assert [node for node in nodes if node != head and not harbour.has(node, image)] == []
        assert done.parts == image.parts
    assert {node: harbour.litter(node) for node in nodes} == {node: "" for node in nodes}
