"""Proves what doctor makes of limits on a login: read on every way up, judged by what ranks need; found blind."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft import agent, fleet
from clusterft.checks import report
from clusterft.checks.examination import Absence, Examination, Wanted
from clusterft.checks.layers import host, network
from clusterft.facts.health import Asked, confines
from clusterft.facts.health.confines import Confines, Limit
from clusterft.facts.links import Dial, Links
from clusterft.findings import Finding
from clusterft.remote import Completed
from clusterft.remote.account import Login
from launcher.test_doctor_mends import healthy

TWO = scenes.cluster("a slots=1\nb slots=2\n")
GIB = 2**30
SLICE = Limit("memory.max", 400 * 2**20, "/user.slice/user-1000.slice", "/sys/fs/cgroup")
POD = Limit("memory.limit_in_bytes", 400 * 2**20, "/", "/sys/fs/cgroup/memory")
CPU = Wanted("cpu", contained=False)


def seen(of_b: Confines, wanted: Wanted = CPU, **facts: Any) -> Examination:
    """Two nodes of 64 GiB; b's logins are confined."""
    known = [
        scenes.facts(name, memory=64 * GIB, memory_available=60 * GIB, **{"cores": 8, **facts}) for name in "ab"
    ]
    health = {"a": healthy("a"), "b": replace(healthy("b"), confines=of_b)}
    return Examination(wanted, scenes.survey(TWO, *known), health=health)


def loud(of: Examination) -> list[Finding]:
    """What is said of limits above info."""
    ids = ("os.memory-limit", "os.nproc", "os.cpu-limit")
    return [one for one in report.judge(of, host.CHECKS) if one.id in ids and one.status in ("fail", "warn")]


def test_a_cgroup_of_logins_with_little_memory_blocks_ranks_that_are_processes() -> None:
    (one,) = loud(seen(Confines((SLICE, SLICE._replace(value=32 * GIB)), ())))
    assert (one.id, one.status, one.nodes) == ("os.memory-limit", "fail", ("b",))
    assert "400 MiB" in one.evidence and "64.0 GiB" in one.evidence and SLICE.file in one.evidence
    assert f"on b: echo max | sudo tee {SLICE.file}" in one.fix[0] and "MemoryMax=infinity" in one.fix[0]


@pytest.mark.parametrize(
    ("limit", "contained", "status"),
    [
        (SLICE, True, None),  # an engine's containers lie beside the logins
        (POD, True, "fail"),
        (POD, False, "fail"),
        (SLICE._replace(value=6 * GIB), False, "warn"),  # two ranks of SDXL
        (SLICE._replace(value=32 * GIB), False, None),
        (SLICE._replace(name="memory.high", value=GIB), False, "fail"),
    ],
)
def test_what_a_limit_holds_for_and_how_little_is_little(
    limit: Limit, contained: bool, status: str | None
) -> None:
    told = loud(seen(Confines((limit,), ()), replace(CPU, contained=contained)))
    assert [one.status for one in told] == ([status] if status else [])


@pytest.mark.parametrize(
    ("space", "device", "count"), [(500 << 20, "cpu", 1), (64 * GIB, "cpu", 0), (64 * GIB, "cuda", 1)]
)
def test_addresses_that_torch_does_not_find_enough(space: int, device: Any, count: int) -> None:
    told = loud(seen(Confines((), (), address_space=space), replace(CPU, device=device)))
    assert len(told) == count and all("ulimit.*-v" in one.fix[0] for one in told)
    assert not loud(seen(Confines((), (), address_space=space), replace(CPU, device=device, contained=True)))


def test_few_processes_are_told_with_the_place_that_has_the_limit() -> None:
    few = Limit("pids.max", 40, "/user.slice", "/sys/fs/cgroup/pids")
    (one,) = loud(seen(Confines((), (few,), own_processes=20), uid=0))
    assert (one.id, one.status) == ("os.nproc", "fail") and "40 processes" in one.summary
    assert f"echo max | sudo tee {few.file}" in one.fix[0]
    (one,) = loud(seen(Confines((), (few,), own_processes=20), uid=1000))
    assert "20 processes" in one.summary and "nproc unlimited" in one.fix[0]
    assert not loud(seen(Confines((), (), own_processes=20), uid=0)), "root is under no nproc"


