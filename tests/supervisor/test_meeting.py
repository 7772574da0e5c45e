"""What members find before the first attempt: the judgement as a pure function, and real probes on loopback."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gang_bench import GangBench, eventually

from clusterft_trainer import stream
from clusterft_trainer.assignment import Assignment, Member, parse
from clusterft_trainer.supervisor.look import Look
from clusterft_trainer.supervisor.meeting import Answer, judge
from clusterft_trainer.supervisor.messages import Link, Met, Tried

NODES = ("gpu0", "gpu1", "gpu2")


def answers(errors: dict[tuple[str, str], Link] | None = None, **unseen: tuple[str, ...]) -> list[Answer]:
    """All is well, but for these links, and those who do not see some others' files."""
    given = []
    for number, node in enumerate(NODES):
        links = []
        for other in NODES:
            link = Link(other, f"10.0.0.{NODES.index(other)}", 41000, 0.0002, 0.0004)
            links.append((errors or {}).get((node, other), link))
        links = [link for link in links if link.to != node]
        tried = Tried(tuple(links), unseen.get(node, ()), "")
        given.append(Answer(node, f"10.0.0.{number}", Met(41000, ""), tried))
    return given


def refused(to: str, error: str = "timed out", small: float | None = None) -> Link:
    """A link that did not come about."""
    return Link(to, f"10.0.0.{NODES.index(to)}", 41873, small, None, error, 3.0)


def test_all_well_is_one_line() -> None:
    (found,) = judge(answers(), "/s/r", 5.0)
    assert (found.id, found.status, found.nodes, found.at) == ("net.high-ports", "ok", NODES, 5.0)


def test_a_firewall_is_found_on_the_node_that_nobody_reaches() -> None:
    errors = {("gpu0", "gpu1"): refused("gpu1"), ("gpu2", "gpu1"): refused("gpu1")}
    (found,) = judge(answers(errors), "/s/r", 0.0)
    assert (found.id, found.status, found.nodes) == ("net.high-ports", "fail", ("gpu1",))
    assert found.summary == "new connections from gpu0 and gpu2 to high ports on gpu1 do not come about"
    assert "gpu0 → gpu1:41873  timed out after 3.0 s" in found.evidence
    assert found.fix == ("on gpu1: sudo ufw allow from 10.0.0.0", "on gpu1: sudo ufw allow from 10.0.0.2")


def test_a_path_that_loses_large_packets_is_told_from_a_firewall() -> None:
    errors = {("gpu0", "gpu2"): refused("gpu2", "64 KB echo: timed out", small=0.0003)}
    (found,) = judge(answers(errors), "/s/r", 0.0)
    assert (found.id, found.nodes) == ("net.mtu", ("gpu0", "gpu2"))


def test_a_directory_of_its_own_is_not_shared() -> None:
    (found,) = judge(answers(gpu0=("gpu2",), gpu1=("gpu2",), gpu2=("gpu0", "gpu1")), "/s/r", 0.0)
    assert (found.id, found.status, found.nodes) == ("fs.not-shared", "fail", ("gpu2",))


@pytest.mark.parametrize("check", ["fs.squash", "fs.hung", "fs.not-shared", "fs.not-writable"])
def test_what_keeps_a_node_from_the_share_is_named(check: str) -> None:
    given = answers(gpu0=("gpu1",))
    given[1] = replace(given[1], met=Met(41000, f"{check} some words"))
    (found,) = judge(given, "/s/r", 0.0)
    assert (found.id, found.status, found.nodes) == (check, "fail", ("gpu1",))
    assert found.evidence == "gpu1: some words" and "/s/r" in found.fix[0] + found.summary


def test_one_that_did_not_answer_is_no_pass() -> None:
    given = answers()
    given[2] = replace(given[2], tried=None)
    (found,) = judge(given, "/s/r", 0.0)
    assert (found.status, found.nodes) == ("warn", ("gpu2",))


# --- real probes


def told(root: Path, rank: int, run_dir: Path) -> Assignment:
    """What a member knows of the others."""
    members = tuple(Member(f"n{number}", number, 1, "127.0.0.1") for number in range(2))
    known = Assignment(
        run="r", cluster="c", node=f"n{rank}", machine_rank=rank, slots=1, members=members, gang_port=1, token="t",
        first_port=1, ports=1, argv=(), env={}, work_dir="/", run_dir=str(run_dir), log_dir=str(root),
    )  # fmt: skip
    return parse(known.to_json())


