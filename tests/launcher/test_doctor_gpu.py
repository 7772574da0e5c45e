"""Proves doctor's judgement of cards, from answers in the formats of several drivers.

Samples in tests/golden/doctor/gpu are recorded (driver_580_h200_*), or made by hand after nvidia-smi's
documentation and what users have shown of it in public issues; the first line of each says which.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft import facts
from clusterft.checks import report, suite
from clusterft.checks.examination import Examination, Wanted
from clusterft.facts import Gpu, GpuProcess, health, probe
from clusterft.facts.health import gpu as gpu_health
from clusterft.facts.health.docker import Container, DockerHealth
from clusterft.facts.health.gpu import Card, Fabric, GpuHealth, Remapped, User
from clusterft.facts.health.host import HostHealth
from clusterft.facts.health.host_settings import Governor
from clusterft.facts.health.look import Health
from clusterft.facts.health.network import NetworkHealth
from clusterft.facts.health.ours import OursHealth
from clusterft.facts.health.storage import StorageHealth
from clusterft.facts.health.xid import Xid
from clusterft.findings import Finding
from e2e import smi

WORD = "5eed5eed5eed5eed"
CUDA = health.Asked(WORD, cuda=True, contained=False)
NAMES = ("a", "b", "c")
THREE = scenes.cluster("a slots=2\nb slots=2\nc slots=2\n")
SAMPLES = sorted((scenes.GOLDEN / "doctor" / "gpu").glob("*.txt"))


def plain(index: int, **changes: Any) -> Gpu:
    """As the probe of `up` sees a card."""
    whole = replace(scenes.card(index), bus_id=f"00000000:{index + 1:02X}:00.0", compute_cap="8.6")
    return replace(whole, **{"pcie_width": (16, 16), "processes": (), "display": False, **changes})


def card(index: int, **changes: Any) -> Card:
    """The same as doctor sees it, at rest."""
    whole = Card(
        index, f"GPU-0000-{index}", "NVIDIA GeForce RTX 3090", f"00000000:{index + 1:02X}:00.0", "580.65.06",
        persistence=False, limit=350.0, default_limit=350.0, draw=20.0, load=0, temperature=35, reasons=1,
    )  # fmt: skip
    return replace(whole, **changes)


def seen(
    *cards: Card,
    plains: tuple[Gpu, ...] = (plain(0), plain(1)),
    job: Any = None,
    docker: DockerHealth | None = None,
    host: HostHealth | None = None,
    **changes: Any,
) -> Examination:
    """Three nodes of two healthy cards, but for what is said of b's."""
    told: dict[str, Any] = {"cards": cards or (card(0), card(1)), "driver": True, "xids": (), **changes}

    def whole(name: str) -> Health:
        mine = GpuHealth(**told) if name == "b" else GpuHealth(cards=(card(0), card(1)), driver=True, xids=())
        engine = docker if docker and name == "b" else DockerHealth()
        system = host if host and name == "b" else HostHealth()
        return Health(name, system, engine, mine, NetworkHealth(), StorageHealth(), OursHealth())

    facts = (scenes.facts(name, gpus=plains if name == "b" else (plain(0), plain(1))) for name in NAMES)
    wanted = Wanted("cuda", contained=docker is not None, job=job)
    return Examination(wanted, scenes.survey(THREE, *facts), health={name: whole(name) for name in NAMES})


def judged(of: Examination) -> list[Finding]:
    """All of this layer above info."""
    found = report.judge(of, suite.CHECKS)
    return [
        one for one in found if one.status in ("fail", "warn") and one.id.startswith(("gpu.", "run.host-bound"))
    ]


def only(of: Examination) -> Finding:
    """The one finding; it names b and how to mend it."""
    found = judged(of)
    assert len(found) == 1, found
    assert found[0].nodes == ("b",) and found[0].fix and found[0].blast_radius
    return found[0]


def test_healthy_cards_give_no_finding() -> None:
    assert judged(seen()) == []


