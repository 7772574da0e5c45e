"""`clusterft up` and what comes after it, on real sshds and three versions of engine: given, proven, undone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from upping import JOB, Desk, blocking, changes, desk

from lab import FullLab

pytestmark = pytest.mark.lab_full
ENGINES = ("20.10", "26.1", "28.5")
NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def lab() -> Iterator[FullLab]:
    """Three nodes, each with an engine of another version."""
    with FullLab.up(count=3, engine=ENGINES) as made:
        share(made)
        yield made


def share(lab: FullLab) -> None:
    """The shared directory is everybody's, as an export for one user is that user's."""
    assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0


def trees(lab: FullLab, user: str) -> dict[str, dict[str, str]]:
    """All that a user's files on each node are, and what lies in the scratch directory."""
    home = "/root" if user == "root" else f"/home/{user}"
    return {node.name: node.tree(home, "/var/tmp", "/etc/ssh") for node in lab.nodes}


def times(lab: FullLab, user: str) -> dict[str, str]:
    """When each file of ours was last touched."""
    where = "~/.clusterft ~/.ssh"
    found = {}
    for node in lab.nodes:
        done = lab.access.ssh(
            node.name,
            ["sh", "-c", f"find {where} -printf '%p %i %T@ %C@\\n' | sort"],
            timeout=20,
            options=["-l", user],
        )
        found[node.name] = done.stdout
    return found


@pytest.mark.parametrize(
    "user",
    ["worker", pytest.param("root", marks=pytest.mark.long), pytest.param("sudoer", marks=pytest.mark.long)],
)
def test_up_again_and_down(lab: FullLab, tmp_path: Path, user: str) -> None:
    """From nothing to a whole cluster; a second time changes nothing; down leaves every file as it was."""
    before = trees(lab, user)
    person = desk(lab, tmp_path, user)

    first = person.up()
    assert first["complete"] and [node["up"] for node in first["nodes"]] == [True] * 3
    assert len({node["image"] for node in first["nodes"]}) == 1
    assert set(changes(first)) == {*NODES, "controller"}

    for one, other in permutations(NODES, 2):
        config = f'-F "$HOME/.clusterft/rack/nodes/{one}/ssh_config"'
        said = lab.access.ssh(one, ["sh", "-c", f"ssh {config} {other} hello"], timeout=20, options=["-l", user])
        assert said.returncode == 0 and "clusterft-relay 1 " in said.stdout, (one, other, said.stderr)
        more = lab.access.ssh(one, ["sh", "-c", f"ssh {config} {other} id"], timeout=20, options=["-l", user])
        assert more.returncode != 0 and "uid=" not in more.stdout, "a relay key opens no shell"

    touched = times(lab, user)
    second = person.said("up")
    assert changes(second) == {}
    assert times(lab, user) == touched
    assert "nothing to change" in person.run("up").stdout

    gone = person.said("down")
    assert gone["complete"]
    assert trees(lab, user) == before
    assert changes(person.said("down", "--hosts", str(person.hosts))) == {}
    assert trees(lab, user) == before


@pytest.mark.long
def test_open_and_ssh_in_both_worlds(lab: FullLab, tmp_path: Path) -> None:
    """A container on every node, each of which reaches each other one by name; a shell in either world."""
    person = desk(lab, tmp_path, "worker")
    person.up()
    opened = person.said("open")
    run = opened["run"]
    assert opened["findings"] == [] and opened["nodes"] == list(NODES)
    for one, other in permutations(NODES, 2):
        done = person.run("ssh", one, "--container", run, "--", "ssh", other, "uname -n; id -un")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [other, "worker"]
    inside = person.run(
        "ssh", "n1", "--container", run, "--", "sh", "-c", "id -u; cat /run/clusterft/hostfile; env"
    )
    assert inside.stdout.splitlines()[:4] == ["1000", "n1 slots=1", "n2 slots=1", "n3 slots=1"]
    over = person.run("ssh", "n2", "--container", run, "--", "ssh", "n1", "printenv PATH")
    assert over.stdout.strip() in inside.stdout, "a session over SSH finds the image's own environment"
    keys = person.run(
        "ssh", "n1", "--container", run, "--", "sh", "-c", "ls -A ~/.ssh /root/.ssh 2>&1; ls /run/clusterft/ssh"
    )
    assert "No such file" in keys.stdout and "relay" not in keys.stdout, "no key of the host is in there"
    assert person.run("ssh", "n2", "--", "hostname").stdout == "n2\n"

    again = person.run("open")
    assert again.returncode == 3 and f"held by run {run}" in again.stderr
    assert person.run("down").returncode == 3, "a run is under way"
    wrong = person.run("ssh", "n2", "--container", "open-gone")
    assert wrong.returncode == 3 and run in wrong.stderr
    assert json.loads(person.run("stop", run, "--json").stdout)["told"] == list(NODES)
    assert person.run("ssh", "n2", "--container", run).returncode == 3
    person.said("down")
    for node in lab.nodes:
        assert node.run(["docker", "ps", "--all", "--quiet"]).stdout == ""


