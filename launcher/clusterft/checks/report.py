"""Examination -> Report: every check in order of dependency, one answer an id, one verdict computed from them.

Owns what is skipped and why. A node on which something more basic has failed gets no answer, never an ok; what
could not be read is unknown; a check that breaks costs its own ids and is said to be our bug.
"""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from clusterft.checks import catalogue
from clusterft.checks.check import LAYERS, Check, Layer
from clusterft.checks.examination import Examination
from clusterft.checks.gathering import gathered
from clusterft.checks.occupants import Occupant
from clusterft.facts.health.confines import STOPPED
from clusterft.findings import Finding

Verdict = Literal["ok", "warn", "fail", "unknown"]
SCHEMA = 1
# Trials in which a node shows that it can train: who was not tried is not known to be ready.
_TRIALS = ("dk.box", "run.import", "run.rehearsal", "fs.not-shared", "data.differs", "net.high-ports")
_LIMITS = ("os.memory-limit", "os.nproc", "os.oom")
_BROKE = "this check broke, which is a bug of clusterft"


@dataclass(frozen=True, slots=True)
class Report:
    """What doctor says: one object for the screen, for --json and for the exit code."""

    cluster: str
    nodes: tuple[str, ...]
    slots: int
    verdict: Verdict
    findings: tuple[Finding, ...]  # of every id that was asked about, the ok ones too
    seconds: float
    notes: tuple[str, ...] = ()
    highlights: Mapping[Layer, str] = field(default_factory=dict)
    broken: bool = False  # a check of ours broke
    busy: tuple[Occupant, ...] = ()  # runs that hold nodes now
    untried: tuple[str, ...] = ()  # what was left out, without which nobody can say that training is ready

    def to_dict(self) -> dict[str, Any]:
        """The document of `doctor --json`."""
        return {
            "schema": SCHEMA,
            "cluster": self.cluster,  # its name
            "verdict": self.verdict,  # ok, warn, fail, or unknown where something vital could not be read
            "checks": [finding.to_dict() for finding in self.findings],  # of every id asked about, the ok ones too
            "busy": [asdict(one) for one in self.busy],  # runs that hold nodes: run, nodes, another cluster's name
            "untried": list(self.untried),  # what was left out, without which nobody can say: ready to train
            "seconds": round(self.seconds, 3),  # that looking took
            "notes": list(self.notes),  # what was sampled, judged another way, or measured
        }

    def above_info(self) -> tuple[Finding, ...]:
        """What blocks or warns."""
        return tuple(finding for finding in self.findings if finding.status in ("fail", "warn"))

    def unjudged(self) -> tuple[Finding, ...]:
        """What got no answer. Of an id that was left out for several reasons, the first."""
        whole: dict[str, Finding] = {}
        each = []
        for one in self.findings:
            if one.status in ("skipped", "unknown"):
                kept = one if one.nodes else whole.setdefault(one.id, one)
                each += [one] if kept is one else []
        return tuple(each)

    def counts(self) -> tuple[int, int]:
        """How many ids were judged, and how many were not, or only in part: no id counts twice."""
        quiet = {one.id for one in self.unjudged()}
        return len({one.id for one in self.findings} - quiet), len(quiet)


def judge(seen: Examination, checks: Iterable[Check], only: Container[str] | None = None) -> tuple[Finding, ...]:
    """The answers to all ids of these checks, those of `only` alone if given."""
    asked = [check for check in checks if _matters(check, seen)]
    answers = _Answers(seen)
    for check in asked:
        answers.ask(check)
    order = {entry.id: place for place, entry in enumerate(catalogue.ALL)}
    found = [one for one in answers.findings() if only is None or one.id in only]
    return tuple(sorted(found, key=lambda one: order.get(one.id, len(order))))


def verdict(findings: Iterable[Finding]) -> Verdict:
    """One word, from the findings alone."""
    found = tuple(findings)
    statuses = {one.status for one in found}
    if "fail" in statuses:
        return "fail"
    if "warn" in statuses:
        return "warn"
    vital = {entry.id for entry in catalogue.ALL if entry.vital}
    blind = any(one.status == "unknown" and one.id in vital for one in found)
    # What failed first may be no part of what was asked for (--only): then nobody has judged the rest.
    moot = any(one.status == "skipped" and one.nodes and one.summary.startswith("(") for one in found)
    return "unknown" if blind or moot else "ok"


def untried(seen: Examination, only: Container[str] | None, found: Iterable[Finding] = ()) -> tuple[str, ...]:
    """What was left out of this look, though a run would meet it; the words go on from "Nothing wrong found"."""
    left = []
    if "links" in seen.unasked:
        left.append("the active probes were left out (--quick)")
    if seen.wanted.job is None:
        left.append("no job was looked at (--job job.yaml)")
    if "links" not in seen.unasked and "share" in seen.unasked:
        left.append("no shared dir is known")
    if "links" not in seen.unasked and "box" in seen.unasked and seen.wanted.contained:
        left.append("nothing was tried in a container, as there is no image yet (clusterft up)")
    if only is not None:
        left.append("all but what was asked for was left out (--only)")
    blind: dict[str, list[str]] = {}  # nodes, by id
    for one in found:
        if one.status == "unknown" and one.id in _TRIALS:
            blind.setdefault(one.id, []).extend(one.nodes)
    if blind:
        nodes = tuple(node for node in seen.nodes if any(node in each for each in blind.values()))
        where = f" on {', '.join(nodes)}" if nodes and nodes != tuple(seen.nodes) else ""
        left.append(f"{', '.join(blind)} could not be tried{where}")
    return tuple(left)


