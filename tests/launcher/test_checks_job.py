"""Proves the checks of one job against its nodes: cards in use, and what the estimate rules out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import scenes
from test_claims import fleet

from clusterft import checks
from clusterft.checks import Demand, Foresight, Survey
from clusterft.facts.gpu import GpuProcess
from clusterft.facts.health import confines
from clusterft.facts.health.confines import Confines, Limit
from clusterft.findings import Finding
from clusterft.probing import confines as probing
from clusterft.remote.local import LocalRemote

GIB = 2**30
CUDA = Demand("cuda", "/mnt/out", shared_bytes=GIB, local_bytes=GIB // 2)
TWO = scenes.cluster("a slots=1\nb slots=1 gpus=1\n")
SMALL = Foresight(vram=8 * GIB, host=GIB, checkpoint=GIB, export=GIB, step=None, remedies=())


def survey(**of_b: Any) -> Survey:
    """Node b has two cards, and uses the second one, to which the changes apply."""
    second = dataclasses.replace(scenes.card(1), **of_b)
    room = (scenes.disk("/mnt/out"),)
    return scenes.survey(
        TWO,
        scenes.facts("a", gpus=(scenes.card(0),), disks=room),
        scenes.facts("b", gpus=(scenes.card(0), second), disks=room),
    )


def found(survey: Survey, seen: Foresight = SMALL) -> dict[str, Finding]:
    """Findings by id."""
    said = (*checks.judge(survey, CUDA), *checks.judge_foreseen(survey, seen))
    return {finding.id: finding for finding in said}


def test_a_card_that_another_program_computes_on_blocks_with_its_pid() -> None:
    left = GpuProcess(48122, "C", "python3", 21000)
    finding = found(survey(processes=(left,), used=21010))["gpu.busy"]
    assert (finding.status, finding.nodes) == ("fail", ("b",))
    assert "card 1" in finding.summary and "48122 python3 21000 MiB" in finding.evidence


def test_a_card_that_the_run_does_not_use_may_be_busy() -> None:
    busy = dataclasses.replace(scenes.card(0), processes=(GpuProcess(7, "C", "other", 100),))
    both = scenes.survey(
        TWO, scenes.facts("a", gpus=(scenes.card(0),)), scenes.facts("b", gpus=(busy, scenes.card(1)))
    )
    assert "gpu.busy" not in {finding.id for finding in checks.judge(both, CUDA)}


@pytest.mark.parametrize("kind", ["G", "C+G"])
def test_a_desktop_is_a_warning_with_what_it_costs(kind: str) -> None:
    shell = GpuProcess(900, kind, "gnome-shell", 310)
    finding = found(survey(display=True, used=310, processes=(shell,)))["gpu.display"]
    assert finding.status == "warn" and "310 MiB" in finding.summary and "gnome-shell" in finding.evidence


def test_a_run_that_exceeds_a_card_blocks_with_what_would_fit() -> None:
    large = dataclasses.replace(SMALL, vram=30 * GIB, remedies=("weights: bf16 with ddp",))
    finding = found(survey(), large)["job.memory"]
    assert finding.status == "fail" and finding.nodes == ("a", "b")
    assert finding.fix == ("would fit: weights: bf16 with ddp",)


def test_a_run_that_only_just_fits_is_a_warning() -> None:
    tight = dataclasses.replace(SMALL, vram=int(23.5 * GIB))
    assert found(survey(), tight)["job.memory"].status == "warn"
    assert "job.memory" not in found(survey())


def test_memory_of_a_node_is_what_a_limit_leaves_of_it() -> None:
    large = dataclasses.replace(SMALL, host=40 * GIB)
    limit = Limit("memory.max", 32 * GIB, "/", "/sys/fs/cgroup")
    assert "os.oom" not in found(survey(), large), "each has 64 GiB"
    (told,) = [one for one in checks.judge_foreseen(survey(), large, {"b": limit}) if one.id == "os.oom"]
    assert (told.status, told.nodes) == ("warn", ("b",))
    assert told.evidence == f"/sys/fs/cgroup/memory.max: {32 * GIB}" and "34.4 GB" in told.summary
    higher, larger = {"b": limit._replace(value=1000 * GIB)}, dataclasses.replace(large, host=99 * GIB)
    (told,) = [one for one in checks.judge_foreseen(survey(), larger, higher) if one.id == "os.oom"]
    assert told.nodes == ("a", "b") and told.evidence == "" and "it has 68.7 GB" in told.summary


def test_a_container_is_under_the_limits_at_the_top_alone() -> None:
    own, top = (Limit("memory.max", size * GIB, path, "/c") for size, path in ((8, "/user.slice"), (32, "/")))
    known = Confines(memory=(own, top))
    assert known.least_memory(contained=True) == top and known.least_memory(contained=False) == own
    assert Confines().least_memory(contained=True) is None


def test_limits_are_asked_of_every_node() -> None:
    nodes = fleet(a=LocalRemote(), b=LocalRemote())
    assert confines.read(LocalRemote().run(confines.argv()).out).memory is not None
    assert probing.look(nodes, contained=True).keys() <= {"a", "b"}


def test_an_estimate_of_another_version_is_refused_by_name() -> None:
    body = {
        "vram_total": 1.0,
        "host_total": 2.0,
        "checkpoint": 3,
        "export": 4.0,
        "time": {"step": 0.5},
        "remedies": [{"changes": ["weights: bf16"], "engine": "ddp", "vram": 1}],
    }
    assert checks.foresight(body) == Foresight(1, 2, 3, 4, 0.5, ("weights: bf16 with ddp",))
    del body["export"]
    with pytest.raises(ValueError, match="export"):
        checks.foresight(body)
