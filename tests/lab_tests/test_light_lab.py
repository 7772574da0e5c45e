"""The light lab keeps its promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterft import hosts
from lab import LabError, LightLab, LightNode
from lab.journal import Journal
from lab.proc import ProcessId, environment, start, until
from lab_tests.logins import Logins
from lab_tests.promises import Promises, knock, traces

pytestmark = pytest.mark.lab_light


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    with LightLab.up(count=3) as lab:
        yield lab


class TestLightLab(Promises):
    """What all weights promise."""

    def another(self, count: int) -> LightLab:
        return LightLab.up(count)


@pytest.fixture(scope="class")
def gated() -> Iterator[LightLab]:
    with LightLab.up(count=2, bastion=True, max_startups="2:100:2") as lab:
        yield lab
    assert traces(lab.id) == []


class TestGatedLightLab(Logins):
    """A bastion, MaxStartups, passwords."""


def test_a_node_sees_only_its_own_processes_and_cards(lab: LightLab) -> None:
    one = lab.nodes[0]
    assert one.run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    assert len(one.run(["sh", "-c", "ls -d /proc/[0-9]*"]).stdout.split()) < 10
    assert one.run(["sh", "-c", "echo ~"]).stdout.strip() == str(one.home)


def test_every_node_has_a_machine_id_of_its_own(lab: LightLab) -> None:
    assert len({node.run(["cat", "/etc/machine-id"]).stdout for node in lab.nodes}) == 3


def test_a_node_runs_the_python_of_this_machine(lab: LightLab) -> None:
    assert lab.nodes[0].run([sys.executable, "-c", "import pytest"]).returncode == 0


def test_the_controllers_key_is_not_on_the_nodes(lab: LightLab) -> None:
    assert lab.key.exists()
    assert lab.nodes[0].run(["test", "-e", str(lab.key)]).returncode == 1


def test_a_killed_node_has_no_processes(lab: LightLab) -> None:
    lab.nodes[2].kill()
    assert lab.nodes[2].processes() == []
    lab.nodes[2].start()


def test_a_node_behind_nat_answers_for_an_address_that_it_does_not_have(lab: LightLab) -> None:
    one, two = lab.nodes[:2]
    outer = f"{two.address.rpartition('.')[0]}.112"
    two.behind_nat()
    try:
        two.reboot()
        assert knock(two, one.address, 22) == "open"
        # The outer address leads to nobody unless the node answers for it.
        assert f"{outer} dev eth0 lladdr" in one.run(["ip", "neigh", "show", outer]).stdout
        assert outer not in two.run(["ip", "address"]).stdout
        assert knock(one, two.address, 22) == "open"
    finally:
        two.leave_nat()
    assert knock(two, one.address, 22) == "open"


def test_two_labs_do_not_meet(lab: LightLab) -> None:
    with LightLab.up(count=1) as other:
        assert other.nodes[0].run(["hostname"]).stdout == "n1\n"
        assert knock(lab.nodes[0], other.nodes[0].address, 22) != "open"
    assert lab.nodes[0].run(["true"]).returncode == 0


def test_down_leaves_nothing() -> None:
    with LightLab.up(count=2) as lab:
        lab.nodes[0].run(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 &"])
        lab.nodes[1].pause()
        assert traces(lab.id)
    assert traces(lab.id) == []


def test_a_failure_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    boot, seen = LightNode.boot, []

    def fail_third(node: LightNode) -> None:
        boot(node)
        seen.append(node.state.parent.parent.name)
        if len(seen) == 3:
            raise LabError("made to fail")

    monkeypatch.setattr(LightNode, "boot", fail_third)
    with pytest.raises(LabError, match="made to fail"):
        LightLab.up(count=5)
    assert traces(seen[0]) == []


def owner_of_a_lab(script: str) -> subprocess.Popen[str]:
    """Another process that brings a lab up, and says its id."""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        # A shell's background job, and so perhaps this test, is started deaf to SIGINT, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing(number: signal.Signals) -> None:
    script = (
        "from lab import LightLab; import time\n"
        "with LightLab.up(2) as lab:\n print(lab.id, flush=True)\n time.sleep(60)\n"
    )
    owner = owner_of_a_lab(script)
    assert owner.stdout is not None
    lab_id = owner.stdout.readline().strip()
    assert traces(lab_id)
    owner.send_signal(number)
    owner.communicate(timeout=30)
    if number == signal.SIGKILL:
        # Nobody can clean up then; the next lab does.
        LightLab.up(1).down()
    assert traces(lab_id) == []


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_of_up_leaves_nothing(number: signal.Signals, delay: float) -> None:
    script = (
        "from lab import LightLab, LightNode\n"
        "prepare = LightNode.prepare\n"
        "def tell(node, *keys):\n print(node.state.parent.parent.name, flush=True)\n"
        " return prepare(node, *keys)\n"
        "LightNode.prepare = tell\n"
        "with LightLab.up(40) as lab: pass\n"
    )
    owner = owner_of_a_lab(script)
    assert owner.stdout is not None
    lab_id = owner.stdout.readline().strip()
    time.sleep(delay)
    owner.send_signal(number)
    owner.communicate(timeout=60)
    if number == signal.SIGKILL:
        LightLab.up(1).down()
    assert traces(lab_id) == []


def test_what_a_killed_owner_had_begun_is_waited_for() -> None:
    """The command that makes a namespace goes on without its owner, and is slow."""
    script = (
        "from lab import LightLab, switch\n"
        "run = switch.run\n"
        "def slow(argv, **more):\n"
        " if argv[:3] != ['ip', 'netns', 'add']: return run(argv, **more)\n"
        " print(argv[3], flush=True)\n"
        " return run(['sh', '-c', 'sleep 3; exec \"$@\"', 'sh', *argv], **more)\n"
        "switch.run = slow\n"
        "with LightLab.up(1): pass\n"
    )
    owner = owner_of_a_lab(script)
    assert owner.stdout is not None
    lab_id = owner.stdout.readline().split("-")[1]
    until(lambda: any("sleep 3" in line for line in traces(lab_id)), 10, "the command to begin")
    owner.kill()
    owner.communicate(timeout=30)
    LightLab.up(1).down()
    assert traces(lab_id) == []


def test_a_program_that_could_not_be_written_down_never_starts(tmp_path: Path) -> None:
    seen = []

    def note(process: ProcessId) -> None:
        seen.append(process)
        raise LabError("made to fail")

    with (tmp_path / "log").open("wb") as log, pytest.raises(LabError, match="made to fail"):
        start(["touch", str(tmp_path / "ran")], note, log, environment())
    until(lambda: not seen[0].alive(), 5, "it to end")
    assert not (tmp_path / "ran").exists()


def test_each_lab_is_a_cluster_of_its_own_name_with_pins_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "lab")]
    place = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")}

    def by_hand(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, env=place)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        said = [by_hand("up", "--light", "1") for _ in range(2)]
        files = [Path(re.findall(r"hostfile +(\S+)", one)[0]) for one in said]
        for one, hostfile in zip(said, files, strict=True):
            (pin,) = [line for line in one.splitlines() if "install -D" in line]
            subprocess.run(["sh", "-c", pin], check=True, env=place)
            assert f".clusterft/{hosts.load(hostfile).name}/known_hosts" in pin
        for hostfile in files:
            kept = tmp_path / "home" / ".clusterft" / hosts.load(hostfile).name / "known_hosts"
            assert kept.read_text() == (hostfile.parent / "known_hosts").read_text()
    finally:
        by_hand("down")


def test_by_hand(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "lab")]
    # Labs of this test's own: `down` takes away all that it finds.
    place = {**os.environ, "TMPDIR": str(tmp_path)}

    def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, env=place)

    said = by_hand("up", "--light", "2").stdout
    state = Path(said.partition("hostfile")[2].split()[0]).parent
    try:
        lab = LightLab.attach(Journal(state))
        before = lab.node("n1").boot_id
        assert lab.id in by_hand("status").stdout and "    n2 slots=1" in by_hand("status").stdout
        assert by_hand("fault", "n1", "reboot").returncode == 0
        assert lab.node("n1").boot_id != before
        assert by_hand("fault", "n2", "pause").returncode == 0
        with pytest.raises(subprocess.TimeoutExpired):
            lab.node("n2").run(["true"], timeout=1)
        assert by_hand("fault", "n2", "throttle").returncode == 1
        assert by_hand("down", "nonsense").returncode == 1
    finally:
        down = by_hand("down")
    assert down.stdout == f"lab {lab.id}: removed\n"
    assert traces(lab.id) == []
    assert list(tmp_path.iterdir()) == []