def broke(findings: Iterable[Finding]) -> bool:
    """Whether one of our own checks broke."""
    return any(one.status == "unknown" and one.summary == _BROKE for one in findings)


def layer(identity: str) -> Layer:
    """Where an id belongs; a reason that ssh itself gave may be in no catalogue."""
    entry = catalogue.entry(identity)
    return entry.layer if entry else "ssh" if identity.startswith("ssh.") else "job"


def by_layer(findings: Iterable[Finding]) -> dict[Layer, list[Finding]]:
    """In the order of dependency; layers without an answer are left out."""
    grouped: dict[Layer, list[Finding]] = {name: [] for name in LAYERS}
    for one in findings:
        grouped[layer(one.id)].append(one)
    return {name: ones for name, ones in grouped.items() if ones}


class _Answers:
    """What was found so far, and which nodes are out for what comes next."""

    def __init__(self, seen: Examination) -> None:
        self._seen = seen
        self._found: list[Finding] = []
        self._failed: dict[str, set[str]] = {}  # node -> ids
        self._quiet: list[Finding] = []

    def ask(self, check: Check) -> None:
        """Run one check on what it may be believed about."""
        unasked = [self._seen.unasked[thing] for thing in check.reads if thing in self._seen.unasked]
        if unasked:
            self._quiet += [Finding(one, "skipped", (), unasked[0]) for one in check.ids]
            return
        moot = self._moot(check)
        if len(moot) == len(self._seen.nodes):
            found = []
        else:
            found = [one for one in self._run(check) if not one.nodes or not set(one.nodes) <= moot.keys()]
        for one in found:
            if one.status == "fail":
                for node in one.nodes:
                    self._failed.setdefault(node, set()).add(one.id)
        self._found += found
        for identity in check.ids:
            self._quiet += self._rest(identity, found, moot)

    def findings(self) -> tuple[Finding, ...]:
        """One finding a reason."""
        return (*gathered(one for one in self._found if one.status != "ok"), *self._calm())

    def _run(self, check: Check) -> list[Finding]:
        try:
            return list(check.find(self._seen))
        except Exception:  # noqa: BLE001 - the other checks still speak; the exit code says that one of ours broke
            words = traceback.format_exc().strip()
            return [Finding(one, "unknown", self._seen.nodes, _BROKE, words[-1500:]) for one in check.ids]

    def _moot(self, check: Check) -> dict[str, Finding]:
        """Node -> what is said of it instead, under no id yet."""
        moot: dict[str, Finding] = {}
        for node in self._seen.nodes:
            for thing in check.reads:
                absence = self._seen.absent.get(thing, {}).get(node)
                if absence and node not in moot:
                    known = absence.id or self._limit(node, absence.words)
                    summary = f"({known})" if known else absence.words
                    moot[node] = Finding("", "skipped" if known else "unknown", (node,), summary)
            for identity in sorted(self._failed.get(node, ())):
                if node not in moot and any(_covers(one, identity) for one in check.after):
                    moot[node] = Finding("", "skipped", (node,), f"({identity})")
        return moot

    def _limit(self, node: str, words: str) -> str:
        """The finding on a limit that one of our own programs ran into; empty where there is none."""
        told = self._failed.get(node, set()) if STOPPED in words else set()
        return next((one for one in _LIMITS if one in told), "")

    def _rest(self, identity: str, found: list[Finding], moot: Mapping[str, Finding]) -> Iterator[Finding]:
        """What is said of an id and the nodes that no finding of it names."""
        named = {node for one in found if one.id == identity for node in one.nodes}
        whole = any(one.id == identity and not one.nodes for one in found)
        for node in self._seen.nodes:
            if node in named:
                continue
            if node in moot:
                yield replace(moot[node], id=identity)
            elif not whole:
                yield Finding(identity, "ok", (node,), "")

    def _calm(self) -> tuple[Finding, ...]:
        """The ok, the skipped and the unknown, one finding an id and reason; several checks may share an id."""
        loud = {(one.id, node) for one in self._found for node in one.nodes}
        left = [one for one in dict.fromkeys(self._quiet) if not one.nodes or (one.id, one.nodes[0]) not in loud]
        waiting = {(one.id, one.nodes) for one in left if one.status in ("skipped", "unknown")}
        return gathered(one for one in left if one.status != "ok" or (one.id, one.nodes) not in waiting)


def _covers(pattern: str, identity: str) -> bool:
    return identity == pattern or (pattern.endswith(".") and identity.startswith(pattern))


def _matters(check: Check, seen: Examination) -> bool:
    """Cards and engines are no question where training uses none."""
    if check.cuda and seen.wanted.device != "cuda":
        return False
    return seen.wanted.contained or not check.contained