def test_cards_that_did_not_tell_in_time_are_unknown_and_not_well() -> None:
    of = seen()
    silent = replace(of.health["b"], gpu=replace(of.health["b"].gpu, cards=()))
    found = report.judge(replace(of, health={**of.health, "b": silent}), suite.CHECKS)
    for identity in ("gpu.ecc", "gpu.throttle", "gpu.power-limit"):
        assert [one.status for one in found if one.id == identity and "b" in one.nodes] == ["unknown"]


def test_cards_all_limited_alike_or_boards_of_other_makers_are_no_finding() -> None:
    """A home cluster that saves power everywhere, and a card whose maker allows it more."""
    saving = {name: replace(one, gpu=replace(one.gpu, cards=(card(0, limit=225.0), card(1, limit=225.0))))
              for name, one in seen().health.items()}  # fmt: skip
    assert judged(replace(seen(), health=saving)) == []
    assert judged(seen(card(0, limit=390.0, default_limit=390.0), card(1))) == []
    assert judged(seen(card(0, limit=None), card(1, default_limit=None))) == []


def test_a_card_limited_lower_than_its_equals_is_told_with_the_command() -> None:
    found = only(seen(card(0), card(1, limit=250.0)))
    assert (found.id, found.status) == ("gpu.power-limit", "warn") and "250 W" in found.summary
    assert found.fix == ("on b: sudo nvidia-smi -pm 1; sudo nvidia-smi -i 1 -pl 350",) and found.needs_root
    kept = only(seen(card(0), card(1, limit=250.0, persistence=True)))
    assert kept.fix == ("on b: sudo nvidia-smi -i 1 -pl 350",)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, ""),
        (0x1, ""),
        (0x4, ""),  # the power cap, which is how cards work
        (0x2, ""),
        (0x21, ""),  # idle
        (0x100, ""),
        (None, ""),
        (0x20, "too hot"),
        (0x40, "too hot"),
        (0x8, "hardware slowdown"),
        (0x88, "power brake"),
        (0x64, "too hot"),
    ],
)
def test_only_heat_and_power_at_work_count_as_throttling(reasons: int | None, words: str) -> None:
    of = seen(card(0), card(1, reasons=reasons, load=99))
    if not words:
        assert judged(of) == []
        return
    found = only(of)
    assert (found.id, found.status) == ("gpu.throttle", "warn") and words in found.summary
    assert ("power" in found.fix[1]) == (reasons in (0x8, 0x88)), found.fix


@pytest.mark.parametrize(
    ("remapped", "status", "fix"),
    [
        (Remapped(0, False, False), "", ""),
        (Remapped(2, False, False), "", ""),  # that is what spare rows are for
        (Remapped(1, True, False), "fail", "--gpu-reset -i 1"),
        (Remapped(8, True, True), "fail", "replace the card"),
        (Remapped(None, None, None), "", ""),
    ],
)
def test_broken_memory(remapped: Remapped, status: str, fix: str) -> None:
    of = seen(remapped={"GPU-0000-1": remapped})
    found = [only(of)] if status else judged(of)
    assert [(one.id, one.status) for one in found] == ([("gpu.ecc", status)] if status else [])
    assert all(fix in "\n".join(one.fix) and "card 1" in one.summary for one in found)


def test_errors_that_were_not_corrected_are_told() -> None:
    found = only(seen(card(0), card(1, uncorrected=3)))
    assert (found.id, found.status) == ("gpu.ecc", "warn") and "3 memory errors" in found.summary
    assert judged(seen(card(0), card(1, uncorrected=0))) == []


