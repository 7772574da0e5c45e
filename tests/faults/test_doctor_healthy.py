"""A healthy cluster gives no finding above info, twenty times in a row: three full nodes, sixteen light ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from e2e.doctoring import Desk, clean
from e2e.upping import Desk as UpDesk
from faults.jobs import DOCKERFILE, MOUNTS, ROOT
from lab import FullLab, LightLab

pytestmark = [pytest.mark.long]

TIMES = 20


@pytest.mark.lab_full
def test_three_full_nodes_that_are_up(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Three full nodes with the run's image, in which a run is rehearsed"""
    with FullLab.up(3, mounts=MOUNTS) as lab:
        assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0
        hosts = lab.access.hostfile_for("worker").read_text()
        desk = UpDesk(tmp_path / "desk", hosts)
        (desk.root / "image" / "Dockerfile").write_text(DOCKERFILE)
        job = desk.root / "job.yaml"
        job.write_text(yaml.safe_dump(_training(lab.shared)))
        desk.up()
        seconds = []
        for _ in range(TIMES):
            answer = desk.said("doctor", "--job", str(job))
            assert answer["verdict"] == "ok", [c for c in answer["checks"] if c["status"] in ("fail", "warn")]
            seconds.append(answer["seconds"])
        left = {node.name: node.inside(["docker", "ps", "-aq"]).split() for node in lab.nodes}
        assert not any(left.values()), left
        tell(f"{TIMES} times clean, {min(seconds):.1f} to {max(seconds):.1f} s")


def _training(shared: str) -> dict[str, object]:
    """In containers, with this checkout's own interpreter, as the small image has no torch."""
    return {
        "name": "tiny",
        "shared": shared,
        "python": str(ROOT / ".venv" / "bin" / "python"),
        "resources": {"device": "cpu"},
        "image": {"dockerfile": "image/Dockerfile"},
        "mounts": [f"{path}:ro" for path in MOUNTS],
        "train": {
            "model": "builtin:tiny",
            "output": {"name": "tiny"},
            "data": {"sources": [{"builtin": "shapes"}]},
            "learn": {"unet": {"rate": 1e-3}},
            "steps": 3,
        },
    }


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