def test_little_of_the_processors_is_told_where_the_node_has_more() -> None:
    half = Limit("cpu.max", 500, "/user.slice", "/sys/fs/cgroup")
    (one,) = loud(seen(Confines((), (), processors=(half,))))
    assert (one.id, one.status) == ("os.cpu-limit", "warn") and "0.5 of " in one.summary
    assert f"echo max | sudo tee {half.file}" in one.fix[0]
    assert not loud(seen(Confines((), (), processors=(half._replace(value=64_000),))))


def test_a_program_of_ours_that_a_limit_stopped_is_told_as_the_limit() -> None:
    """It was seven unknown checks with a traceback."""
    trace = "Traceback (most recent call last):\n  line 1\nRuntimeError: can't start new thread"
    words = confines.stopped(trace)
    assert words.endswith("RuntimeError: can't start new thread") and "Traceback" not in words
    of = seen(Confines((), (), address_space=500 << 20))
    of = replace(of, absent={"links": {"b": Absence("", words)}}, health={**of.health})
    found = report.judge(of, (*host.CHECKS, *network.CHECKS))
    quiet = [one for one in found if "b" in one.nodes and one.id == "net.high-ports"]
    assert [(one.status, one.summary) for one in quiet] == [("skipped", "(os.memory-limit)")]
    assert confines.stopped("ModuleNotFoundError: No module named 'json'") == ""


@pytest.mark.parametrize(
    ("of_b", "status", "summary", "fix"),
    [
        (Confines((), (), pinned=1, online=8), "warn", "may run on 1 of 8 processors", "taskset -acp 0-7 "),
        (Confines((), (), nice=19), "warn", "have nice 19", "renice -n 0 "),
        (Confines((), (), policy=5), "warn", "are idle ones", "Nice="),
        (Confines((), (), cpu_seconds=900), "fail", "killed once it has used 900 s", "ulimit.*-t"),
    ],
)
def test_what_a_session_leaves_its_processes_of_the_processors(
    of_b: Confines, status: str, summary: str, fix: str
) -> None:
    """Each was injected into a lab, and doctor said: ready to train."""
    (one,) = loud(seen(of_b))
    assert (one.id, one.status, one.nodes) == ("os.cpu-limit", status, ("b",))
    assert summary in one.summary and fix in " ".join(one.fix)
    assert not loud(seen(of_b, Wanted("cpu", contained=True))), "an engine's containers have limits of their own"


def test_processors_enough_for_its_ranks_are_enough() -> None:
    assert not loud(seen(Confines((), (), pinned=4, online=64)))
    assert not loud(seen(Confines((), (), pinned=2, online=2))), "more than it has cannot be had"


def test_a_small_data_segment_is_told_as_the_limit_that_it_is() -> None:
    """A rank then ends with MemoryError while free shows room; it was told as ranks that do not meet."""
    (one,) = loud(seen(Confines((), (), data=400 << 20)))
    assert (one.id, one.status) == ("os.memory-limit", "fail") and "ulimit.*-d" in one.fix[0]
    assert "Max data size (ulimit -d) of a login: 400 MiB" in one.evidence


def test_the_limits_of_this_very_process_are_read(tmp_path: Path) -> None:
    """A real sh under real limits."""
    text = confines.sections(Asked("w"))["confines"]
    argv = ["sh", "-c", "ulimit -t 900; ulimit -d 4000000; taskset -p 1 $$ >&2; exec nice -n 7 sh"]
    out = subprocess.run(argv, input=text, text=True, capture_output=True, timeout=20, check=True).stdout
    found = confines.parse({"confines": out}, Asked("w"))
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
    assert (found.cpu_seconds, found.data, found.pinned, found.nice) == (900, 4_000_000 << 10, 1, nice)
    assert found.online == os.sysconf("SC_NPROCESSORS_ONLN") and found.policy == 0
    assert confines.parse({"confines": "seen\nCpus_allowed_list:\t0-3,8\nonline x\n"}, Asked("w")).pinned == 5