def test_fewer_lanes_count_only_beside_equals_with_more() -> None:
    found = only(seen(plains=(plain(0), plain(1, pcie_width=(8, 16)))))
    assert (found.id, found.status) == ("gpu.pcie", "warn") and "8 PCIe lanes of 16" in found.summary
    assert judged(seen(plains=(plain(0), plain(1, pcie_width=(8, 8))))) == [], "a card that has no more"
    alike = {name: replace(one, gpus=(plain(0, pcie_width=(8, 16)), plain(1, pcie_width=(8, 16))))
             for name, one in seen().survey.facts.items()}  # fmt: skip
    of = seen()
    assert judged(replace(of, survey=replace(of.survey, facts=alike))) == [], "a board with eight lanes a slot"


BF16 = [("bf16", "7.5", True), ("bf16", "8.0", False), ("fp16", "7.5", False), ("bf16", None, False)]


def test_a_card_in_an_older_slot_is_told_and_one_that_rests_is_not() -> None:
    found = only(seen(plains=(plain(0, pcie_gen=(1, 4)), plain(1, pcie_gen=(1, 2)))))
    assert (found.id, found.status) == ("gpu.pcie", "warn")
    assert "card 1 has PCIe 2 at most, its equals there 4" in found.summary and "Gen4" in found.fix[0]
    assert judged(seen(plains=(plain(0, pcie_gen=(4, 4)), plain(1, pcie_gen=(1, 4))))) == []


@pytest.mark.parametrize(("precision", "cap", "told"), BF16)
def test_bf16_needs_ampere(precision: str, cap: str | None, told: bool, tmp_path: Path) -> None:
    text = scenes.JOB.replace(
        "  steps: 3", f"  precision: {precision}\n  engine: {{kind: ddp}}\n  steps: 3"
    ).replace("cpu", "cuda")
    job = scenes.job(text, tmp_path)
    old = tuple(plain(index, compute_cap=cap) for index in (0, 1))
    found = judged(seen(plains=old, job=job))
    assert [(one.id, one.nodes) for one in found] == ([("gpu.bf16", ("b",))] if told else [])
    assert all("precision: fp16" in one.fix[0] for one in found)


REQUIRES = "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=tesla,driver>=535,driver<536"


@pytest.mark.parametrize(
    ("cuda", "driver", "name", "old"),
    [
        ((12, 4), "550.54.15", "NVIDIA GeForce RTX 3090", False),
        ((12, 2), "535.183.01", "NVIDIA GeForce RTX 3090", True),
        ((12, 2), "535.183.01", "NVIDIA A100-SXM4-80GB", False),  # compatible by its brand
        ((12, 0), "525.147.05", "NVIDIA A100-SXM4-80GB", True),
        ((13, 0), "580.65.06", "NVIDIA GeForce RTX 5090", False),
        (None, "470.256.02", "GeForce GTX 1080 Ti", False),  # not told, so nothing is said
    ],
)
def test_what_the_image_asks_of_the_driver(
    cuda: tuple[int, int] | None, driver: str, name: str, old: bool
) -> None:
    engine = DockerHealth(now=1.0, requires=REQUIRES, containers=())
    cards = tuple(plain(index, driver=driver, name=name) for index in (0, 1))
    found = [one for one in judged(seen(plains=cards, cuda=cuda, docker=engine)) if one.id != "gpu.mixed"]
    assert [(one.id, one.nodes) for one in found] == ([("gpu.old-driver", ("b",))] if old else [])


def test_switches_without_their_manager() -> None:
    stopped = Fabric(4, running=False, service="inactive", version="550.54.15")
    found = only(seen(fabric=stopped))
    assert (found.id, found.status) == ("gpu.fabric", "fail")
    assert found.fix[-1] == "sudo systemctl enable --now nvidia-fabricmanager"
    for well in (Fabric(0, running=False, service="inactive"), Fabric(4, running=True), Fabric(4, running=None)):
        assert judged(seen(fabric=well)) == []
    unread = report.judge(seen(fabric=Fabric(4, running=None)), suite.CHECKS)
    assert [one.status for one in unread if one.id == "gpu.fabric" and "b" in one.nodes] == ["unknown"]


