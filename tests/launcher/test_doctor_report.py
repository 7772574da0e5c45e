"""Proves how doctor judges: what is moot, what is unknown, one verdict, and a screen that agrees with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes

from clusterft.checks import Unreached, catalogue, report, suite
from clusterft.checks.check import Check, Entry
from clusterft.checks.examination import Absence, Examination, Wanted
from clusterft.checks.occupants import Occupant
from clusterft.checks.report import Report
from clusterft.checks.work import saved
from clusterft.facts.desk import Desk
from clusterft.findings import Finding
from clusterft.ui import doctor as view

THREE = scenes.cluster("a slots=2\nb slots=2\nc slots=2\n")
NAMES = ("a", "b", "c")


def seen(**changes: Any) -> Examination:
    """Three healthy nodes, trained on without cards or containers."""
    facts = scenes.survey(THREE, *(scenes.facts(name) for name in NAMES))
    return replace(Examination(Wanted("cpu", contained=False), facts), **changes)


def saying(*found: Finding, ids: tuple[str, ...] = (), **settings: Any) -> Check:
    """A check that finds just this."""
    return Check(ids or tuple(dict.fromkeys(one.id for one in found)), lambda _: found, **settings)


def told(findings: Iterable[Finding], identity: str) -> dict[str, str]:
    """Node -> what is said of it under an id."""
    return {node: one.status for one in findings if one.id == identity for node in one.nodes}


def the_report(findings: tuple[Finding, ...]) -> Report:
    """As `doctor` makes it."""
    return Report("rack", NAMES, 6, report.verdict(findings), findings, 3.2)


def test_nodes_that_a_check_does_not_name_are_well() -> None:
    found = report.judge(seen(), [saying(Finding("x.one", "fail", ("b",), "broken"))])
    assert told(found, "x.one") == {"a": "ok", "b": "fail", "c": "ok"}


def test_behind_a_node_that_cannot_be_asked_all_is_skipped_and_never_well() -> None:
    lost = Unreached("b", "ssh.timeout", "timed out after 8 s")
    survey = replace(seen().survey, unreached=(lost,))
    absent = {"facts": {"b": Absence("ssh.timeout")}}
    found = report.judge(seen(survey=survey, absent=absent), suite.CHECKS)
    assert told(found, "ssh.timeout")["b"] == "fail"
    for one in found:
        if not one.id.startswith("ssh.") and "b" in one.nodes:
            assert (one.status, one.summary) == ("skipped", "(ssh.timeout)"), one


def test_what_failed_first_makes_moot_what_comes_after_it_on_that_node_alone() -> None:
    first = saying(Finding("fs.hung", "fail", ("a",), "does not answer"))
    later = saying(
        Finding("fs.squash", "fail", ("a",), "not writable"),
        Finding("fs.squash", "fail", ("c",), "no"),
        after=("fs.",),
    )
    found = report.judge(seen(), [first, later])
    assert told(found, "fs.squash") == {"a": "skipped", "b": "ok", "c": "fail"}
    assert next(one for one in found if one.id == "fs.squash" and "a" in one.nodes).summary == "(fs.hung)"


def test_a_finding_about_a_pair_stays_while_one_of_both_is_in() -> None:
    first = saying(Finding("dk.down", "fail", ("a",), "down"))
    pair = saying(Finding("net.mtu", "fail", ("a", "b"), "large packets are lost"), after=("dk.down",))
    assert told(report.judge(seen(), [first, pair]), "net.mtu")["b"] == "fail"


def test_what_could_not_be_had_is_unknown_with_its_reason() -> None:
    absent = {"share": {"c": Absence("", "it did not end in time")}}
    found = report.judge(seen(absent=absent), [saying(ids=("x.share",), reads=("share",))])
    assert told(found, "x.share") == {"a": "ok", "b": "ok", "c": "unknown"}
    assert "did not end in time" in next(one.summary for one in found if one.status == "unknown")


def test_what_was_not_asked_for_is_skipped_once_with_the_option_that_asks() -> None:
    found = report.judge(seen(unasked={"deep": "only with --deep"}), [saying(ids=("x.deep",), reads=("deep",))])
    assert [(one.status, one.nodes, one.summary) for one in found] == [("skipped", (), "only with --deep")]


def test_equal_findings_are_one_and_keep_each_nodes_evidence() -> None:
    each = tuple(Finding("x.disk", "fail", (name,), "full", evidence=f"{name} 100 %") for name in NAMES)
    found = report.judge(seen(), [saying(*each)])
    assert len(found) == 1 and found[0].nodes == NAMES and "b: b 100 %" in found[0].evidence


def test_two_checks_of_one_id_do_not_contradict_each_other() -> None:
    bad, good = saying(Finding("x.disk", "fail", ("a",), "full")), saying(ids=("x.disk",))
    for order in ([bad, good], [good, bad]):
        assert told(report.judge(seen(), order), "x.disk") == {"a": "fail", "b": "ok", "c": "ok"}
    missing = saying(ids=("x.disk",), reads=("share",))
    absent = {"share": {"b": Absence("", "no answer")}}
    assert told(report.judge(seen(absent=absent), [good, missing]), "x.disk")["b"] == "unknown"


def test_a_check_that_breaks_costs_its_own_ids_and_is_called_a_bug() -> None:
    def broken(_: Examination) -> Iterator[Finding]:
        yield Finding("x.one", "fail", ("a",), "half said")
        raise KeyError("gone")

    found = report.judge(seen(), [Check(("x.one",), broken), saying(Finding("x.two", "fail", ("a",), "bad"))])
    assert told(found, "x.one") == dict.fromkeys(NAMES, "unknown") and told(found, "x.two")["a"] == "fail"
    assert report.broke(found) and "KeyError: 'gone'" in next(one.evidence for one in found if one.id == "x.one")


def test_what_several_checks_read_is_worked_out_once_of_each_examination() -> None:
    asked: list[Examination] = []

    def count(of: Examination) -> int:
        asked.append(of)
        return len(of.nodes)

    one = seen()
    other = replace(one, desk=Desk())
    assert one.once(count) == one.once(count) == other.once(count) == 3
    assert [id(of) for of in asked] == [id(one), id(other)]


def test_cards_and_engines_are_no_question_where_training_uses_none() -> None:
    cards, engines = saying(ids=("x.cards",), cuda=True), saying(ids=("x.engine",), contained=True)
    assert report.judge(seen(), [cards, engines]) == ()
    both = report.judge(seen(wanted=Wanted("cuda", contained=True)), [cards, engines])
    assert {one.id for one in both} == {"x.cards", "x.engine"}


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (("ok", "skipped"), "ok"),
        (("ok", "unknown"), "ok"),
        (("warn", "unknown"), "warn"),
        (("fail", "warn"), "fail"),
        ((), "ok"),
    ],
)
def test_one_verdict(statuses: tuple[Any, ...], verdict: str) -> None:
    assert (
        report.verdict(Finding("x.any", status, () if status == "skipped" else ("a",), "") for status in statuses)
        == verdict
    )


def test_where_something_vital_cannot_be_read_nothing_good_is_said() -> None:
    vital = [entry.id for entry in catalogue.ALL if entry.vital]
    assert vital
    assert report.verdict([Finding(vital[0], "unknown", ("a",), "")]) == "unknown"


def test_what_was_moot_for_a_reason_that_is_not_told_is_not_called_well() -> None:
    first = saying(Finding("fs.hung", "fail", ("a",), "does not answer"))
    found = report.judge(seen(), [first, saying(ids=("fs.lock",), after=("fs.hung",))], frozenset({"fs.lock"}))
    assert report.verdict(found) == "unknown"
    assert (
        report.verdict(report.judge(seen(unasked={"deep": "x"}), [saying(ids=("x.d",), reads=("deep",))])) == "ok"
    )


def test_what_was_left_out_on_purpose_is_no_reason_to_doubt() -> None:
    meant = saying(Finding("fs.slow", "skipped", ("c",), "measured on a b alone"))
    assert report.verdict(report.judge(seen(), [meant])) == "ok"


def test_what_no_job_says_is_not_called_well() -> None:
    found = report.judge(seen(unasked={"job": "no job is given"}), suite.CHECKS)
    for identity in ("job.batch", "data.too-small", "nccl.ifname"):
        assert [(one.status, one.nodes) for one in found if one.id == identity] == [("skipped", ())], identity


def test_what_deep_and_the_box_may_say_the_catalogue_tells() -> None:
    for identity in (*saved._BY_ERRNO.values(), "net.mtu", "fs.not-shared"):
        assert "deep" in entry(identity).found, identity
    for identity in ("os.disk-full", "os.memlock"):
        assert "probe" in entry(identity).found, identity
    assert "facts" in entry("run.host-bound").found


def test_only_some_ids_are_told_and_the_others_still_make_them_moot() -> None:
    first = saying(Finding("fs.hung", "fail", ("a",), "does not answer"))
    later = saying(ids=("fs.lock",), after=("fs.hung",))
    found = report.judge(seen(), [first, later], frozenset({"fs.lock"}))
    assert {one.id for one in found} == {"fs.lock"} and told(found, "fs.lock")["a"] == "skipped"


def test_the_screen_never_says_ready_while_something_blocks() -> None:
    well = the_report(report.judge(seen(), [saying(ids=("x.one",))]))
    ill = the_report(report.judge(seen(), [saying(Finding("x.one", "fail", ("b",), "broken", fix=("mend it",)))]))
    assert any("Ready to train" in line for line in view.lines(well))
    shown = "\n".join(view.lines(ill))
    assert "Ready" not in shown and "1 blocks" in shown and "mend it" in shown and re.search(r"x\.one +b ", shown)


def last(**changes: Any) -> str:
    """What the screen ends with, of a cluster that is well but for this."""
    of = the_report(report.judge(seen(**changes.pop("seen", {})), [saying(ids=("x.one", "x.two"))]))
    return list(view.lines(replace(of, **changes)))[-1]


def test_nodes_that_a_run_holds_are_healthy_and_not_ready() -> None:
    run = Occupant("moon-1", NAMES)
    assert last() == "Ready to train. 2 checks."
    assert last(busy=(run,)) == "Healthy; busy with run moon-1. 2 checks."
    assert last(busy=(replace(run, nodes=("a", "c")),)) == "Healthy; busy with run moon-1 on a c. 2 checks."
    shown = "\n".join(view.lines(replace(the_report(()), busy=(run,))))
    assert "run moon-1 holds a b c" in shown
    assert "clusterft attach moon-1" in shown and "clusterft stop moon-1" in shown
    foreign = "\n".join(view.lines(replace(the_report(()), busy=(Occupant("sun-2", ("a",), "other"),))))
    assert "run sun-2 of cluster other holds a" in foreign and "clusterft stop" not in foreign
    ill = last(busy=(run,), findings=(Finding("x.one", "warn", ("b",), "bad"),))
    assert ill.startswith("0 block, 1 warns"), "what is wrong comes first"


def test_whoever_left_something_out_does_not_call_it_ready(tmp_path: Path) -> None:
    quick = dict.fromkeys(("links", "share", "box", "deep"), "not with --quick")
    job = scenes.job(scenes.JOB, tmp_path)
    known = seen(wanted=Wanted("cpu", contained=False, job=job))
    assert report.untried(known, None) == ()
    assert report.untried(replace(known, unasked={"deep": "only with --deep"}), None) == ()
    assert report.untried(replace(known, unasked=quick), None) == ("the active probes were left out (--quick)",)
    assert report.untried(seen(), None) == ("no job was looked at (--job job.yaml)",)
    assert report.untried(known, frozenset({"os.shm"})) == ("all but what was asked for was left out (--only)",)
    late = (Finding("run.rehearsal", "unknown", ("a",), "late"), Finding("dk.box", "unknown", ("a", "b"), "late"))
    assert report.untried(known, None, late) == ("run.rehearsal, dk.box could not be tried on a, b",)
    assert report.untried(known, None, (Finding("os.oom", "unknown", ("a",), "no rights"),)) == ()
    both = report.untried(seen(unasked=quick), None)
    words = "the active probes were left out (--quick), and no job was looked at (--job job.yaml)"
    assert last(untried=both) == f"Nothing wrong found; {words}. 2 checks."


def test_the_counts_of_the_last_line_are_those_of_the_lines_above() -> None:
    checks = [
        saying(ids=("x.one", "x.two"), reads=("facts",)),
        saying(ids=("x.two", "x.three"), reads=("links",)),  # of x.two, one look was left out
        saying(ids=("x.three",), reads=("deep",)),  # for another reason, and it is one check
    ]
    left = {"links": "not with --quick", "deep": "only with --deep"}
    shown = list(view.lines(the_report(report.judge(seen(unasked=left), checks))))
    assert shown[-1].endswith(". 1 check, 2 skipped.")
    assert [line.split()[1:3] for line in shown if line.startswith("·")] == [["2", "checks"]]


def test_a_layer_is_headed_once() -> None:
    heads = [line for line in view.catalogue() if not line.startswith(" ")]
    assert len(heads) == len(set(heads)) == len({one.layer for one in catalogue.ALL})


def test_what_a_node_says_cannot_move_the_terminals_cursor() -> None:
    evil = "\x1b]0;owned\x07pid 7\x1b[2K\rok\x9b1A\u202e"
    one = Finding("x.one", "fail", ("b",), evil, evidence=f"{evil}\nsecond", cause=evil, fix=(evil,))
    shown = "\n".join(view.lines(the_report((one,)))) + repr(one.to_dict())
    assert "pid 7ok1A" in shown and "second" in shown
    assert not any(sign in shown for sign in ("\x1b", "\\x1b", "\r", "\\r", "\x07", "\x9b", "\u202e", "owned"))


def test_the_odd_ones_of_many_nodes_are_named() -> None:
    whole = tuple(f"n{index}" for index in range(16))
    assert view.names(whole, whole) == "all 16 nodes"
    assert view.names(whole[:15], whole) == "15 of 16 nodes, not n15"
    assert view.names(whole[:2], whole) == "n0 n1"


def test_many_skipped_checks_of_a_dead_node_are_one_line() -> None:
    quiet = [Finding(f"x.{index}", "skipped", ("b",), "(ssh.timeout)") for index in range(40)]
    shown = list(view.lines(the_report(tuple(quiet))))
    assert sum("ssh.timeout" in line for line in shown) == 1 and any("40 checks" in line for line in shown)


def _catalogued() -> list[str]:
    return [entry.id for entry in catalogue.ALL]


def test_every_id_is_told_of_once_and_in_full() -> None:
    assert len(_catalogued()) == len(set(_catalogued()))
    for one in catalogue.ALL:
        assert one.title and one.symptom and one.found and (one.how or one.why_not), one.id
        assert one.mends or "never" in one.found, one.id
        assert not one.title.endswith("."), one.id


def test_every_id_that_a_check_answers_for_is_in_the_catalogue() -> None:
    known = set(_catalogued())
    assert {identity for check in suite.CHECKS for identity in check.ids} <= known


def test_what_the_catalogue_promises_to_look_for_some_check_looks_for() -> None:
    asked = {identity for check in suite.CHECKS for identity in check.ids}
    idle = [one.id for one in catalogue.ALL if {"facts", "probe", "deep"} & set(one.found) and one.id not in asked]
    assert idle == []


def test_every_id_that_the_code_says_anywhere_is_in_the_catalogue() -> None:
    known = set(_catalogued())
    said: set[str] = set()
    prefixes = "ctl|ssh|os|dk|gpu|net|nccl|rdzv|fs|data|ckpt|job|run"
    pattern = re.compile(
        rf'(?:Finding|Found|Unreachable|NoEngine|Unreached)\(\s*(?:id=)?"((?:{prefixes})\.[a-z0-9-]+)"'
    )
    for folder in (scenes.ROOT / "launcher", scenes.ROOT / "trainer"):
        for path in sorted(Path(folder).rglob("*.py")):
            said |= set(pattern.findall(path.read_text(encoding="utf-8")))
    assert said and said - known == set()


def test_every_row_of_the_failure_catalogue_is_there() -> None:
    assert ROWS - set(_catalogued()) == set()


def entry(identity: str) -> Entry:
    """One that must be there."""
    found = catalogue.entry(identity)
    assert found is not None
    return found


def test_explain_tells_all_of_an_entry() -> None:
    one = entry("ssh.timeout")
    shown = "\n".join(view.explained(one))
    assert one.title in shown and one.symptom in shown and all(step in shown for step in one.mends)


ROWS = frozenset(
    """
    ctl.same-host-twice ctl.same-hostname ctl.stale-mux ctl.sighup
    ssh.dns ssh.refused ssh.timeout ssh.no-route ssh.hostkey-changed ssh.hostkey-unknown ssh.auth ssh.key-perms
    ssh.maxstartups ssh.maxsessions ssh.kex-hang ssh.noisy-shell
    os.disk-full os.inodes os.clock os.removeipc os.shm os.oom os.ro-fs os.hung-task os.memlock os.stack
    os.localhost-name os.portrange os.conntrack os.rp-filter os.suspend os.governor os.auto-upgrade
    dk.down dk.perm dk.nogpu dk.runtime dk.snap dk.ratelimit dk.x509 dk.image-drift dk.subnet dk.nvml-lost
    dk.early-mount dk.leftover
    gpu.mismatch gpu.old-driver gpu.arch gpu.fabric gpu.count gpu.mixed gpu.xid gpu.ecc gpu.busy gpu.display
    gpu.power-limit gpu.bf16 gpu.throttle gpu.pcie gpu.p2p
    net.master-port net.high-ports net.mtu net.loss net.linkspeed net.dup-ip net.wrong-nic net.public-addr
    net.dup-route
    nccl.bridge nccl.ifname nccl.version nccl.net-mix nccl.ib-timeout rdzv.inuse rdzv.partial
    fs.not-shared fs.hung fs.squash fs.stale fs.attrcache fs.lock fs.type fs.export
    data.local-cache data.too-small data.cache-slow ckpt.race ckpt.latest ckpt.world job.batch job.hostfile job.env
    run.jit-lock run.watchdog run.host-bound run.straggler
    """.split()
)