@pytest.mark.long
def test_a_change_of_the_trainer_alone(lab: FullLab, tmp_path: Path) -> None:
    """What is shipped anew is the last layer, and the image before it goes."""
    person = desk(lab, tmp_path)
    first = person.up()
    (person.root / "image" / "Dockerfile").open("a").write("ENV CHANGED=1\n")
    second = person.said("up")
    assert second["image"] != first["image"]
    for node in second["nodes"]:
        sizes = [float(found) for text in node["changes"] for found in re.findall(r"loaded, ([0-9.]+) MiB", text)]
        assert sizes and sizes[0] < 2.0, node["changes"]
        assert any(f"image {first['image']} removed" == text for text in node["changes"])
    person.said("down")


def test_two_of_three(lab: FullLab, tmp_path: Path) -> None:
    """One node has no engine: the others come up, the reason is named, and a rerun goes on from there."""
    person = desk(lab, tmp_path)
    lab.node("n2").stop_engine()
    try:
        part = person.up(code=3)
    finally:
        lab.node("n2").start_engine()
    assert blocking(part) == {"dk.down": ["n2"]}
    assert [node["up"] for node in part["nodes"]] == [True, False, True]
    whole = person.said("up")
    assert whole["complete"]
    assert any("image" in text for text in next(n for n in whole["nodes"] if n["node"] == "n2")["changes"])
    assert not any("loaded" in text for n in whole["nodes"] if n["node"] != "n2" for text in n["changes"])
    person.said("down")


def test_who_may_not_use_docker(lab: FullLab, tmp_path: Path) -> None:
    """A user without rights is told so, with what mends it and what that means; nothing is left there."""
    before = trees(lab, "guest")
    person = desk(lab, tmp_path, "guest")
    body = person.up(code=3)
    assert blocking(body) == {"dk.perm": list(NODES)}
    (check,) = [one for one in body["checks"] if one["id"] == "dk.perm"]
    assert "usermod -aG docker" in " ".join(check["fix"]) and "root" in json.dumps(check)
    assert trees(lab, "guest") == before


@pytest.mark.long
def test_one_machine_twice(lab: FullLab, tmp_path: Path) -> None:
    """Two entries for one machine are found by its boot id, and neither is used."""
    text = lab.access.hostfile.read_text().splitlines()
    person = Desk(tmp_path, "\n".join([*text, text[0].replace("n1 ", "again ", 1)]) + "\n")
    body = person.up(code=3)
    assert set(blocking(body)["ctl.same-host-twice"]) == {"n1", "again"}
    assert {node["node"] for node in body["nodes"] if node["up"]} == {"n2", "n3"}
    person.said("down", code=0)


def test_never_met_and_changed(lab: FullLab, tmp_path: Path) -> None:
    """Nothing is trusted unasked; a key that changed is refused with both fingerprints, until it is given up."""
    person = desk(lab, tmp_path)
    hosts = ("--hosts", str(person.hosts), "--no-image")
    fresh = person.run("up", *hosts)
    assert fresh.returncode == 3 and "SHA256:" in fresh.stderr
    assert not (tmp_path / ".clusterft" / "rack" / "known_hosts").exists()
    shown = set(re.findall(r"SHA256:\S+", fresh.stderr))
    body = person.said("up", *hosts, "--accept-new-host-keys")
    assert body["complete"] and len(shown) == 3
    lab.node("n3").swap_host_key()
    part = person.said("up", "--no-image", code=3)
    assert blocking(part) == {"ssh.hostkey-changed": ["n3"]}
    (check,) = [one for one in part["checks"] if one["id"] == "ssh.hostkey-changed"]
    assert len(set(re.findall(r"SHA256:[A-Za-z0-9+/]+", check["evidence"]))) == 2
    assert "--forget-host-key n3" in " ".join(check["fix"])
    again = person.said("up", "--no-image", "--accept-new-host-keys", "--forget-host-key", "n3")
    assert again["complete"]
    person.said("down")


