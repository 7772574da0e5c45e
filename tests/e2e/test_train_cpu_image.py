"""The whole way with the real CPU image: up builds it and brings it to all nodes, train trains in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from e2e import house
from e2e.upping import Desk
from lab import FullLab
from trainer.test_report_browser import CHROMIUM, browse

pytestmark = [pytest.mark.lab_full, pytest.mark.trainer, pytest.mark.long]


def test_up_and_train_in_the_real_image(tmp_path: Path) -> None:
    image = house.cpu_image().model_dump(mode="json")
    with FullLab.up(3) as lab:
        desk = Desk(tmp_path / "desk", lab.access.hostfile_for("worker").read_text())
        assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0
        job = {
            "name": "whole",
            "shared": lab.shared,
            "resources": {"device": "cpu", "threads": 1},
            "image": image,
            "train": {
                "model": "builtin:tiny",
                "output": {"name": "tiny"},
                "data": {"sources": [{"builtin": "shapes", "images": 12}], "resolution": 64},
                "learn": {"unet": {"rate": 1e-3}},
                "precision": "fp32",
                "engine": {"kind": "zero", "stage": 2},
                "steps": 4,
            },
        }
        (desk.root / "job.yaml").write_text(yaml.safe_dump(job))
        done = desk.run("up", "--hosts", "rack", "--job", "job.yaml", "--accept-new-host-keys", seconds=2400)
        assert done.returncode == 0, done.stdout + done.stderr
        doctor = desk.said("doctor", "--job", "job.yaml")
        assert doctor["verdict"] == "ok", [one for one in doctor["checks"] if one["status"] in ("fail", "warn")]
        assert ["ok"] == [one["status"] for one in doctor["checks"] if one["id"] == "run.rehearsal"]

        done = desk.run("train", "job.yaml", "--json", seconds=900)
        assert done.returncode == 0, done.stdout + done.stderr
        body = json.loads(done.stdout)
        assert (body["outcome"], body["step"], len(body["attempts"])) == ("ok", 4, 1)
        run = f"{lab.shared}/{body['run']}"

        def read(name: str) -> str:
            return lab.nodes[0].inside(["cat", f"{run}/{name}"])

        record = json.loads(read("run.json"))
        assert [(part["node"], part["machine_rank"]) for part in record["parts"]] == [
            ("n1", 0),
            ("n2", 1),
            ("n3", 2),
        ]
        (tag,) = {node["container"]["request"]["Image"] for node in record["plan"]["nodes"]}
        ids = {node.inside(["docker", "image", "inspect", "-f", "{{.Id}}", tag]).strip() for node in lab.nodes}
        assert len(ids) == 1, ids
        assert [node.inside(["docker", "ps", "-aq"]).strip() for node in lab.nodes] == ["", "", ""]
        page = tmp_path / "report.html"
        page.write_text(read("report.html"))
    assert body["run"] in page.read_text()
    if CHROMIUM:  # test_report_browser says where there is none
        dom, console = browse(page.as_uri(), tmp_path / "profile")
        assert console == "" and 'data-ready="1"' in dom and body["run"] in dom
