"""The lab of virtual machines keeps its promises: a real kernel NFS server and clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import LabError, VmLab, VmNode
from lab.proc import until
from lab_tests.promises import Promises, traces

pytestmark = pytest.mark.lab_vm


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    with VmLab.up(count=3) as lab:
        yield lab


class TestVmLab(Promises):
    """What all weights promise, at the speed of an emulator."""

    mib = 2.0
    mbit = 1
    while_paused = "silence"

    def another(self, count: int) -> VmLab:
        return VmLab.up(count)


def test_clients_mount_the_first_machines_directory(lab: VmLab) -> None:
    server, *clients = lab.nodes
    for client in clients:
        kind, source = client.run(
            ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", lab.shared]
        ).stdout.split()
        assert (kind, source) == ("nfs4", f"{server.address}:/")


def test_a_client_hangs_while_the_server_is_away_and_then_goes_on(lab: VmLab) -> None:
    server, client = lab.nodes[:2]
    write = ["sh", "-c", f"echo x >{lab.shared}/hung && sync {lab.shared}/hung && echo done"]
    assert client.run(write, timeout=30).stdout == "done\n"
    server.cut_link()
    try:
        assert client.run(["timeout", "-s", "KILL", "4", *write], timeout=30).stdout == ""
    finally:
        server.restore_link()
    until(lambda: client.run(write, timeout=60).stdout == "done\n", 60, "the share to come back")


def test_the_share_survives_a_restart_of_its_server(lab: VmLab) -> None:
    server, client = lab.nodes[:2]
    client.run(["sh", "-c", f"echo before >{lab.shared}/file"], timeout=30)
    server.reboot()
    server.await_shared()
    assert client.run(["cat", f"{lab.shared}/file"], timeout=60).stdout == "before\n"


def test_root_can_be_squashed_and_down_leaves_nothing() -> None:
    with VmLab.up(count=2, root_squash=True) as lab:
        denied = lab.nodes[1].run(["touch", f"{lab.shared}/mine"], timeout=30)
        assert "Permission denied" in denied.stderr
        assert traces(lab.id)
    assert traces(lab.id) == []


def test_a_failure_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fail(node: VmNode) -> None:
        seen.append(node.state.parent.parent.name)
        raise LabError("made to fail")

    monkeypatch.setattr(VmNode, "await_shared", fail)
    with pytest.raises(LabError, match="made to fail"):
        VmLab.up(count=1)
    assert traces(seen[0]) == []