def test_what_a_limit_has_not_stopped_is_judged_all_the_same() -> None:
    """A limit that is too low for torch is enough for ports: all of a node's network was skipped for it."""
    of = seen(Confines((Limit("memory.max", 400 << 20, "/x", "/sys/fs/cgroup"),), ()))
    shut = Dial("a", "b", "10.0.0.2", 40000, "high", error="timed out", seconds=3.0)
    links = Links({"a": "10.0.0.1", "b": "10.0.0.2"}, (shut, Dial("b", "a", "10.0.0.1", 40000, "high")))
    found = report.judge(replace(of, links=links), (*host.CHECKS, *network.CHECKS))
    told = {one.id: one.status for one in found if "b" in one.nodes}
    assert told["os.memory-limit"] == "fail" and told["net.high-ports"] == "fail"
    assert "(os.memory-limit)" not in {one.summary for one in found}


def test_a_conversation_that_a_limit_stops_ends_the_program_that_listens() -> None:
    """Silence would be taken for a firewall's. A real limit, set once it listens."""
    argv = [sys.executable, "-c", agent.text("ports")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, **pipes) as program:  # type: ignore[call-overload]
        assert "boot" in json.loads(program.stdout.readline())
        asked = {"do": "listen", "name": "b", "word": "w", "ports": [], "high": [0], "wide": False}
        program.stdin.write(json.dumps(asked) + "\n")
        program.stdin.flush()
        port = json.loads(program.stdout.readline())["high"]
        used = int(Path(f"/proc/{program.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(program.pid, resource.RLIMIT_AS, (used, used))
        with socket.create_connection(("127.0.0.1", port), 5):
            assert program.wait(20) == 1
        assert confines.stopped(program.stderr.read())


def test_a_shell_that_cannot_fork_is_no_noisy_one() -> None:
    done = Completed(2, "--clusterft-5e0f-clock\n1.0\n", "sh: 3: Cannot fork\n")
    said = fleet._unread("ends after section 'clock'", done, "5e0f", Login())
    assert said.id == "os.nproc" and "Cannot fork" in said.what and "pids.max" in said.fix[0]


def test_a_file_in_the_place_of_dev_null_is_no_noisy_shell() -> None:
    done = Completed(2, "", "sh: 4: cannot create /dev/null: Permission denied\n")
    said = fleet._unread("has no answer", done, "5e0f", Login())
    assert said.id == "ssh.devnull" and "mknod -m 666 /dev/null c 1 3" in said.fix[0]


def test_limits_are_read_from_every_directory_on_the_way_up(tmp_path: Path) -> None:
    """A real sh, both versions, in a tree of files."""
    for path, name, value in (
        ("memory/user.slice/x", "memory.limit_in_bytes", "419430400"),
        ("memory", "memory.limit_in_bytes", "9223372036854771712"),
        ("pids/user.slice", "pids.max", "max"),
        ("pids", "pids.max", "77"),
        ("user.slice/user.slice", "memory.max", "max"),
        ("user.slice", "memory.high", "1000000"),
        ("", "cgroup.controllers", ""),
        ("user.slice", "cpu.max", "150000 100000"),
        ("user.slice/user.slice", "cpu.max", "max 100000"),
        ("cpu/user.slice", "cpu.cfs_quota_us", "50000"),
        ("cpu/user.slice", "cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / "cg" / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cg" / path / name).write_text(value + "\n")
    own = tmp_path / "own"
    own.write_text("4:memory:/user.slice/x\n3:cpu,pids:/user.slice\n0::/user.slice/user.slice\n")
    text = confines.sections(Asked("w"))["confines"]
    text = text.replace("/sys/fs/cgroup", f"{tmp_path}/cg").replace("/proc/self/cgroup", str(own))
    out = subprocess.run(["sh"], input=text, text=True, capture_output=True, timeout=20, check=False).stdout
    found = confines.parse({"confines": out.replace(f"{tmp_path}/cg", "/sys/fs/cgroup")}, Asked("w"))
    assert found.memory and {(one.file, one.value) for one in found.memory} == {
        ("/sys/fs/cgroup/memory/user.slice/x/memory.limit_in_bytes", 419430400),
        ("/sys/fs/cgroup/user.slice/memory.high", 1000000),
    }
    assert found.processes == (Limit("pids.max", 77, "/", "/sys/fs/cgroup/pids"),)
    assert found.processors and {(one.file, one.value) for one in found.processors} == {
        ("/sys/fs/cgroup/user.slice/cpu.max", 1500),
        ("/sys/fs/cgroup/cpu/user.slice/cpu.cfs_quota_us", 500),
    }
    assert confines.parse({"confines": ""}, Asked("w")) == Confines()
