"""tools/setup.sh and make: what a stranger's machine may lack gets one clear message and exit code 2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup needs of a clone, in a directory with a space in its name."""
    copy = tmp_path / "a clone"
    (copy / "tools").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "tools/setup.sh", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def setup(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run setup.sh as make does."""
    return subprocess.run(
        [str(checkout / "tools" / "setup.sh")],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def old_python(directory: Path) -> Path:
    """A python3 that refuses as 3.9 would, for every name that setup tries."""
    directory.mkdir()
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        path = directory / name
        path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
        path.chmod(0o755)
    return directory


def test_an_old_python_is_named_with_its_version(checkout: Path) -> None:
    fake = old_python(checkout.parent / "bin")
    done = setup(checkout, PATH=f"{fake}:/usr/bin:/bin")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed; python3 here is Python 3.9.2" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_too_little_room_is_said_before_anything_is_made(checkout: Path) -> None:
    fake = checkout.parent / "bin"
    fake.mkdir()
    (fake / "df").write_text("#!/bin/sh\necho h\necho '/dev/x 9000 8900 100 99% /'\n")
    (fake / "df").chmod(0o755)
    done = setup(checkout, PATH=f"{fake}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert f"100 MiB free in {checkout}" in done.stderr and "free some room" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failed_install_shows_its_end_and_is_never_trusted(checkout: Path) -> None:
    for _ in range(2):  # the second run must not take the half-made .venv for a good one
        done = setup(checkout, CLUSTERFT_PIP_ARGS="--no-index --find-links=/nowhere")
        assert done.returncode == 2
        assert "setup: pip failed" in done.stderr and ".venv/setup.log" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (checkout / ".venv" / ".stamp").exists()


@pytest.fixture
def demo_home(tmp_path: Path) -> Iterator[Path]:
    """A controller home of the test's own; the results of the demo stay in the clone."""
    yield tmp_path / "home"


def belongings(home: Path) -> list[str]:
    """Command lines of processes that mention this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(home) in words:
                found.append(words)
    return found


@pytest.mark.trainer
def test_ctrl_c_at_make_demo_leaves_nothing_running(demo_home: Path) -> None:
    make = subprocess.Popen(
        ["make", "demo"],
        cwd=ROOT,
        env={**os.environ, "CLUSTERFT_HOME": str(demo_home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert make.stdout is not None
    for line in make.stdout:
        if line.startswith("step 1/"):
            break
    assert belongings(demo_home)
    os.killpg(make.pid, signal.SIGINT)  # as a terminal does: make, the controller, all of the foreground
    out = make.communicate(timeout=60)[0]
    assert make.returncode != 0 and "as asked" in out, out
    deadline = time.monotonic() + 10
    while belongings(demo_home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert belongings(demo_home) == []
    assert "Traceback" not in out