# -- Xids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "fix"),
    [
        (13, "", ""), (31, "", ""), (43, "", ""), (45, "", ""), (63, "", ""), (8, "", ""),
        (48, "fail", "sudo reboot"), (62, "fail", "sudo reboot"), (64, "fail", "--gpu-reset -i 1"),
        (79, "fail", "seat the card"), (94, "warn", "clusterft stop"), (95, "fail", "sudo reboot"),
        (119, "fail", "sudo reboot"), (120, "fail", "sudo reboot"),
    ],
)  # fmt: skip
def test_each_xid_by_its_meaning(number: int, status: str, fix: str) -> None:
    one = Xid("0000:02:00", number, 180.0, f"NVRM: Xid (PCI:0000:02:00): {number}, pid=1")
    if not status:
        assert judged(seen(xids=(one,))) == []
        return
    found = only(seen(xids=(one,)))
    assert (found.id, found.status) == ("gpu.xid", status) and fix in found.fix[0]
    assert "card 1 3 min ago" in found.summary and found.evidence.startswith("NVRM: Xid")


def test_a_log_that_cannot_be_read_is_unknown_with_how_to_read_it() -> None:
    found = [
        one for one in report.judge(seen(xids=None), suite.CHECKS) if one.id == "gpu.xid" and "b" in one.nodes
    ]
    assert [one.status for one in found] == ["unknown"] and "sudo dmesg" in found[0].summary
    without = seen(xids=None, driver=False)
    assert [one.status for one in report.judge(without, suite.CHECKS) if one.id == "gpu.xid"] == ["ok"]


RING = (
    "[ 5000.100000] NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
)
OLD_RING = "[   50.000000] NVRM: Xid (0000:03:00): 31, Ch 00000010, engmask 00000101, intr 10000000"
JOURNAL = "1800000000.250000 gpu1 kernel: NVRM: Xid (PCI:0000:19:00): 119, pid=1234, name=python, Timeout after 6s"


def test_times_are_read_from_either_log() -> None:
    ring = gpu_health.parse(said("gpu.kernel", f"1800000000\n5400\nring\n{OLD_RING}\n{RING}\n"), CUDA).xids
    assert ring is not None and [(one.card, one.number, round(one.ago or 0)) for one in ring] == [
        ("0000:03:00", 31, 5350),
        ("0000:c1:00", 79, 400),
    ]
    journal = gpu_health.parse(said("gpu.kernel", f"1800000600\n99\njournal\n{JOURNAL}\n"), CUDA).xids
    assert journal is not None and [(one.card, one.number, round(one.ago or 0)) for one in journal] == [
        ("0000:19:00", 119, 600)
    ]
    day_old = gpu_health.parse(said("gpu.kernel", f"1800090000\n99\njournal\n{JOURNAL}\n"), CUDA).xids
    assert day_old == ()
    assert gpu_health.parse(said("gpu.kernel", "1800000000\n5400\n"), CUDA).xids is None


def test_a_card_that_is_gone_without_a_number_counts_as_79() -> None:
    """As drivers of 570 say it: NVSentinel#155, gpud#1209."""
    lines = (
        "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0\n"
        "[ 1843.308145] NVRM: fallen off the bus and is not responding to commands.\n"
    )
    found = gpu_health.parse(said("gpu.kernel", f"1800000000\n1900\nring\n{lines}"), CUDA).xids
    assert found is not None and [(one.card, one.number) for one in found] == [("0000:b3:00", 79)]


def said(section: str, text: str) -> dict[str, str]:
    """An answer in which only this is said."""
    names = (*gpu_health.sections(CUDA), *gpu_health.stages(CUDA))
    return {**dict.fromkeys(names, ""), section: text}


# -- who uses a card ---------------------------------------------------------------------------

STRANGER = GpuProcess(4711, "C", "python", 9000)