@pytest.mark.parametrize("homes", ["shared", pytest.param("squashed", marks=pytest.mark.long)])
def test_homes_that_are_not_a_nodes_own(homes: str, tmp_path: Path) -> None:
    """One home for all nodes, also one that root may not enter: up, again and down stay right."""
    with FullLab.up(count=3, homes=homes) as lab:  # type: ignore[arg-type]
        share(lab)
        person = desk(lab, tmp_path, "worker")
        node = lab.nodes[0]
        before = node.tree("/home/worker", "/var/tmp", person="worker")
        assert person.up()["complete"]
        assert changes(person.said("up")) == {}
        run = person.said("open")["run"]
        done = person.run("ssh", "n1", "--container", run, "--", "ssh", "n3", "hostname")
        assert done.stdout == "n3\n", done.stderr
        assert person.run("stop", run).returncode == 0
        person.said("down")
        assert node.tree("/home/worker", "/var/tmp", person="worker") == before


@pytest.mark.long
def test_behind_nat(tmp_path: Path) -> None:
    """Peers see n3 come from an address that it does not have: it is asked about, and works either way."""
    with FullLab.up(count=3, nat=("n3",)) as lab:
        before = trees(lab, "root")
        person = desk(lab, tmp_path)
        first = person.up()
        assert first["complete"]
        assert any(check["id"] == "ssh.nat" and check["status"] == "warn" for check in first["checks"])
        second = person.said("up", "--accept-nat")
        assert not any(check["id"] == "ssh.nat" for check in second["checks"])
        assert changes(person.said("up", "--accept-nat")) == {}
        person.said("down")
        assert trees(lab, "root") == before


@pytest.mark.long
def test_an_image_built_on_the_head_and_one_that_exists(lab: FullLab, tmp_path: Path) -> None:
    """Built on the first node, nothing of it leaves the controller; an existing image needs no tag of ours."""
    person = desk(lab, tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(JOB.replace("Dockerfile}", "Dockerfile, build_on: head}"))
    head = lab.nodes[0]
    base = subprocess.run(["docker", "save", "debian:bookworm-slim"], capture_output=True, check=True).stdout
    subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), head.name, "docker", "load"],
        input=base,
        capture_output=True,
        check=True,
    )
    built = person.up()
    assert built["complete"] and built["sent_bytes"] == 0, built
    assert changes(person.said("up")) == {}

    mine = "clusterft-test-mine"
    job.write_text(JOB.replace("{dockerfile: image/Dockerfile}", mine))
    made = desk(lab, tmp_path / "other")
    subprocess.run(["docker", "tag", made.up("--cluster", "other")["image"], mine], check=True)
    try:
        used = person.said("up", "--job", "job.yaml")
        assert used["complete"]
        assert {node["image"] for node in used["nodes"]} == {used["image"].partition(":")[2]}
        person.said("down")
        assert made.said("up")["complete"], "the other cluster on the same nodes keeps its image"
        assert subprocess.run(["docker", "image", "inspect", mine], capture_output=True).returncode == 0
        made.said("down")
    finally:
        subprocess.run(["docker", "image", "rm", mine], capture_output=True, check=True)


@pytest.mark.long
def test_what_a_node_does_not_have_is_not_made(lab: FullLab, tmp_path: Path) -> None:
    """A mount that is missing on the nodes stops the start on all of them, and leaves nothing."""
    person = desk(lab, tmp_path)
    person.up()
    done = person.run("open", "--mount", "/data/pictures")
    assert done.returncode == 3 and "/data/pictures" in done.stderr
    for node in lab.nodes:
        assert node.run(["sh", "-c", "ls -d /data; docker ps -aq"]).stdout == ""
    for refused in ("/var/run/docker.sock", "/", "data"):
        assert person.run("open", "--mount", refused).returncode == 2
    person.said("down")


def test_a_run_without_containers_is_under_way(lab: FullLab, tmp_path: Path) -> None:
    """What holds a node's lock has its files among those that would go."""
    person = desk(lab, tmp_path)
    person.said("up", "--hosts", str(person.hosts), "--no-image", "--accept-new-host-keys")
    lock = "/root/.clusterft/rack/nodes/n2/active.lock"
    hold = f"echo some-run >>{lock}; nohup sh -c 'sleep 60 9>>{lock}' >/dev/null 2>&1 & echo $!"
    pid = lab.node("n2").run(["sh", "-c", hold]).stdout.strip()
    done = person.run("down", "--now")
    assert done.returncode == 3 and "some-run" in done.stderr and "clusterft stop some-run" in done.stderr
    lab.node("n2").run(["sh", "-c", f"pkill -P {pid}; kill {pid}; true"])
    assert person.said("down")["complete"]
