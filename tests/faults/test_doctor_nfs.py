"""doctor on a real kernel NFS server and its clients: six faults, each named with node and fix, and mended by it.

What doctor says is done word for word, but for sudo, which these machines do not have and root does not need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.doctoring import JOB, Answer, Desk, above_info, finding
from lab import VmLab
from lab.proc import until

pytestmark = [pytest.mark.lab_vm, pytest.mark.long]

ASKED = ("--only", "ssh,storage")  # an emulated machine is slow and small, which other layers may well tell
USER = 4321


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    with VmLab.up(count=2) as made:
        yield made


def told(lab: VmLab, root: Path, *, user: str = "root") -> Desk:
    """A person's desk with the lab's hostfile."""
    text = lab.hostfile.read_text()
    return Desk(
        lab,
        root,
        hosts=text.replace("user=root", f"user={user}"),
        job=JOB.format(shared="/shared", runtime="process"),
    )


def asked(desk: Desk, *depth: str) -> Answer:
    """The storage layer's answer; where an emulated machine was too slow to be asked at all, once more."""
    for _ in range(4):
        answer = desk.doctor(*ASKED, *(depth or ("--quick",)), seconds=240)
        if not any(one["id"].startswith("ssh.") for one in above_info(answer)):
            break
    return answer


def well(desk: Desk) -> None:
    """Nothing above info; a server that has come back lets its clients wait for its grace period first."""
    until(lambda: not above_info(asked(desk)), 180, "doctor to find nothing")


def do(lab: VmLab, one: dict[str, Any], skip: Callable[[str], bool] = lambda _: False) -> None:
    """Carry out a finding's fix on the nodes that it names."""
    for step in one["fix"]:
        if skip(step) or step.startswith(("if ", "or ", "ls ", "such a rule ")):
            continue
        named = re.match(r"on (n\d): (.*)", step)
        command = (named.group(2) if named else step).split("   (")[0].replace("sudo ", "")
        for node in [named.group(1)] if named else one["nodes"]:
            lab.node(node).inside(command, 60)


def exports(lab: VmLab, edit: str) -> None:
    """Change the server's exports by sed, and have them read."""
    lab.nodes[0].inside(f"cp -n /etc/exports /etc/exports.lab; sed -i '{edit}' /etc/exports; exportfs -ra")


def back(lab: VmLab) -> None:
    """As the lab was brought up."""
    server, *clients = lab.nodes
    server.unblock_ports()
    server.inside("iptables -F INPUT; [ ! -e /etc/exports.lab ] || mv /etc/exports.lab /etc/exports; exportfs -ra")
    server.inside("chown 0:0 /shared; rpc.nfsd --no-udp --no-nfs-version 3 4; true")
    for client in clients:
        client.inside("umount -f -l /shared 2>/dev/null; sed -i '/ .shared /d' /etc/fstab")
        client.inside(f"mount -t nfs4 -o vers=4.2 {server.address}:/ /shared", 60)


@pytest.fixture
def desk(lab: VmLab, tmp_path: Path) -> Iterator[Desk]:
    """A healthy lab, and again afterwards."""
    made = told(lab, tmp_path)
    well(made)
    try:
        yield made
    finally:
        back(lab)


def test_a_client_that_is_not_among_the_exports(lab: VmLab, desk: Desk) -> None:
    server, second = lab.nodes
    lab.node("n2").inside("umount /shared")
    exports(lab, rf"s#{lab.subnet}#192.0.2.7#")
    one = finding(asked(desk), "fs.export", "n2")
    first, *rest = one["fix"]
    assert first.startswith(f"on n1: echo '/shared {second.address}(rw,sync,fsid=0") and "exportfs -ra" in first
    assert f"on n2: sudo mkdir -p /shared && sudo mount -t nfs {server.address}:/ /shared" in rest
    assert any("_netdev" in step and "/etc/fstab" in step for step in rest)
    do(lab, one)
    well(desk)


def test_root_is_squashed(lab: VmLab, desk: Desk, tmp_path: Path) -> None:
    exports(lab, "s/no_root_squash/root_squash/")
    one = finding(asked(desk, "--strict"), "fs.squash", "n2")  # tried: the client remembers what it was allowed
    assert "root_squash" in one["cause"] and "user= in" in one["fix"][0]
    assert one["fix"][1].startswith("on n1: sudo chown UID:GID /shared")
    for node in lab.nodes:
        steps = f"useradd -o -u {USER} -m trainer; passwd -d trainer; cp -r /root/.ssh /home/trainer/"
        node.inside(f"{steps}; chown -R {USER} /home/trainer/.ssh", 60)
    group = lab.nodes[0].inside("id -g trainer")
    lab.nodes[0].inside(
        one["fix"][1].split("   (")[0].removeprefix("on n1: sudo ").replace("UID:GID", f"{USER}:{group}")
    )
    well(told(lab, tmp_path / "trainer", user="trainer"))


def test_a_stale_handle(lab: VmLab, desk: Desk) -> None:
    lab.nodes[0].inside("mv /shared /shared.old; mkdir /shared; exportfs -f; exportfs -ra; rm -rf /shared.old")
    one = finding(asked(desk), "fs.stale", "n2")
    assert one["fix"] == [
        f"sudo umount -f -l /shared && sudo mount -t nfs -o vers=4.2 {lab.nodes[0].address}:/ /shared"
    ]
    do(lab, one)
    well(desk)


def test_the_server_is_stopped(lab: VmLab, desk: Desk) -> None:
    lab.nodes[0].inside("rpc.nfsd 0")
    answer = asked(desk)
    one = finding(answer, "fs.hung", "n2")
    assert one["fix"][0] == "on n1: sudo exportfs -ra && sudo rpc.nfsd 8" and "stopped" in one["cause"]
    assert answer["took"] < 90
    # Version 3, which these machines do without, would want a port mapper.
    lab.nodes[0].inside("exportfs -ra && rpc.nfsd --no-udp --no-nfs-version 3 8")
    well(desk)


def test_its_port_is_blocked(lab: VmLab, desk: Desk) -> None:
    lab.node("n1").block_port(2049)
    one = finding(asked(desk), "fs.hung", "n2")
    assert one["fix"][0] == f"on n1: sudo iptables -I INPUT -p tcp -s {lab.subnet} --dport 2049 -j ACCEPT"
    assert f"port 2049 of {lab.nodes[0].address}: no answer" in one["evidence"]
    do(lab, one)
    well(desk)


def test_a_version_that_the_server_does_not_speak(lab: VmLab, desk: Desk) -> None:
    source = f"{lab.nodes[0].address}:/"
    lab.node("n2").inside(f"umount /shared; echo '{source} /shared nfs vers=3,_netdev 0 0' >>/etc/fstab")
    one = finding(asked(desk), "fs.not-shared", "n2")
    assert one["cause"].startswith("/etc/fstab asks for NFS 3; n1 speaks 4")
    assert one["fix"] == [
        f"sudo sed -i '\\|^{source}[[:space:]]|s/vers=3/vers=4.2/' /etc/fstab",
        "sudo mkdir -p /shared && sudo mount /shared",
    ]
    do(lab, one)
    well(desk)