def test_a_stranger_on_a_card_is_told_and_a_run_of_ours_is_not() -> None:
    taken = (plain(0, processes=(STRANGER,), used=9010, display=True), plain(1))
    found = only(seen(plains=taken))
    assert (found.id, found.fix[0]) == ("gpu.busy", "ask its owner, or end it: kill 4711")
    assert judged(seen(plains=taken, users={4711: User(ours=True)})) == [], "a run without a container"
    labels = {"clusterft.cluster": "rack", "clusterft.run": "r", "clusterft.node": "b", "clusterft.owner": "1000"}
    mine = Container("ab" * 32, "clusterft-b-all", "running", labels, 1.0)
    engine = DockerHealth(now=5.0, containers=(mine,))
    contained = {4711: User(ours=False, container="ab" * 32)}
    assert judged(seen(plains=taken, users=contained, docker=engine)) == []
    foreign = {4711: User(ours=False, container="cd" * 32)}
    assert only(seen(plains=taken, users=foreign, docker=engine)).id == "gpu.busy"


def test_a_desktop_on_a_card_is_a_warning() -> None:
    desktop = GpuProcess(900, "G", "/usr/lib/xorg/Xorg", 180)
    found = only(seen(plains=(plain(0, processes=(desktop,), used=312, display=True), plain(1))))
    assert (found.id, found.status) == ("gpu.display", "warn") and "312 MiB" in found.summary


def test_a_host_that_holds_cards_back_is_told_only_of_a_run_of_ours_on_a_slow_host() -> None:
    slow = HostHealth(governor=Governor({"powersave": 16}, "acpi-cpufreq", 800_000, 4_000_000))
    hungry = tuple(card(n, load=99, draw=150.0, load_again=98, draw_again=160.0, reasons=0) for n in (0, 1))
    ours = {4711: User(ours=True)}
    found = only(seen(*hungry, users=ours, host=slow))
    assert (found.id, found.status) == ("run.host-bound", "warn") and "150 W of 350 W" in found.evidence
    assert judged(seen(*hungry, users=ours)) == []
    assert judged(seen(*hungry, host=slow)) == []
    fed = tuple(replace(one, draw_again=300.0) for one in hungry)
    assert judged(seen(*fed, users=ours, host=slow)) == []
    modern = HostHealth(governor=Governor({"powersave": 16}, "intel_pstate", 800_000, 4_000_000))
    assert judged(seen(*hungry, users=ours, host=modern)) == []


# -- answers of drivers ------------------------------------------------------------------------


def sections(path: Path) -> dict[str, str]:
    """A sample's sections; the first line says where it is from."""
    found, name = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        if line.startswith("== "):
            name = line[3:].strip()
            found[name] = ""
        else:
            found[name] += line
    return found


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_drivers_answer_is_read(path: Path) -> None:
    names = (*gpu_health.sections(CUDA), *gpu_health.stages(CUDA))
    found = gpu_health.parse({**dict.fromkeys(names, ""), **sections(path)}, CUDA)
    text = json.dumps(asdict(found), indent=1, sort_keys=True) + "\n"
    scenes.same_as_golden(text, path.with_suffix(".json"))


def recorded(state: str) -> Examination:
    """Three nodes that are one real one: what both looks at an H200 told."""
    names = (*gpu_health.sections(CUDA), *gpu_health.stages(CUDA))
    text = sections(scenes.GOLDEN / "doctor" / "gpu" / f"driver_580_h200_{state}.txt")
    found = gpu_health.parse({**dict.fromkeys(names, ""), **text}, CUDA)
    whole = (scenes.GOLDEN / "probe" / f"driver_580_h200_{state}.txt").read_text(encoding="utf-8")
    plains = facts.parse("b", whole, facts.Asked(WORD, ("10.0.0.11",), ("/mnt/out",))).gpus
    of = seen()
    told = {name: replace(one, gpu=found) for name, one in of.health.items()}
    same = (scenes.facts(name, gpus=plains) for name in NAMES)
    hosts = scenes.cluster("a slots=1\nb slots=1\nc slots=1\n")
    return replace(of, survey=scenes.survey(hosts, *same), health=told)


