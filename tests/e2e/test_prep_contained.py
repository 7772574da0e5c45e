"""`clusterft prep` in containers and over SSH, as a user runs it: real sshd, engines, encoders and deaths.

Two nodes. The image is small; interpreter and code are this checkout's own, which the nodes show to containers.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from test_train_contained import Rack, ended, until
from upping import Desk

from faults.jobs import DOCKERFILE, MOUNTS
from lab import FullLab

pytestmark = [pytest.mark.lab_full, pytest.mark.trainer, pytest.mark.long]

PICTURES = "/srv/pictures"  # on each node's own disk; nothing mentions it under mounts:
ASKED = "AWS_SECRET_ACCESS_KEY"


@pytest.fixture(scope="module")
def module_rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Brought up once."""
    with FullLab.up(2, mounts=MOUNTS) as lab:
        hosts = lab.access.hostfile_for("worker").read_text()
        desk = Desk(tmp_path_factory.mktemp("prep rack") / "desk", hosts)
        (desk.root / "image" / "Dockerfile").write_text(DOCKERFILE)
        made = Rack(lab, desk)
        made.job()
        assert lab.nodes[0].run(["chmod", "1777", lab.shared]).returncode == 0
        desk.up()
        yield made


@pytest.fixture
def rack(module_rack: Rack) -> Iterator[Rack]:
    """Nothing is prepared before a test, and nothing of it stays."""
    module_rack.inside("n1", f"rm -rf {module_rack.lab.shared}/.clusterft {module_rack.lab.shared}/*")
    yield module_rack
    for node in module_rack.containers():
        module_rack.inside(node, "docker ps -aq | xargs docker rm -f")


def job(rack: Rack, source: dict[str, Any], *, resolution: int = 64, **changes: Any) -> str:
    """A job that keeps a cache."""
    data = {"sources": [source], "resolution": resolution, "cache": {}}
    return rack.job(train={"data": data}, **changes)


def standing(rack: Rack) -> dict[str, Any]:
    """What is prepared."""
    body: dict[str, Any] = rack.desk.said("prep", "job.yaml", "--status")
    return body


def shards(rack: Rack) -> dict[str, str]:
    """Names and checksums of what lies in the cache."""
    folder = f"{rack.lab.shared}/.clusterft/latents"
    found = rack.inside("n1", f"cd {folder} 2>/dev/null || exit 0; sha256sum */*.safetensors 2>/dev/null || :")
    return {name: digest for digest, name in (line.split() for line in found.splitlines())}


def draw(rack: Rack, number: int) -> None:
    """A picture with its caption, on every node."""
    held = io.BytesIO()
    Image.new("RGB", (80, 64), (20 * number, 10, 200)).save(held, "PNG")
    data = base64.b64encode(held.getvalue()).decode()
    place = f"{PICTURES}/{number}"
    script = f"mkdir -p {PICTURES}; echo {data} | base64 -d >{place}.png; echo picture {number} >{place}.txt"
    for node in rack.lab.nodes:
        rack.inside(node.name, script)
        rack.inside(node.name, f"touch -d 2020-01-01 {place}.png {place}.txt")


def under_way(rack: Rack) -> subprocess.Popen[str]:
    """A run that prepares, and has made a first shard."""
    process = rack.start("prep", job(rack, {"builtin": "shapes", "images": 900}, resolution=256))
    try:
        until(lambda: shards(rack), 240, "a first shard")
    except BaseException:
        process.kill()
        raise
    return process


def test_all_nodes_prepare_what_they_are_shown_and_training_follows(rack: Rack) -> None:
    for number in range(6):
        draw(rack, number)
    rack.desk.env[ASKED] = "s3cret-of-the-bucket"
    words = job(rack, {"folder": PICTURES}, secrets=[ASKED])
    assert standing(rack)["missing"] is None
    done = rack.desk.said("prep", words)
    assert done["outcome"] == "ok", done
    plan = rack.shared(done["run"], "run.json")["plan"]
    for node in plan["nodes"]:
        shown = {one["Target"]: one for one in node["container"]["request"]["HostConfig"]["Mounts"]}
        assert (shown[PICTURES]["Source"], shown[PICTURES]["ReadOnly"]) == (PICTURES, True)
    logs = rack.inside("n1", f"ls {rack.lab.shared}/{done['run']}/logs/attempt-0/*/rank*.log").split()
    assert len(logs) == 2
    body = standing(rack)
    assert (body["missing"], body["index"]["pictures"], body["latents"]["entries"]) == (0, 6, 6)
    made = shards(rack)
    draw(rack, 6)
    trained = rack.desk.run("train", words)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "1 entry of the cache is missing: prepared first" in trained.stdout, trained.stdout
    assert made.items() < shards(rack).items()
    again = rack.desk.run("train", words)
    assert again.returncode == 0 and "✓ all data is prepared" in again.stdout, again.stdout + again.stderr
    assert rack.containers() == {}
    leaks = f"grep -rl s3cret-of-the-bucket {rack.lab.shared} /home/worker /tmp /var/lib/docker/containers || :"
    assert [rack.inside(node.name, leaks) for node in rack.lab.nodes] == ["", ""]


def test_ranks_and_containers_die_and_the_cache_is_the_same(rack: Rack) -> None:
    process = under_way(rack)
    rack.rank("n2", 1)
    until(
        lambda: "starts again" in rack.inside("n1", f"cat {rack.lab.shared}/*/events/n2.jsonl || :"),
        60,
        "the rank's new start",
    )
    rack.inside("n2", "docker kill $(docker ps -q)")  # given up by its engine
    out = ended(process, 0, 400)
    assert "rank 1 was ended by SIGKILL, and starts again" in out, out
    assert standing(rack)["missing"] == 0
    disturbed = shards(rack)
    rack.inside("n1", f"rm -rf {rack.lab.shared}/.clusterft/latents {rack.lab.shared}/.clusterft/work")
    assert rack.desk.said("prep", "job.yaml")["outcome"] == "ok"
    assert shards(rack) == disturbed
    assert rack.containers() == {}


def test_a_node_that_is_lost_leaves_its_work_to_the_other(rack: Rack) -> None:
    process = under_way(rack)
    rack.lab.node("n2").kill()
    try:
        out = ended(process, 0, 400)
    finally:
        rack.lab.node("n2").start()
    assert "n2" in out and "prepared in" in out, out
    assert standing(rack)["missing"] == 0
    run = rack.newest()

    def gone() -> bool:
        told = rack.desk.run("status", run)
        assert told.returncode == 0, told.stdout + told.stderr
        return rack.containers() == {}

    until(gone, 90, "what the dead node still held to be gone, once its engine is back")


def test_a_source_that_a_node_does_not_have_is_told_with_the_node(rack: Rack) -> None:
    rack.inside("n1", "mkdir -p /srv/only-here")
    done = rack.desk.run("prep", job(rack, {"folder": "/srv/only-here"}))
    assert done.returncode == 3 and "/srv/only-here" in done.stderr and "n2" in done.stderr, (
        done.stdout + done.stderr
    )
    assert rack.containers() == {}


def test_it_is_stopped_from_another_controller_and_gone_on_with(rack: Rack) -> None:
    process = under_way(rack)
    run = rack.newest()
    process.kill()
    process.wait()
    stopped = rack.desk.said("stop", run)
    assert stopped["outcome"] == "stopped", stopped
    before = shards(rack)
    done = rack.desk.said("resume", run)
    assert (done["run"], done["outcome"]) == (run, "ok"), json.dumps(done)
    assert before.items() < shards(rack).items() and standing(rack)["missing"] == 0
    assert rack.containers() == {}
