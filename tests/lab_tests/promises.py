"""What every weight of lab promises, as tests that each weight runs against its own nodes.

Owns the verbs that all nodes share. A test file makes a class of it and gives it a
`lab` fixture of three nodes and a way to bring up one more lab.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from lab.base import Lab, LabNode
from lab.journal import Journal
from lab.proc import until

_WRITE = ["dd", "if=/dev/zero", "of=probe", "bs=1k", "count=512"]


def knock(node: LabNode, address: str, port: int) -> str:
    """What a connection from the node to that port meets."""
    done = node.run(["timeout", "1.5", "bash", "-c", f"</dev/tcp/{address}/{port}"])
    if done.returncode in (0, 124):
        return "silence" if done.returncode else "open"
    return done.stderr.strip().rpartition(": ")[2]


def seconds_to_send(lab: Lab[Any], node: str, mib: float, *, to_node: bool) -> float:
    """How long a stream through ssh takes."""
    amount = int(mib * (1 << 20))
    command = "cat >/dev/null" if to_node else f"head -c {amount} /dev/zero"
    began = time.monotonic()
    subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), node, command],
        input=bytes(amount) if to_node else b"",
        capture_output=True,
        timeout=60,
        check=True,
    )
    return time.monotonic() - began


def traces(lab_id: str) -> list[str]:
    """Everything on this machine that bears the lab's id."""
    found = [str(path) for path in Path("/run/netns").glob(f"*{lab_id}*")]
    found += [str(path) for path in Path("/sys/class/net").glob(f"*{lab_id}*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if lab_id in line]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if lab_id.encode() in words:
            found.append(words.replace(b"\0", b" ").decode())
    found += [journal.id for journal in Journal.every() if journal.id == lab_id]
    return found


class Promises:
    """The promises; `lab` is shared by the tests of a class, so each leaves it as it was."""

    # What a throttled link is measured with, and what a knock at a paused node meets: the
    # kernel of a frozen light or full node is this machine's, and goes on accepting.
    mib = 3.0
    mbit = 10
    while_paused = "open"

    def another(self, count: int) -> Lab[Any]:
        """Bring up a lab of its own for a test that would spoil the shared one."""
        raise NotImplementedError

    def test_every_node_is_a_machine_of_its_own(self, lab: Lab[Any]) -> None:
        boots, names = set(), set()
        for node in lab.nodes:
            done = node.run(["sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id"])
            name, boot = done.stdout.split()
            assert (name, boot) == (node.name, node.boot_id)
            names.add(name)
            boots.add(boot)
        assert len(names) == len(boots) == len(lab.nodes)

    def test_every_node_has_its_own_address(self, lab: Lab[Any]) -> None:
        assert len({node.address for node in lab.nodes}) == len(lab.nodes)
        for node in lab.nodes:
            addresses = node.run(["ip", "-4", "-brief", "address", "show", "dev", "eth0"]).stdout
            assert f" {node.address}/" in addresses

    def test_the_shared_directory_is_one(self, lab: Lab[Any]) -> None:
        one, *others = lab.nodes
        assert one.run(["sh", "-c", f"echo seen >{lab.shared}/mark"]).returncode == 0
        seen = [node.run(["cat", f"{lab.shared}/mark"]).stdout for node in others]
        assert seen == ["seen\n"] * len(others)

    def test_homes_are_not_shared(self, lab: Lab[Any]) -> None:
        one, two = lab.nodes[:2]
        one.run(["touch", "only-here"])
        assert two.run(["test", "-e", "only-here"]).returncode == 1

    def test_nodes_reach_each_other_with_pinned_host_keys(self, lab: Lab[Any]) -> None:
        one, two = lab.nodes[:2]
        # What -J does, but with an ssh that is told of the lab's files.
        proxy = ["-o", f"ProxyCommand=ssh -F {lab.ssh_config} -W %h:%p {one.name}"]
        done = lab.access.ssh(two.name, ["hostname"], timeout=20, options=proxy)
        assert (done.returncode, done.stdout) == (0, f"{two.name}\n")
        assert one.run(["getent", "hosts", two.name]).stdout.split()[0] == two.address

    def test_the_hostfile_names_all_nodes(self, lab: Lab[Any]) -> None:
        lines = lab.hostfile.read_text().splitlines()
        assert lines == [
            f"{node.name} slots=1 addr={node.address} user=root port=22 identity={lab.key}" for node in lab.nodes
        ]

    @pytest.mark.parametrize(
        ("action", "met"),
        [("drop", "silence"), ("reject", "Connection refused"), ("prohibit", "No route to host")],
    )
    def test_block_port(self, lab: Lab[Any], action: str, met: str) -> None:
        one, two = lab.nodes[:2]
        assert knock(two, one.address, 22) == "open"
        one.block_port(22, action)
        try:
            assert knock(two, one.address, 22) == met
        finally:
            one.unblock_ports()
        assert knock(two, one.address, 22) == "open"

    def test_cut_and_restore(self, lab: Lab[Any]) -> None:
        one, two, three = lab.nodes
        two.cut_link()
        try:
            assert knock(one, two.address, 22) in {"silence", "No route to host"}
            assert knock(one, three.address, 22) == "open"
        finally:
            two.restore_link()
        until(lambda: knock(one, two.address, 22) == "open", 10, "the link to come back")

    @pytest.mark.parametrize("to_node", [True, False])
    def test_throttle(self, lab: Lab[Any], to_node: bool) -> None:
        node, mib = lab.nodes[0], self.mib
        free = seconds_to_send(lab, node.name, mib, to_node=to_node)
        node.throttle(f"{self.mbit}mbit")
        try:
            slow = seconds_to_send(lab, node.name, mib, to_node=to_node)
        finally:
            node.unthrottle()
        rate = mib * 8 * 1.048576 / slow
        assert 0.3 < rate / self.mbit < 1.3, f"{rate:.1f} Mbit/s through a link of {self.mbit}"
        assert slow / free > 3
        assert seconds_to_send(lab, node.name, mib, to_node=to_node) < slow / 3

    def test_pause_and_resume(self, lab: Lab[Any]) -> None:
        one, two = lab.nodes[:2]
        two.pause()
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                two.run(["true"], timeout=1.5)
            assert knock(one, two.address, 22) == self.while_paused
        finally:
            two.resume()
        assert two.run(["true"]).returncode == 0

    def test_kill_is_silent_and_start_brings_the_files_back(self, lab: Lab[Any]) -> None:
        one, _, three = lab.nodes
        before = three.boot_id
        three.run(["sh", "-c", "touch kept; sync -f ."])
        three.kill()
        assert knock(one, three.address, 22) in {"silence", "No route to host"}
        three.start()
        assert "kept" in three.run(["ls"]).stdout.split()
        assert before != three.boot_id
        with pytest.raises(LabError, match="is on already"):
            three.start()

    def test_reboot(self, lab: Lab[Any]) -> None:
        node, before = lab.nodes[1], lab.nodes[1].boot_id
        start = "touch kept; touch /dev/shm/gone; setsid sleep 301 >/dev/null 2>&1 &"
        node.run(["sh", "-c", start])
        running = ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]
        assert "sleep 301" in node.run(running).stdout
        node.reboot()
        assert node.boot_id != before
        assert node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip() == node.boot_id
        assert "sleep 301" not in node.run(running).stdout
        assert node.run(["test", "-e", "kept"]).returncode == 0
        assert node.run(["test", "-e", "/dev/shm/gone"]).returncode == 1

    def test_a_blocked_port_outlives_a_reboot(self, lab: Lab[Any]) -> None:
        one, two = lab.nodes[:2]
        one.block_port(22)
        try:
            one.reboot()
            assert knock(two, one.address, 22) == "silence"
        finally:
            one.unblock_ports()
        assert one.run(["true"]).returncode == 0

    def test_fill_disk(self, lab: Lab[Any]) -> None:
        one, two = lab.nodes[:2]
        one.fill_disk(leave_kb=64)
        try:
            done = one.run(_WRITE)
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert two.run(_WRITE).returncode == 0
        finally:
            one.free_disk()
        assert one.run(_WRITE).returncode == 0

    def test_a_swapped_host_key_is_refused(self) -> None:
        with self.another(1) as lab:
            node = lab.nodes[0]
            assert node.run(["true"]).returncode == 0
            node.swap_host_key()
            done = node.run(["true"])
        assert done.returncode == 255
        assert "verification failed" in done.stderr
