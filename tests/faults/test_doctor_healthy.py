"""A healthy cluster gives no finding above info, twenty times in a row: three full nodes, sixteen light ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.doctoring import SCRIPT_JOB, Desk, beside, clean
from e2e.upping import DOCKERFILE
from e2e.upping import Desk as UpDesk
from lab import FullLab, LightLab

pytestmark = [pytest.mark.long]

TIMES = 20


@pytest.mark.lab_full
def test_three_full_nodes_that_are_up(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Three full nodes with the run's image"""
    with FullLab.up(3) as lab:
        assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0
        hosts = lab.access.hostfile_for("worker").read_text()
        desk = UpDesk(tmp_path / "desk", hosts)
        job = desk.root / "job.yaml"
        job.write_text(SCRIPT_JOB.format(shared=lab.shared))
        beside(desk.root, DOCKERFILE)
        desk.up()
        seconds = []
        for _ in range(TIMES):
            answer = desk.said("doctor", "--job", str(job))
            assert answer["verdict"] == "ok", [c for c in answer["checks"] if c["status"] in ("fail", "warn")]
            seconds.append(answer["seconds"])
        left = {node.name: node.inside(["docker", "ps", "-aq"]).split() for node in lab.nodes}
        assert not any(left.values()), left
        tell(f"{TIMES} times clean, {min(seconds):.1f} to {max(seconds):.1f} s")


@pytest.mark.lab_light
def test_sixteen_light_nodes(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Sixteen light nodes"""
    with LightLab.up(count=16) as lab:
        desk = Desk(lab, tmp_path / "desk")
        seconds = []
        for _ in range(TIMES):
            answer = desk.doctor()
            clean(answer)
            seconds.append(answer["took"])
        tell(f"{TIMES} times clean, {min(seconds):.1f} to {max(seconds):.1f} s")
