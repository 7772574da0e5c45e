"""`doctor --fix`: shows what it would do, does it only after a yes, looks again; on real nodes after a real up."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.doctoring import Desk, clean, finding, on
from lab import LightLab

pytestmark = [pytest.mark.lab_light]

KEY = "~/.clusterft/rack/nodes/n2/relay_ed25519"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Two nodes that are up, without an image."""
    with LightLab.up(count=2) as lab:
        made = Desk(lab, tmp_path_factory.mktemp("desk"))
        done = made.run("up", "--hosts", str(made.hosts), "--no-image", "--accept-new-host-keys")
        assert done.returncode == 0, done.stderr
        yield made


def mode(desk: Desk, path: str) -> str:
    """As octal digits."""
    return on(desk.lab, "n2", f"stat -c %a {path}").strip()


def fix(desk: Desk, answer: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    """`doctor --fix` before a person who types an answer; None is nobody at all."""
    words = ["doctor", "--hosts", str(desk.hosts), "--job", str(desk.job), "--quick", "--fix", *options]
    if answer is None:
        return desk.run(*words)
    screen, terminal = pty.openpty()
    try:
        os.write(screen, answer.encode())
        return subprocess.run(
            [sys.executable, "-m", "clusterft", *words],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=60,
            env=desk.env,
            cwd=desk.root,
        )
    finally:
        os.close(terminal)
        os.close(screen)


def test_a_key_that_others_may_read_is_named_and_mended_after_a_yes(desk: Desk) -> None:
    clean(desk.doctor("--quick"))
    on(desk.lab, "n2", f"chmod 644 {KEY}; chmod 755 ~/.clusterft/rack/nodes/n2")
    one = finding(desk.doctor("--quick"), "ctl.modes", "n2")
    assert f"on n2: chmod 600 {KEY}" in one["fix"] and one["status"] == "fail"

    for said in ("n\n", None):
        refused = fix(desk, said)
        assert refused.returncode == 3 and "Nothing was changed" in refused.stdout, refused.stdout
        assert mode(desk, KEY) == "644"

    agreed = fix(desk, "y\n")
    before, after = agreed.stdout.split("✓ chmod 600", 1)
    assert "✗ ctl.modes" in before and "ctl.modes" not in after and "Nothing wrong found" in after, agreed.stdout
    assert agreed.returncode == 0 and mode(desk, KEY) == "600"
    assert mode(desk, "~/.clusterft/rack/nodes/n2") == "700"
    clean(desk.doctor("--quick"))


def test_this_machines_own_key_and_folder(desk: Desk) -> None:
    folder = Path(desk.env["CLUSTERFT_HOME"]) / "rack"
    folder.chmod(0o755)
    try:
        one = finding(desk.doctor("--quick"), "ctl.modes")
        assert one["nodes"] == [] and one["fix"] == [f"chmod 700 {folder}"] and one["status"] == "warn"
        assert "on this machine" in fix(desk, "y\n").stdout
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.chmod(0o700)


def test_what_a_person_must_mend_is_left_to_him(desk: Desk) -> None:
    desk.lab.node("n2").block_port(22, "reject")
    try:
        done = fix(desk, "y\n")
    finally:
        desk.lab.node("n2").unblock_ports()
    assert done.returncode == 3 and "doctor can mend none of this itself" in done.stdout, done.stdout


def test_nothing_to_mend(desk: Desk) -> None:
    done = fix(desk, None)
    assert done.returncode == 0 and "There is nothing to mend" in done.stdout


def test_fix_and_json_exclude_each_other(desk: Desk) -> None:
    assert fix(desk, None, "--json").returncode == 2