def meet(looks: list[Look], peers: tuple[Link, ...] = ()) -> list[Tried]:
    """Both halves, as the head leads through them."""
    met: dict[int, Met] = {}
    tried: dict[int, Tried] = {}

    def turn() -> None:
        for number, look in enumerate(looks):
            answer = look.turn(time.monotonic())
            if isinstance(answer, Met):
                met[number] = answer
            elif isinstance(answer, Tried):
                tried[number] = answer

    assert eventually(lambda: turn() or len(met) == len(looks))
    found = tuple(Link(f"n{number}", "127.0.0.1", one.port) for number, one in met.items())
    for look in looks:
        look.begin((*found, *peers), time.monotonic())
    assert eventually(lambda: turn() or len(tried) == len(looks), 20)
    return [tried[number] for number in range(len(looks))]


def test_probes_reach_each_other_see_each_others_files_and_tidy_up(tmp_path: Path) -> None:
    looks = [Look(told(tmp_path, rank, tmp_path), "word", time.monotonic()) for rank in range(2)]
    first, second = meet(looks)
    (link,) = first.links
    assert (link.to, link.error) == ("n1", "") and link.small and link.large
    assert (first.unseen, second.unseen, first.share) == ((), (), "")
    for look in looks:
        look.close()
    assert eventually(lambda: not (tmp_path / ".proof").exists(), 5)


def test_probes_tell_of_another_directory_and_of_a_port_that_refuses(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    looks = [
        Look(told(tmp_path, rank, tmp_path / name), "word", time.monotonic())
        for rank, name in enumerate(("a", "b"))
    ]
    first, second = meet(looks, (Link("n7", "127.0.0.1", 9),))
    assert first.unseen == ("n1", "n7") and second.unseen == ("n0", "n7")
    (refused_link,) = [link for link in first.links if link.to == "n7"]
    assert refused_link.error == "Connection refused" and refused_link.small is None
    for look in looks:
        look.close()


def test_a_run_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    look = Look(told(tmp_path, 0, tmp_path / "away" / "run"), "word", time.monotonic())
    answers: list[Met | Tried] = []

    def turn() -> bool:
        answer = look.turn(time.monotonic())
        answers.extend([answer] if answer else [])
        return bool(answers)

    assert eventually(turn)
    assert isinstance(answers[0], Met) and answers[0].share.startswith("fs.not-shared")
    assert not (tmp_path / "away").exists()
    look.close()


def test_a_share_that_hangs_is_told_in_time(tmp_path: Path) -> None:
    # A FIFO that nobody reads blocks who opens it, as a file of a dead server does.
    (tmp_path / ".proof").mkdir()
    os.mkfifo(tmp_path / ".proof" / "n0")
    began = time.monotonic()
    look = Look(told(tmp_path, 0, tmp_path), "word", began)
    answers: list[Met | Tried] = []
    assert eventually(lambda: answers.append(look.turn(time.monotonic())) or answers[-1], 8)  # type: ignore[arg-type]
    met = answers[-1]
    assert isinstance(met, Met) and met.share == "fs.hung" and met.port and time.monotonic() - began < 6
    look.close()
    os.close(os.open(tmp_path / ".proof" / "n0", os.O_RDWR))  # the server is back, and the probe ends by itself


# --- the whole of it


def test_a_gang_looks_around_once_and_then_trains(gang: GangBench) -> None:
    nodes = gang.lay_out("print('ran')", nodes=3, preflight=True)
    gang.start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["ok"] * 3
    assert [(found.id, found.status) for found in nodes[0].all(stream.Found)] == [("net.high-ports", "ok")]
    assert eventually(lambda: not (gang.shared / ".proof").exists(), 5)


def test_a_gang_without_a_shared_directory_trains_nothing(gang: GangBench) -> None:
    nodes = gang.lay_out("print('ran')", preflight=True)
    body = json.loads((nodes[1].dir / "assignment.json").read_text())
    (gang.root / "other").mkdir()
    (nodes[1].dir / "assignment.json").write_text(json.dumps(body | {"run_dir": str(gang.root / "other")}))
    gang.start()
    ends = [node.follow()[-1] for node in nodes]
    assert [end.end for end in ends if isinstance(end, stream.Ended)] == ["failed"] * 2
    assert [(found.id, found.nodes) for found in nodes[0].all(stream.Found)] == [("fs.not-shared", ("n1",))]
    assert nodes[0].all(stream.Decided)[0].failure == "fs.not-shared"
    assert not nodes[0].all(stream.Attempt) and not nodes[1].all(stream.Attempt)
