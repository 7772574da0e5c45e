"""Proves how the figures of `doctor --deep` are judged: what is noise, whose fault it is, what is remembered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as some

from clusterft.apply import baseline
from clusterft.checks import report
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import deep as layer
from clusterft.checks.work import acceptance, measured
from clusterft.errors import UsageError
from clusterft.facts import deep as facts
from clusterft.facts.deep import Card, Deep, Direct, Group, Kind, Said, Saving
from clusterft.facts.network import Firewall
from clusterft.findings import Finding
from clusterft.places import ClusterPlaces
from clusterft.plan.network import Address
from clusterft.probing import deep, occupied, rounds, site

NAMES = ("a", "b", "c", "d")


def examined(deep: Deep, names: Iterable[str] = NAMES, device: Any = "cpu", **changes: Any) -> Examination:
    """Healthy nodes with these results."""
    names = tuple(names)
    cluster = scenes.cluster("".join(f"{name} slots=1\n" for name in names))
    survey = scenes.survey(cluster, *(scenes.facts(name, **changes) for name in names))
    whole = replace(
        deep,
        addresses={name: f"10.0.0.{index}" for index, name in enumerate(names, 1)},
        interfaces=dict.fromkeys(names, "eth7"),
    )
    return Examination(Wanted(device, contained=False, shared="/mnt/out"), survey, deep=whole)


def loud(seen: Examination) -> list[Finding]:
    """What is above info."""
    return [one for one in report.judge(seen, layer.CHECKS) if one.status in ("fail", "warn")]


def pair(nodes: str, busbw: float | None, **changes: Any) -> Group:
    """Of two nodes."""
    whole: dict[str, Any] = {"seconds": 0.1, "bytes": 1 << 25, "spread": 0.01}
    none: dict[str, Any] = {"hung": True, "stage": "group", "words": "a: Connection timed out"}
    return Group("pair", tuple(nodes), 2, busbw, **{**(whole if busbw is not None else none), **changes})


def twice(*groups: Group) -> tuple[Group, ...]:
    """As they are measured when they look bad."""
    return (*groups, *groups)


FULL = ("ab", "ac", "ad", "bc", "bd", "cd")


# -- whose fault -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tried", "bad", "nodes", "links"),
    [
        (FULL, ("ab", "bc", "bd"), "b", ()),
        (FULL, ("ab",), "", ("ab",)),
        (FULL, (), "", ()),
        (("ab", "cd", "ad", "bc"), ("ab", "ad"), "a", ()),  # two rounds
        (("ab", "cd", "ad", "bc"), ("ab",), "", ("ab",)),
        (("ab", "bc", "ac"), ("ab", "bc"), "b", ()),
        (("ab",), ("ab",), "", ("ab",)),  # of two nodes nobody can tell which
        (FULL, FULL, "abcd", ()),
    ],
)
def test_bad_in_all_its_pairs_is_a_node_and_in_one_a_link(
    tried: tuple[str, ...], bad: tuple[str, ...], nodes: str, links: tuple[str, ...]
) -> None:
    found = acceptance.blame([tuple(one) for one in tried], [tuple(one) for one in bad])
    assert (found.nodes, found.links) == (tuple(nodes), tuple(map(tuple, links)))


def test_who_was_in_one_pair_alone_is_not_blamed_yet() -> None:
    found = acceptance.blame([("a", "b"), ("b", "c")], [("b", "c")])
    assert found.nodes == () and found.unsure == ("c",)


@given(some.integers(2, 9))
def test_the_circle_has_every_pair_once_and_nobody_twice_in_a_round(count: int) -> None:
    names = [f"n{index}" for index in range(count)]
    turns = rounds.every(names)
    flat = [one for turn in turns for one in turn]
    assert len(flat) == len(set(flat)) == count * (count - 1) // 2
    for turn in turns:
        assert len({name for one in turn for name in one}) == 2 * len(turn)


@given(some.integers(5, 33), some.randoms())
def test_two_rounds_give_every_node_two_partners_but_one_that_rests(count: int, chance: Any) -> None:
    names = [f"n{index}" for index in range(count)]
    first = rounds.neighbours(names)
    speeds = {name: chance.random() for one in first for name in one}
    second = rounds.mixed(names, speeds, first)
    assert not set(first) & set(second)
    met = {name: sum(name in one for one in (*first, *second)) for name in names}
    assert max(met.values()) <= 2 and sum(one < 2 for one in met.values()) <= 2 * (count % 2)
    assert min(met.values()) >= 1


def test_the_second_round_puts_the_slowest_with_the_fastest() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    speeds = {"a": 9.0, "b": 9.0, "c": 5.0, "d": 5.0, "e": 0.1, "f": 0.1}
    second = rounds.mixed(names, speeds, rounds.neighbours(names))
    partners = {name: (set(one) - {name}).pop() for one in second for name in one}
    assert partners["f"] == "a" and speeds[partners["e"]] > 1


def test_all_links_between_two_halves_are_tried() -> None:
    left, right = rounds.halves(("a", "b", "c", "d", "e"))
    turns = rounds.across(left, right)
    flat = {frozenset(one) for turn in turns for one in turn}
    assert flat == {frozenset((x, y)) for x in left for y in right}
    for turn in turns:
        assert len({name for one in turn for name in one}) == 2 * len(turn)


# -- what is slow ------------------------------------------------------------------------


def test_a_node_that_is_slow_with_everybody_is_named_with_its_figures() -> None:
    well = [pair(one, 0.8) for one in ("ac", "ad", "cd")]
    ill = [pair(one, 0.002) for one in ("ab", "bc", "bd")]
    (found,) = loud(examined(Deep(groups=(*well, *twice(*ill)))))
    assert (found.id, found.status, found.nodes) == ("run.straggler", "warn", ("b",))
    assert "a - b: 0.002 GB/s" in found.evidence and "without it: a - c: 0.8 GB/s" in found.evidence
    assert found.fix[0].startswith("on b: cat /sys/class/net/eth7/speed")


def test_what_was_slow_once_is_chance() -> None:
    ill = [pair(one, 0.002) for one in ("ab", "bc", "bd")]
    groups = (pair("ac", 0.8), *ill, *(replace(one, busbw=0.7) for one in ill))
    assert loud(examined(Deep(groups=groups))) == []
    assert loud(examined(Deep(groups=(pair("ac", 0.8), *ill)))) == [], "and what was tried only once"


def test_one_slow_link_is_a_link_and_its_losses_are_told() -> None:
    well = [pair(one, 0.8) for one in FULL if one != "bd"]
    slow = twice(pair("bd", 0.01))
    (found,) = loud(examined(Deep(groups=(*well, *slow))))
    assert (found.id, found.nodes) == ("net.linkspeed", ("b", "d"))
    assert any(step.startswith("on b: ip route get 10.0.0.4") for step in found.fix)
    (lossy,) = loud(examined(Deep(groups=(*well, *twice(pair("bd", 0.01, resent={"d": 0.07}))))))
    assert lossy.id == "net.loss" and "d sent 7.0% of its TCP segments again" in lossy.evidence


def test_over_gloo_nothing_absolute_is_claimed() -> None:
    """Busy CPUs: four times and more between pairs, and all of them faster than gigabit Ethernet."""
    uneven = [pair(one, figure) for one, figure in zip(FULL, (3.0, 0.1, 0.5, 2.0, 0.09, 0.2), strict=True)]
    assert loud(examined(Deep(groups=twice(*uneven)))) == []
    even = [pair(one, 0.0011) for one in FULL]  # a slow network, which is what it is
    assert loud(examined(Deep(groups=twice(*even)))) == []
    wires = dict.fromkeys(NAMES, 100)  # Mbit/s, and it is as fast as that
    mixed = [pair("ab", 3.0), *(pair(one, 0.008) for one in FULL[1:])]
    assert loud(examined(Deep(groups=twice(*mixed), wires=wires))) == []


def nccl(*groups: Group, **changes: Any) -> Deep:
    return Deep(backend="nccl", groups=groups, **changes)


def test_on_cards_a_link_is_held_against_what_such_links_give() -> None:
    wires = dict.fromkeys(NAMES, 25_000)
    low = [pair("ab", 1.1), *(pair(one, 2.3) for one in FULL[1:])]
    (found,) = loud(examined(nccl(*twice(*low), wires=wires), device="cuda"))
    assert found.nodes == ("a", "b") and "2 GB/s are usual on such a link" in found.cause
    assert loud(examined(nccl(*twice(*low), wires=dict.fromkeys(NAMES, 10_000)), device="cuda")) == []
    assert loud(examined(nccl(*low, wires=wires), device="cuda")) == [], "once is chance here too"


def test_a_few_per_cent_count_among_equals_only_and_where_figures_are_steady() -> None:
    wires = dict.fromkeys(NAMES, 10_000)
    low = [pair("ab", 0.94), *(pair(one, 1.05) for one in FULL[1:])]
    (found,) = loud(examined(nccl(*twice(*low), wires=wires, equal=True), device="cuda"))
    assert found.nodes == ("a", "b") and "median of all pairs" in found.cause
    assert loud(examined(nccl(*twice(*low), wires=wires), device="cuda")) == []
    shaky = [replace(one, spread=0.2) for one in low]
    assert loud(examined(nccl(*twice(*shaky), wires=wires, equal=True), device="cuda")) == []


def test_where_pairs_are_well_and_all_together_are_not_it_is_what_joins_them() -> None:
    pairs = [pair(one, 4.5) for one in FULL]
    whole = Group("all", NAMES, 4, 1.0, seconds=1.0, bytes=1 << 30)
    (found,) = loud(examined(nccl(*pairs, whole, whole), device="cuda"))
    assert found.id == "net.linkspeed" and found.nodes == NAMES and "switch" in found.cause
    assert loud(examined(nccl(*pairs, whole), device="cuda")) == []


def test_cards_of_one_node_are_held_against_their_like() -> None:
    cards = tuple(Card("a", slot, "NVIDIA H100 80GB HBM3", 7e14) for slot in range(8))
    node = Group("node", ("a",), 8, 120.0, seconds=0.01, bytes=1 << 30)
    (found,) = loud(examined(nccl(node, node, cards=cards), device="cuda"))
    assert (found.id, found.nodes) == ("run.straggler", ("a",)) and "360 GB/s" in found.summary
    assert loud(examined(nccl(replace(node, busbw=420.0), cards=cards), device="cuda")) == []
    unknown = tuple(replace(card, name="Some Card") for card in cards)
    assert loud(examined(nccl(node, node, cards=unknown), device="cuda")) == []


@pytest.mark.parametrize(
    ("speed", "expected"), [(None, None), (100, None), (1000, 0.09), (10_000, 0.9), (20_000, 0.9), (400_000, None)]
)
def test_the_table_claims_nothing_of_links_that_it_does_not_know(
    speed: int | None, expected: float | None
) -> None:
    assert acceptance.between(speed) == expected


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert facts.busbw(1e9, 1.0, 2) == 1.0 and facts.busbw(1e9, 1.0, 8) == pytest.approx(1.75)
    assert acceptance.sharing(1.0, 16) == pytest.approx(9.6, abs=0.1)


# -- what does not come back ---------------------------------------------------------------


def test_two_that_never_meet_are_a_link_with_a_rule_for_each_side() -> None:
    groups = (*(pair(one, 0.8) for one in FULL if one != "bd"), *twice(pair("bd", None)))
    (found,) = loud(examined(Deep(groups=groups)))
    assert (found.id, found.status, found.nodes) == ("net.high-ports", "fail", ("b", "d"))
    assert found.fix[0] == "on b: sudo iptables -I INPUT -p tcp -s 10.0.0.4 -j ACCEPT"
    assert found.fix[1].startswith("or on b, where nft keeps the rules: sudo nft list ruleset |")
    assert found.fix[2] == "on d: sudo iptables -I INPUT -p tcp -s 10.0.0.2 -j ACCEPT"
    assert "gone after a reboot" in found.fix[4] and len(found.fix) == 5
    assert "Connection timed out" in found.evidence


def test_a_node_that_meets_nobody_is_told_what_its_own_firewall_understands() -> None:
    groups = (*(pair(one, 0.8) for one in ("ac", "ad", "cd")), *(pair(one, None) for one in ("ab", "bc", "bd")))
    (found,) = loud(examined(Deep(groups=groups), firewall=Firewall(ufw=True, firewalld=None, chains=None)))
    assert found.nodes == ("b",) and found.fix[0].startswith(
        "on b: sudo ufw prepend allow from 10.0.0.1 && sudo ufw"
    )
    (found,) = loud(examined(Deep(groups=groups), firewall=Firewall(ufw=None, firewalld=True, chains=None)))
    assert "--add-source=10.0.0.3" in found.fix[0] and found.fix[0].endswith("sudo firewall-cmd --reload")


def test_connected_and_no_data_is_the_size_of_packets() -> None:
    groups = (pair("ab", None, stage="first"), *(pair(one, 0.8) for one in FULL[1:]))
    (found,) = loud(examined(Deep(groups=groups)))
    assert (found.id, found.nodes) == ("net.mtu", ("a", "b")) and "mtu 1400" in found.fix[0]
    (found,) = loud(examined(replace(Deep(groups=groups), backend="nccl"), device="cuda"))
    assert found.id == "net.high-ports", "NCCL connects only then"


def test_what_ended_with_an_error_is_not_called_a_firewall() -> None:
    words = "a: RuntimeError: NCCL error: unhandled system error"
    groups = (*(pair(one, 0.8) for one in FULL[1:]), pair("ab", None, hung=False, stage="first", words=words))
    seen = examined(Deep(groups=groups))
    assert loud(seen) == []
    told = [one for one in report.judge(seen, layer.CHECKS) if one.status == "unknown"]
    assert [(one.id, one.nodes, one.evidence.splitlines()[1]) for one in told] == [
        ("run.straggler", ("a", "b"), words)
    ]


def test_all_that_hang_though_pairs_do_not_are_told_and_once_is_chance() -> None:
    hung = Group("all", NAMES, 4, hung=True, stage="group")
    pairs = tuple(pair(one, 0.8) for one in FULL)
    (found,) = loud(examined(Deep(groups=(*pairs, hung, hung))))
    assert found.id == "net.high-ports" and found.nodes == NAMES
    assert loud(examined(Deep(groups=(*pairs, hung)))) == []


# -- cards ---------------------------------------------------------------------------------


def test_a_card_that_is_half_as_fast_as_its_equals_is_named() -> None:
    cards = tuple(Card(name, 0, "X", 1e14) for name in "acd") + (Card("b", 0, "X", 0.4e14),)
    (found,) = loud(examined(nccl(cards=cards), device="cuda"))
    assert (found.id, found.nodes) == ("run.straggler", ("b",)) and "40.0 TFLOP/s" in found.summary
    other = tuple(replace(card, name=card.node) for card in cards)
    assert loud(examined(nccl(cards=other), device="cuda")) == [], "cards of another kind are no measure"
    assert loud(examined(Deep(cards=cards))) == [], "nor are the CPUs of busy nodes"


@pytest.mark.parametrize(
    ("samples", "bound"),
    [
        (((200.0, 400.0, 99.0),) * 4, True),
        (((380.0, 400.0, 99.0),) * 4, False),
        (((200.0, 400.0, 60.0),) * 4, False),  # not busy: nothing was asked of it
        (((200.0, 400.0, 99.0),) * 2, False),  # too few to be believed
        (((380.0, 400.0, 99.0),) * 3 + ((90.0, 400.0, 99.0),), False),
        ((), False),
    ],
)
def test_busy_at_half_its_power_is_host_bound(samples: Any, bound: bool) -> None:
    card = Card("b", 3, "X", 1e14, samples=samples, launch=4e-5)
    found = loud(examined(nccl(cards=(card,)), device="cuda"))
    assert [(one.id, one.nodes) for one in found] == ([("run.host-bound", ("b",))] if bound else [])
    assert not bound or ("200 W of 400 W" in found[0].summary and "40 us" in found[0].evidence)


SMI_SLOW = "nvidia-smi gave no answer within 3 s while the card worked"


def test_a_healthy_h200_of_a_slow_host_is_told_its_rate_and_nothing_else() -> None:
    """Measured on one in a VM: 784 TFLOP/s, 14.9 us a kernel, and seconds at its power limit."""
    whole = Card("b", 0, "NVIDIA H200", 784e12, samples=((690.0, 700.0, 100.0),) * 5, launch=1.489e-5)
    assert loud(examined(nccl(cards=(whole,)), device="cuda")) == []
    assert list(measured._cards([whole])) == ["1 slot (NVIDIA H200) at work: 784 TFLOP/s"]
    others = tuple(replace(whole, node=name) for name in "ac")
    assert loud(examined(nccl(cards=(*others, whole)), device="cuda")) == []
    silent = replace(whole, samples=(), unasked=SMI_SLOW)
    found = report.judge(examined(nccl(cards=(silent,)), device="cuda"), layer.CHECKS)
    told = [one for one in found if one.id == "run.host-bound" and "b" in one.nodes]
    assert [one.status for one in told] == ["unknown"] and SMI_SLOW in told[0].summary


def test_cards_that_meet_only_without_direct_copies() -> None:
    (found,) = loud(examined(nccl(direct=(Direct("c", with_direct=False, without=True),)), device="cuda"))
    assert (found.id, found.status, found.nodes) == ("gpu.p2p", "fail", ("c",))
    assert any('NCCL_P2P_DISABLE: "1"' in step for step in found.fix)
    for direct in (Direct("c", False, False), Direct("c", True, True)):
        assert loud(examined(nccl(direct=(direct,)), device="cuda")) == []


# -- the checkpoint --------------------------------------------------------------------------

PLACE = "/mnt/out/.clusterft/deep-1"
THERE = ("latest", "proof/0.pt", "proof/1.pt")


def saved(*parts: Saving) -> list[Finding]:
    """What is found of nodes a to c of which these are parts."""
    whole = {name: Saving(name, "done", ok=True, there=THERE) for name in "abc"}
    whole |= {one.node: one for one in parts}
    return loud(examined(Deep(savings=whole, directory=PLACE), "abc"))


def test_a_checkpoint_that_came_back_everywhere_is_well() -> None:
    assert saved() == []


def test_the_node_that_sees_other_files_is_the_odd_one() -> None:
    parts = [Saving(name, "seen", missing=("proof/1.pt",), there=THERE[:2]) for name in "ac"]
    (found,) = saved(*parts, Saving("b", "seen", missing=("latest", "proof/0.pt"), there=("proof/1.pt",)))
    assert (found.id, found.status, found.nodes) == ("fs.not-shared", "fail", ("b",))
    assert (
        "/mnt/out is another directory here than on a, c" in found.summary and "missing: latest" in found.evidence
    )
    assert found.fix[1].startswith("on b: mount the same at /mnt/out")


@pytest.mark.parametrize(
    ("stage", "number", "free", "identity"),
    [
        ("reach", 2, None, "fs.not-shared"),
        ("save", 2, None, "ckpt.race"),
        ("save", 17, None, "ckpt.race"),
        ("save", 13, None, "fs.squash"),
        ("save", 28, None, "os.disk-full"),
        ("save", None, 4096.0, "os.disk-full"),
        ("save", 30, None, "os.ro-fs"),
        ("see", 116, None, "fs.stale"),
        ("load", 37, None, "fs.lock"),
        ("load", 2, None, "ckpt.latest"),
    ],
)
def test_what_the_filesystem_answers_names_the_cause(
    stage: str, number: int | None, free: float | None, identity: str
) -> None:
    (found,) = saved(Saving("b", stage, errno=number, free=free, words="OSError: its own words"))
    assert (found.id, found.status, found.nodes) == (identity, "fail", ("b",))
    assert "its own words" in found.evidence and any(step.startswith("on b: ") for step in found.fix)


def test_deepspeed_that_cannot_be_tried_is_unknown_and_nobodys_fault() -> None:
    broken = {name: Saving(name, "start", words="ImportError: no deepspeed") for name in NAMES}
    seen = examined(Deep(savings=broken, directory=PLACE))
    assert loud(seen) == []
    (told,) = [one for one in report.judge(seen, layer.CHECKS) if one.id == "ckpt.latest"]
    assert told.status == "unknown" and "no deepspeed" in told.evidence


def test_other_weights_and_a_share_that_hangs() -> None:
    (found,) = saved(Saving("b", "done", words="other weights came back"))
    assert (found.id, found.nodes) == ("ckpt.latest", ("b",))
    (found,) = saved(Saving("c", "save", late=True, words="no end in time, at stage save"))
    assert (found.id, found.nodes) == ("fs.hung", ("c",))


# -- what is remembered ---------------------------------------------------------------------


def test_what_has_clearly_fallen_is_told_with_both_figures_and_not_remembered() -> None:
    before = {facts.key("pair", "ab", "nccl"): (2.3, 2.2, 2.4)}
    deep = nccl(*twice(pair("ab", 1.2)), before=before)
    (found,) = loud(examined(deep, "ab", device="cuda"))
    assert (found.id, found.status) == ("net.linkspeed", "warn")
    assert found.evidence == "a - b: now 1.2, 1.2 GB/s, before 2.3, 2.2, 2.4 GB/s"
    assert "baseline.json" in found.fix[-1]
    assert baseline.merged(before, deep) == {facts.key("pair", "ab", "nccl"): [2.3, 2.2, 2.4]}
    assert loud(examined(replace(deep, groups=(pair("ab", 1.2),)), "ab", device="cuda")) == [], "once is chance"
    better = nccl(pair("ab", 1.2), pair("ab", 2.1), before=before)
    assert loud(examined(better, "ab", device="cuda")) == []


def test_over_gloo_only_a_fall_below_gigabit_counts() -> None:
    before = {facts.key("pair", "ab", "gloo"): (3.0,)}
    assert loud(examined(Deep(groups=twice(pair("ab", 0.3)), before=before), "ab")) == []
    assert len(loud(examined(Deep(groups=twice(pair("ab", 0.03)), before=before), "ab"))) == 1


def test_the_newest_few_are_kept_and_what_is_slow_is_not(tmp_path: Path) -> None:
    where = ClusterPlaces(tmp_path, "rack")
    assert baseline.load(where) == {}
    for figure in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        baseline.remember(where, Deep(groups=(pair("ab", figure), pair("ab", figure / 2))))
    assert baseline.load(where) == {"gloo pair a b": (0.6, 0.7, 0.8, 0.9, 1.0)}
    slow = Deep(groups=(pair("ac", 0.8), *twice(pair("bc", 0.001))))
    assert "gloo pair b c" not in baseline.merged({}, slow)
    for damaged in ("{", json.dumps({"schema": 2, "figures": {}})):
        where.baseline.write_text(damaged)
        with pytest.raises(UsageError, match="cannot be read"):
            baseline.load(where)
        assert where.baseline.read_text() == damaged, "what this version did not write is not written over"


# -- reading ----------------------------------------------------------------------------------


def done(node: str, slot: int, **changes: Any) -> Said:
    """A rank that came to its end."""
    body = {"stage": "done", "bytes": 1 << 20, "seconds": 0.01, "spread": 0.1, "segments": [1000, 20], **changes}
    return Said(node, slot, ({"stage": "store"}, body), 0)


def test_the_slowest_rank_counts_and_what_was_sent_again_is_a_share() -> None:
    found = facts.group("pair", ("a", "b"), [done("a", 0), done("b", 0, seconds=0.02)])
    assert found.busbw == pytest.approx((1 << 20) / 0.02 / 1e9) and found.resent == {"a": 0.02, "b": 0.02}
    assert found.bytes == 1 << 20 and not found.hung


@pytest.mark.parametrize(
    ("said", "hung", "stage"),
    [
        (Said("b", 0, ({"stage": "group"},), -9, late=True), True, "group"),
        (Said("b", 0, ({"stage": "group"}, {"error": "RuntimeError: Connection refused"}), 70), True, "group"),
        (Said("b", 0, ({"stage": "first"}, {"error": "RuntimeError: invalid"}), 70), False, "first"),
        (Said("b", 0, ({"stage": "first"},), -9, words="Killed"), False, "first"),
        (Said("b", 0, words="it ended"), False, "start"),
    ],
)
def test_why_a_group_has_no_figure(said: Said, hung: bool, stage: str) -> None:
    found = facts.group("pair", ("a", "b"), [done("a", 0), said])
    assert (found.busbw, found.hung, found.stage) == (None, hung, stage) and "b: " in found.words


JUNK = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=8),
    lambda one: some.lists(one, max_size=3) | some.dictionaries(some.text(max_size=4), one, max_size=3),
    max_leaves=6,
)
KEYS = some.sampled_from(
    ("stage", "bytes", "seconds", "spread", "segments", "error", "errno", "missing", "there", "same", "samples")
)


@given(some.lists(some.dictionaries(KEYS, JUNK | some.just("done") | some.just("seen"), max_size=6), max_size=4))
def test_no_answer_breaks_a_parser(said: list[dict[str, Any]]) -> None:
    one = Said("a", 0, tuple(said), 0)
    kind: Kind = "node"
    facts.group(kind, ("a",), [one])
    facts.card(one)
    facts.saving(one)


def test_a_run_is_seen_by_its_containers_or_its_supervisor() -> None:
    assert occupied.read("") == ""
    assert occupied.read("run sdxl-3f2a\n") == "sdxl-3f2a"
    line = "process /usr/bin/python -P -m clusterft_trainer.supervisor run /root/.clusterft/r  \n"
    assert occupied.read(line).startswith("/usr/bin/python -P -m")
    assert occupied.read("process grep something\nrun \n") == ""


def test_the_table_has_every_figure_of_few_and_the_slowest_of_many() -> None:
    text = "\n".join(measured.lines(Deep(groups=tuple(pair(one, 0.8) for one in FULL))))
    assert all(f"{one[0]}-{one[1]} 0.8" in text for one in FULL)
    many = tuple(Group("pair", (f"n{i}", f"m{i}"), 2, 0.1 * (i + 1)) for i in range(20))
    text = "\n".join(measured.lines(Deep(groups=many)))
    assert "n0-m0 0.1" in text and "15 more, up to 2" in text
    assert list(measured.lines(Deep())) == []


# -- what is tried ------------------------------------------------------------------------------


class Cluster:
    """Nodes on which collectives take as long as they are told to, in place of a Bench."""

    gone: dict[str, str] = {}

    def __init__(self, dead: Iterable[tuple[str, str]] = (), slow: Iterable[str] = ()) -> None:
        self.dead = {frozenset(one) for one in dead}
        self.slow = set(slow)
        self.rounds: list[tuple[tuple[str, ...], ...]] = []

    def run(self, tasks: Any) -> list[tuple[Said, ...]]:
        """The outcome of each."""
        self.rounds.append(tuple(tuple(seat.node for seat in task.seats) for task in tasks))
        busy = [name for task in tasks for name in {seat.node for seat in task.seats}]
        assert len(busy) == len(set(busy)), "no node is in two groups at once"
        return [tuple(self._one(task, seat) for seat in task.seats) for task in tasks]

    def _one(self, task: Any, seat: Any) -> Said:
        names = {one.node for one in task.seats}
        if task.kind == "collective" and any(link <= names for link in self.dead):
            return Said(seat.node, seat.slot, ({"stage": "group"},), -9, late=True)
        seconds = 10.0 if names & self.slow else 0.01
        body = {"stage": "done", "bytes": 1 << 20, "seconds": seconds, "spread": 0.01, "same": True, "flops": 1e9}
        return Said(seat.node, seat.slot, (body,), 0)


def tried(bench: Cluster, count: int) -> tuple[list[Finding], Deep]:
    """What is found of so many nodes, and what was done for it."""
    names = tuple(f"n{index}" for index in range(count))
    cluster = scenes.cluster("".join(f"{name} slots=1\n" for name in names))
    survey = scenes.survey(cluster, *(scenes.facts(name) for name in names))
    place = site.Site(
        Wanted("cpu", contained=False),
        cluster.active,
        {name: Address("10.0.0.1", "eth7") for name in names},
        survey,
    )
    found = deep._Course(bench, place, lambda words: None, {}).go()  # type: ignore[arg-type]
    return loud(examined(found, names)), found


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13, 32, 33])
def test_healthy_nodes_are_tried_in_few_rounds_and_nothing_is_found(count: int) -> None:
    bench = Cluster()
    found, done = tried(bench, count)
    assert found == [] and len(bench.rounds) <= 6
    assert all(any(f"n{index}" in one.nodes for one in done.groups) for index in range(count))


@given(some.integers(3, 20), some.data())
def test_a_slow_node_is_found_wherever_it_is(count: int, chance: Any) -> None:
    name = f"n{chance.draw(some.integers(0, count - 1))}"
    bench = Cluster(slow=[name])
    found, _ = tried(bench, count)
    assert [(one.id, one.nodes) for one in found] == [("run.straggler", (name,))]
    assert len(bench.rounds) <= 12


@settings(deadline=None)
@given(some.integers(3, 20), some.data())
def test_a_node_that_meets_nobody_is_found(count: int, chance: Any) -> None:
    lost = chance.draw(some.integers(0, count - 1))
    bench = Cluster(dead=[(f"n{lost}", f"n{index}") for index in range(count) if index != lost])
    found, _ = tried(bench, count)
    assert [(one.id, one.nodes) for one in found] == [("net.high-ports", (f"n{lost}",))]


@given(some.integers(2, 20), some.data())
def test_a_dead_link_is_found_also_where_no_pair_has_tried_it(count: int, chance: Any) -> None:
    ends = chance.draw(some.lists(some.integers(0, count - 1), min_size=2, max_size=2, unique=True).map(sorted))
    link = tuple(f"n{end}" for end in ends)
    bench = Cluster(dead=[link])  # type: ignore[list-item]
    found, _ = tried(bench, count)
    assert [(one.id, one.nodes) for one in found] == [("net.high-ports", link)]
    # Rounds of pairs, both tries of all, halves, and the links between the last two halves.
    assert len(bench.rounds) <= 30
