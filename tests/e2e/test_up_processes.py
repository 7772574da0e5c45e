"""`clusterft up` for jobs that run processes, on nodes without Docker; and what it prints, pasted as it stands."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.doctoring import Desk, finding
from lab import LightLab

pytestmark = [pytest.mark.lab_light]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Three nodes that nobody has met, and a job whose runtime is process."""
    with LightLab.up(count=3) as lab:
        made = Desk(lab, tmp_path / "desk")
        made.known_hosts.unlink()
        yield made


def paste(desk: Desk, command: str) -> subprocess.CompletedProcess[str]:
    """A line of ours into a shell that knows the program by its name."""
    words = {**desk.env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{desk.env['PATH']}"}
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        env=words,
        cwd=desk.root,
        stdin=subprocess.DEVNULL,
    )


def printed(text: str) -> list[str]:
    """The commands of ours in what was said."""
    return [found.strip() for found in re.findall(r"clusterft (?:up|train) [^\n]*?(?=   |\n|, )", text + "\n")]


def test_a_job_of_processes_needs_no_docker(desk: Desk) -> None:
    up = ("up", "--hosts", "rack", "--job", "job.yaml", "--accept-new-host-keys")
    done = desk.run(*up)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no image is brought: the job runs processes" in done.stdout
    assert "3 nodes up" in done.stdout and "next: clusterft train job.yaml" in done.stdout
    again = desk.run("up")  # told nothing, it wants what the last one wanted
    assert again.returncode == 0 and "nothing to change" in again.stdout, again.stdout + again.stderr
    planned = paste(desk, printed(done.stdout)[-1] + " --dry-run")
    assert planned.returncode == 0 and "3 ranks on 3 nodes of cluster rack" in planned.stdout, planned.stderr
    quick = desk.run("doctor", "--quick")
    assert "dk." not in quick.stdout, quick.stdout


def test_without_a_job_it_is_said_that_runs_can_do_without_docker(desk: Desk) -> None:
    done = desk.run("up", "--hosts", "rack", "--accept-new-host-keys")
    assert done.returncode == 3 and "dk." in done.stdout
    (step,) = [line for line in done.stdout.splitlines() if "without Docker" in line]
    assert "runtime: process" in step
    mended = paste(desk, printed(step)[-1])
    assert mended.returncode == 0 and "3 nodes up" in mended.stdout, mended.stdout + mended.stderr


def test_the_commands_of_host_keys_work_when_pasted(desk: Desk) -> None:
    met = desk.doctor("--quick")
    unknown = finding(met, "ssh.hostkey-unknown", "n1", "n2", "n3")
    look, trust = unknown["fix"][0], unknown["fix"][-1]
    on_it = re.search(r"on the console of n1: (ssh-keygen \S+ \S+)   must show (SHA256:\S+)", look)
    pinned = ["ssh-keygen", "-l", "-F", desk.lab.node("n1").address, "-f", str(desk.lab.known_hosts)]
    assert on_it and on_it[2] in subprocess.run(pinned, capture_output=True, text=True).stdout  # the node's own
    done = paste(desk, printed(trust)[0] + " --accept-new-host-keys")
    assert done.returncode == 0 and "3 nodes up" in done.stdout, done.stdout + done.stderr

    desk.lab.node("n3").swap_host_key()
    changed = finding(desk.doctor("--quick"), "ssh.hostkey-changed", "n3")
    (forget,) = [one for step in changed["fix"] for one in printed(step)]
    assert "--forget-host-key n3" in forget
    done = paste(desk, forget + " --accept-new-host-keys")
    assert done.returncode == 0 and "3 nodes up" in done.stdout, done.stdout + done.stderr


def down(desk: Desk, answer: str | None, *words: str) -> tuple[int, str]:
    """`clusterft down` before a person who types an answer, or before nobody: its code, and all that it said."""
    if answer is None:
        done = desk.run("down", *words)
        return done.returncode, done.stdout + done.stderr
    screen, terminal = pty.openpty()
    try:
        os.write(screen, answer.encode())
        argv = [sys.executable, "-m", "clusterft", "down", *words]
        asked = subprocess.run(
            argv, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, timeout=60, env=desk.env, cwd=desk.root
        )
        said = b""
        while select.select([screen], [], [], 0.2)[0]:
            said += os.read(screen, 1 << 16)
        return asked.returncode, (asked.stdout + said).decode()
    finally:
        os.close(terminal)
        os.close(screen)


def test_logs_of_runs_go_only_when_somebody_says_so(desk: Desk) -> None:
    up = ("up", "--hosts", "rack", "--job", "job.yaml", "--accept-new-host-keys")
    assert desk.run(*up).returncode == 0
    kept = "~/.clusterft/rack/nodes/n2/runs"
    runs = [f"moon-{number}" for number in range(7)]
    node = desk.lab.node("n2")
    node.run(["sh", "-c", f"mkdir -p {kept}; cd {kept} && mkdir {' '.join(runs)}"])

    code, said = down(desk, None)
    assert code == 2 and "logs that nodes keep of 7 runs" in said and "clusterft down --yes" in said
    code, said = down(desk, "n\n")
    assert code == 130 and "nothing was taken down" in said
    assert "7 runs: moon-0, moon-1, moon-2, moon-3, moon-4 and 2 more" in said and "shared dir" in said
    assert node.run(["sh", "-c", f"ls {kept}"]).stdout.split() == runs
    assert desk.run("status").returncode == 0  # all is as it was
    code, said = down(desk, "y\n")
    assert code == 0 and "the logs of 7 runs with them" in said, said
    assert node.run(["sh", "-c", "ls -d ~/.clusterft/rack"]).stdout == ""

    assert desk.run(*up).returncode == 0
    code, said = down(desk, None)  # what `up` makes anew is no loss
    assert code == 0 and "cluster rack is down" in said
    assert down(desk, "", "--hosts", "rack")[0] == 0  # where nothing is left, nothing is asked
    assert desk.run(*up).returncode == 0
    node.run(["sh", "-c", f"mkdir -p {kept}/moon-1"])
    assert down(desk, None, "--yes")[0] == 0
