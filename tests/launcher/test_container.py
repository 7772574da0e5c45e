"""Proves what an engine is asked for one container of a run: the whole request as a golden file, names, cards."""

from __future__ import annotations

import json
import subprocess

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft.errors import ClusterftError
from clusterft.facts import Mount as Mounted
from clusterft.facts import probe, storage
from clusterft.hosts import Node
from clusterft.plan import container
from clusterft.plan.container import ContainerPlan, Fittings, Labels, Person
from clusterft.spec import Mount

ME = Person(1000, 1001, "ann")


def plan(**given_: object) -> ContainerPlan:
    """One container on a node with two cards."""
    whole: dict[str, object] = {
        "name": "clusterft-gpu1-all",
        "image": "clusterft/rack:3f2a91c0",
        "command": ("/usr/sbin/sshd", "-D", "-e", "-f", "/run/clusterft/ssh/sshd_config"),
        "labels": Labels("rack", "open-20261120-1432-7f3a", "gpu1", 1, 1000),
        "person": ME,
        "gpus": ("all",),
        "binds": (Mount("/mnt/out"), Mount("/data", read_only=True)),
        "devices": ("/dev/infiniband",),
        "env": {"PATH": "/opt/bin:/usr/bin", "HOME": "/home/clusterft"},
    }
    return ContainerPlan(**(whole | given_))  # type: ignore[arg-type]


def test_the_whole_request() -> None:
    """Host network and IPC, limits for InfiniBand, bounded logs, labels, one UID:GID; nothing privileged."""
    text = json.dumps(plan().to_dict(), indent=2) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "plan" / "container.json")
    assert "Privileged" not in text and "docker.sock" not in text


def test_a_run_is_brought_back_by_its_engine_and_has_time_to_stop() -> None:
    """Without a count, which an engine forgets; shared memory of its own where it is asked for."""
    body = plan(restart="on-failure", stop_seconds=60, shm=2**30).to_dict()
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "on-failure"} and body["StopTimeout"] == 60
    assert body["HostConfig"]["IpcMode"] == "private" and body["HostConfig"]["ShmSize"] == 2**30


def test_docker_run_is_told_the_same() -> None:
    """For the container that doctor opens; a list is read as CSV."""
    stack = ("--ulimit", "stack=67108864:67108864")
    log = ("--log-driver=json-file", "--log-opt", "max-size=50m", "--log-opt", "max-file=3")
    assert Fittings().words() == ("--network=host", "--ipc=host", "--init", *log, *stack)
    odd = Mount('/data/a,b "c"', read_only=True)
    words = plan(gpus=("0", "2"), binds=(Mount("/mnt/out"), odd), shm=2**30).words()
    assert words == (
        *("--network=host", "--ipc=private", "--init", "--shm-size=1073741824", *log),
        *("--ulimit", "memlock=-1:-1", *stack, "--device", "/dev/infiniband"),
        *("--mount", "type=bind,source=/mnt/out,target=/mnt/out,bind-propagation=rslave"),
        "--mount",
        'type=bind,"source=/data/a,b ""c""","target=/data/a,b ""c""",readonly,bind-propagation=rslave',
        *("--gpus", '"device=0,2"'),
    )
    assert plan().words()[-2:] == ("--gpus", "all")


ROOT, NFS = Mounted("/dev/sda1", "/", "ext4", "rw"), Mounted("nas:/x", "/mnt/out", "nfs4", "rw")


@pytest.mark.parametrize(
    ("private", "paths", "way"),
    [
        ((), ("/mnt/out",), "rslave"),
        (("/",), ("/mnt/out/here",), "rslave"),
        (("/mnt/out",), ("/mnt/out/here",), "rprivate"),
        (("/",), ("/mnt/out", "/data"), "rprivate"),
    ],
)
def test_what_lies_on_a_mount_that_spreads_nothing_is_mounted_so(
    private: tuple[str, ...], paths: tuple[str, ...], way: str
) -> None:
    """Without systemd mounts are private; one that is asked for otherwise ends the container at its start."""
    node = scenes.facts("a", mounts=(ROOT, NFS), private_mounts=private)
    assert container.propagation(node, [Mount(path) for path in paths]) == way


def test_private_mounts_are_read_of_a_real_kernels_table() -> None:
    """The probe's own line, in a mount namespace of its own."""
    look = probe._SECTIONS["mounts"]
    argv = ["unshare", "-rm", "--propagation", "{}", "sh", "-c", look]
    for way, told in (("private", True), ("shared", False)):
        done = subprocess.run([word.format(way) for word in argv[:4]] + argv[4:], capture_output=True, text=True,
                              timeout=20, check=False)  # fmt: skip
        if done.returncode and not done.stdout:
            pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
        assert ("/" in storage.private(done.stdout)) == told
        assert storage.mounts(done.stdout), "the lines beside them are read as before"


def test_mounts_follow_the_nodes_own_unless_the_engine_cannot() -> None:
    """Seen with an engine on a machine without systemd: rslave is refused at the start there."""
    ways = [plan(**given_).to_dict()["HostConfig"]["Mounts"] for given_ in ({}, {"propagation": "rprivate"})]
    assert [{one["BindOptions"]["Propagation"] for one in way} for way in ways] == [{"rslave"}, {"rprivate"}]


def test_who_it_runs_as() -> None:
    """The head's SSH user, or the job's numbers; a name that no passwd file can hold is replaced."""
    assert container.person(scenes.facts("a", uid=7, gid=8, user="ann")) == Person(7, 8, "ann")
    assert container.person(scenes.facts("a", uid=7, gid=8, user="DOM\\\\ann")) == Person(7, 8, "clusterft")
    assert container.person(scenes.facts("a", uid=7, gid=8, user="ann"), "7:100") == Person(7, 100, "ann")
    assert container.person(scenes.facts("a", uid=None, user="ann"), "9:9") == Person(9, 9, "clusterft")
    with pytest.raises(ClusterftError, match="who the SSH user on a is"):
        container.person(scenes.facts("a", uid=None))


def test_cards_of_the_hostfile() -> None:
    """Named cards are asked for by name, and no cards means no request for any."""
    asked = plan(gpus=("0", "2")).to_dict()["HostConfig"]["DeviceRequests"]
    assert asked == [{"Capabilities": [["gpu"]], "DeviceIDs": ["0", "2"]}]
    assert "DeviceRequests" not in plan(gpus=()).to_dict()["HostConfig"]


def test_which_cards() -> None:
    """A node without cards gets none, whatever its slots; else the hostfile's choice, else all."""
    node = Node("rig", 2, gpus=("0", "1"))
    assert container.cards(node, scenes.facts("rig")) == ()
    assert container.cards(node, scenes.facts("rig", gpus=(scenes.card(0),))) == ("0", "1")
    assert container.cards(Node("rig", 1), scenes.facts("rig", gpus=(scenes.card(0),))) == ("all",)


@given(st.lists(st.integers(0, 15).map(str), unique=True), st.lists(st.integers(0, 15).map(str), unique=True))
def test_the_name_is_the_lock(one: list[str], other: list[str]) -> None:
    """The same cards of a node give the same name in whatever order; other cards give another."""
    names = [container.name(Node("rig", max(1, len(cards)), gpus=tuple(cards))) for cards in (one, other)]
    assert (names[0] == names[1]) == (set(one) == set(other))