def test_a_recorded_healthy_card_gives_no_finding() -> None:
    of = recorded("idle")
    mine = of.health["b"].gpu
    assert judged(of) == [] and not mine.words
    (one,) = mine.cards
    assert (one.driver, one.persistence, one.limit, one.draw, one.load) == ("580.159.04", True, 700.0, 80.55, 0)
    assert (one.reasons, one.uncorrected, one.temperature) == (1, 0, 37)
    assert (mine.cuda, mine.xids, mine.driver, mine.users) == ((13, 0), (), True, None)
    assert mine.remapped == {one.uuid: Remapped(0, False, False)}
    unknown = [one for one in report.judge(of, suite.CHECKS) if one.status == "unknown" and one.id[:4] == "gpu."]
    assert unknown == []


def test_a_recorded_card_on_which_somebody_trains_is_told_with_the_process() -> None:
    of = recorded("busy")
    assert of.health["b"].gpu.users == {890: User(ours=False)}
    found = judged(of)
    assert [(one.id, one.nodes) for one in found] == [("gpu.busy", NAMES)], "no other than that"
    assert "890" in found[0].fix[0] and "python3" in found[0].evidence, found


@given(st.text(max_size=300))
def test_no_answer_breaks_the_parser(text: str) -> None:
    names = (*gpu_health.sections(CUDA), *gpu_health.stages(CUDA))
    for prefix in ("", "0, GPU-x, ", "1800000000\n5\nring\n"):
        assert isinstance(gpu_health.parse(dict.fromkeys(names, prefix + text), CUDA), GpuHealth)


def ask(tmp_path: Path, shell: tuple[str, ...], driver: smi.Smi, **commands: str) -> GpuHealth:
    """The look here, with a nvidia-smi that is none, and other commands of a test's own."""
    for name, body in {"nvidia-smi": driver.program(), **commands}.items():
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        shell,
        input=health.script(CUDA).encode(),
        capture_output=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return health.parse("here", done.stdout.decode(), CUDA).gpu


SHELLS = [("dash",), ("bash", "--posix"), ("busybox", "sh")]
KERNEL = "#!/bin/sh\necho '1800000000.0 kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.'\n"
NOTHING = "#!/bin/sh\nexit 1\n"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("driver", ["470.256.02", "535.183.01", "580.65.06"])
def test_fields_that_a_driver_does_not_know_cost_nothing_else(
    driver: str, shell: tuple[str, ...], tmp_path: Path
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    double = smi.Smi(driver=driver, cards=(smi.card(0), smi.card(1)), remapped=("1", "Yes", "No"))
    found = ask(tmp_path, shell, double, journalctl=NOTHING, dmesg=NOTHING, sudo=NOTHING)
    assert [(one.index, one.driver, one.reasons, one.limit) for one in found.cards] == [
        (0, driver, 1, 350.0),
        (1, driver, 1, 350.0),
    ]
    assert found.cuda == (12, 4) and found.xids is None and found.driver
    assert found.remapped and found.remapped[found.cards[0].uuid] == Remapped(1, True, False)


def test_a_busy_card_is_looked_at_twice(tmp_path: Path) -> None:
    busy = smi.card(0, **{"utilization.gpu": 97, "power.draw": "180.50"})
    found = ask(tmp_path, ("sh",), smi.Smi(cards=(busy,)), journalctl=NOTHING, dmesg=NOTHING, sudo=NOTHING)
    assert (found.cards[0].load_again, found.cards[0].draw_again) == (97, 180.5)


def test_the_kernels_log_is_read_where_it_may_be(tmp_path: Path) -> None:
    found = ask(tmp_path, ("sh",), smi.Smi(), journalctl=NOTHING, dmesg=KERNEL.replace("1800000000.0 ", "[ 1.0] "))
    assert found.xids is not None and [one.number for one in found.xids] == [79] or found.xids == ()


def test_a_program_on_a_card_is_told_apart_by_whose_it_is(tmp_path: Path) -> None:
    named = tmp_path / "clusterft_trainer.rank"
    named.symlink_to(shutil.which("sleep") or "/bin/sleep")
    with (
        subprocess.Popen([str(named), "60"]) as mine,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as other,
    ):
        try:
            double = smi.Smi(programs=((mine.pid, "python"), (other.pid, "python")))
            found = ask(tmp_path, ("sh",), double, journalctl=NOTHING, dmesg=NOTHING, sudo=NOTHING)
        finally:
            mine.kill()
            other.kill()
    assert found.users is not None and found.users[mine.pid].ours
    assert not found.users[other.pid].ours, "whatever else lies in a directory of that name"


def test_a_driver_that_hangs_costs_its_own_layer(tmp_path: Path) -> None:
    (tmp_path / "sleepy").mkdir()
    found = ask(tmp_path, ("sh",), smi.Smi(), **{"nvidia-smi": "#!/bin/sh\nexec sleep 60\n"})
    assert found.cards == () and found.cuda is None and found.words == gpu_health.SILENT
    of = seen(plains=(), words=found.words)
    health_of_b = replace(of.health["b"], gpu=replace(found, xids=()))
    told = only(replace(of, health={**of.health, "b": health_of_b}))
    assert (told.id, told.fix[-1]) == ("gpu.count", "sudo reboot") and "does not answer" in told.summary


VERSIONS = {
    "470.256.02": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n",
    "515.43.04": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  515.43.04  Release Build  (nixbld@)  \n"
    "GCC version:  gcc version 15.3.0 (GCC) \n",
}


@pytest.mark.parametrize("driver", list(VERSIONS))
def test_an_older_driver_is_not_asked_by_the_newer_name_first(driver: str, tmp_path: Path) -> None:
    """Each question wakes all of its cards, which takes seconds."""
    (tmp_path / "version").write_text(VERSIONS[driver])
    double = tmp_path / "double"
    double.write_text(smi.Smi(driver=driver, cards=(smi.card(0),)).program())
    double.chmod(0o755)
    counting = f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\nexec {double} "$@"\n'
    (tmp_path / "nvidia-smi").write_text(counting)
    (tmp_path / "nvidia-smi").chmod(0o755)
    stage = gpu_health.stages(CUDA)["gpu.now"].replace("/proc/driver/nvidia/version", str(tmp_path / "version"))
    text = probe.framed(CUDA.word, {"none": ":"}, {"gpu.now": stage}, within=11)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh"], input=text, capture_output=True, text=True, env=environment, timeout=30, check=True
    )
    assert "GPU-" in done.stdout
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_a_driver_that_is_slow_in_all_it_says_costs_its_own_layer(tmp_path: Path) -> None:
    """The first question refused late, the second not answered: cut, and told as a driver that does not answer."""
    slow = "#!/bin/sh\nsleep 6; case $* in *event*) echo '\"x\" is not a valid field'; exit 2 ;; esac; sleep 30\n"
    began = time.monotonic()
    found = ask(tmp_path, ("sh",), smi.Smi(), **{"nvidia-smi": slow})
    assert time.monotonic() - began < 14
    assert found.cards == () and found.words == gpu_health.SILENT


def test_a_log_that_was_cut_is_not_a_log_without_errors() -> None:
    names = (*gpu_health.sections(CUDA), *gpu_health.stages(CUDA))
    said = {**dict.fromkeys(names, ""), "gpu.kernel": "1800000000\n5000\njournal\n"}
    assert gpu_health.parse(said, CUDA).xids == ()
    assert gpu_health.parse({**said, "gpu.kernel.cut": ""}, CUDA).xids is None


def test_without_cards_asked_for_nothing_is_asked(tmp_path: Path) -> None:
    text = health.script(replace(CUDA, cuda=False))
    assert "nvidia-smi" not in "".join(gpu_health.stages(replace(CUDA, cuda=False)).values()) and text
