"""`clusterft doctor`: what is wrong, on which node, why, and the command that mends it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from clusterft import spec
from clusterft.apply import examining, fixing, sameness, settings
from clusterft.apply.settings import Settings
from clusterft.checks import catalogue, highlights, occupants, report, suite
from clusterft.checks.check import LAYERS, Entry
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.mends import mends
from clusterft.checks.report import Report
from clusterft.cli.ask import Terminal
from clusterft.errors import Blocked, ClusterftError, UsageError
from clusterft.facts.image import Identity
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.spec import JobSpec
from clusterft.spec.script import ScriptSpec
from clusterft.ui import doctor as view
from clusterft.ui.watch import say

_WARNED = 4


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    hosts: Path | None
    cluster: str | None
    job: Path | None
    only: tuple[str, ...]
    depth: examining.Depth
    strict: bool
    as_json: bool
    fix: bool = False


def run(options: Options) -> int:
    """Examine, judge, tell: 3 if something blocks, 4 for warnings under --strict, 1 if a check of ours broke."""
    only = _only(options.only)
    job = spec.load(options.job) if options.job else None
    cluster = _cluster(options, job)
    known = settings.load_if_sound(settings.cluster_places(cluster.name))
    where = settings.cluster_places(cluster.name)
    asked = wanted(job, known)
    with Fleet(cluster, where.known_hosts, key=where.key) as fleet:

        def look() -> tuple[Examination, Report]:
            with _told(quiet=options.as_json) as show:
                done = examining.examine(cluster, fleet, asked, options.depth, show)
            return done.seen, _report(cluster, done, only)

        seen, answer = look()
        _print(answer, as_json=options.as_json)
        if options.fix:
            answer = _fix(fleet, seen, answer, look)
    return _code(answer, strict=options.strict)


def _fix(
    fleet: Fleet, seen: Examination, before: Report, look: Callable[[], tuple[Examination, Report]]
) -> Report:
    """Show what would be done, ask, do it, look again; the report after it, which is shown too."""
    chosen = mends(seen, before.findings)
    say(sys.stdout, "")
    if not chosen:
        left = len(before.above_info())
        say(sys.stdout, "doctor can mend none of this itself." if left else "There is nothing to mend.")
        return before
    if not Terminal().mends(view.offered(chosen)):
        say(sys.stdout, "Nothing was changed.")
        return before
    for line in view.mended(fixing.apply(fleet, chosen)):
        say(sys.stdout, line)
    say(sys.stdout, "")
    after = look()[1]
    _print(after, as_json=False)
    return after


def _print(answer: Report, *, as_json: bool) -> None:
    if as_json:
        say(sys.stdout, json.dumps(answer.to_dict()))
        return
    for line in view.lines(answer):
        say(sys.stdout, line)


def depth(*, quick: bool, deep: bool) -> examining.Depth:
    """How far to go."""
    return "quick" if quick else "deep" if deep else "usual"


def list_checks(*, as_json: bool) -> int:
    """Every id that doctor knows."""
    if as_json:
        entries = [listed(one) for one in catalogue.ALL]
        say(sys.stdout, json.dumps({"schema": report.SCHEMA, "checks": entries}))
        return 0
    for line in view.catalogue():
        say(sys.stdout, line)
    return 0


def listed(entry: Entry) -> dict[str, str]:
    """One of `checks` in the document of `--list-checks --json`, in the order in which they are asked."""
    return {
        "id": entry.id,  # an API: never renamed
        "layer": entry.layer,  # what `--only` takes too
        "title": entry.title,  # what is wrong when it is found
    }


def explain(identity: str, *, as_json: bool) -> int:
    """One id in words."""
    entry = catalogue.entry(identity)
    if entry is None:
        _only((identity,))
        raise UsageError(f'"{identity}" is a layer; give one of its ids', remedy="clusterft doctor --list-checks")
    if as_json:
        say(sys.stdout, json.dumps({"schema": report.SCHEMA, **asdict(entry)}))
        return 0
    for line in view.explained(entry):
        say(sys.stdout, line)
    return 0


def wanted(job: JobSpec | None, known: Settings | None) -> Wanted:
    """From the job; without one, what the last `up` was told."""
    if job is None:
        known = known or Settings()
        return Wanted(
            device=known.device,
            contained=known.with_image,
            shared=known.shared,
            tag=known.tag,
            image=_brought(known),
        )
    owner = tuple(int(part) for part in job.user.split(":")) if job.user else None
    return Wanted(
        device=job.resources.device,
        contained=job.runtime == "docker",
        shared=str(job.shared),
        port=job.port,
        tag=known.tag if known else None,
        image=_brought(known) if known else None,
        owner=(owner[0], owner[1]) if owner else None,
        job=job,
        deepspeed=_deepspeed(job.script) if job.script else None,
    )


def _deepspeed(script: ScriptSpec) -> str | None:
    """The DeepSpeed configuration that its arguments name, if it lies in the folder that is shipped."""
    words = [part for one in script.args for part in one.split("=", 1)]
    for name, value in pairwise(words):
        path = script.folder / script.workdir / value
        if name in ("--deepspeed_config", "--deepspeed") and path.suffix == ".json" and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return None


def _brought(known: Settings) -> Identity | None:
    """The image that every node should have; without it, nodes are compared with each other."""
    try:
        return sameness.expected(known)
    except ClusterftError:
        return None


def _report(cluster: Cluster, done: examining.Examined, only: frozenset[str] | None) -> Report:
    findings = report.judge(done.seen, suite.CHECKS, only)
    return Report(
        cluster=cluster.name,
        nodes=done.seen.nodes,
        slots=sum(node.slots for node in cluster.active),
        verdict=report.verdict(findings),
        findings=findings,
        seconds=done.seconds,
        notes=done.notes,
        highlights=highlights.of(done.seen),
        broken=done.broken or report.broke(findings),
        busy=occupants.found(done.seen),
        untried=report.untried(done.seen, only, findings),
    )


def _code(answer: Report, *, strict: bool) -> int:
    if answer.verdict == "fail":
        return Blocked.exit_code
    if answer.broken:
        return ClusterftError.exit_code
    return _WARNED if strict and answer.verdict in ("warn", "unknown") else 0


def _cluster(options: Options, job: JobSpec | None) -> Cluster:
    path = options.hosts or (job.hosts if job else None)
    if path is None and options.cluster is None and not settings.any_default():
        raise UsageError(
            "there is no cluster yet to look at",
            remedy="clusterft doctor --hosts FILE   (one line a node, such as: gpu0 slots=8)",
        )
    return settings.find(path, options.cluster)


def _only(words: tuple[str, ...]) -> frozenset[str] | None:
    """Ids and layers, as one set of ids; None for all."""
    if not words:
        return None
    ids = {entry.id for entry in catalogue.ALL}
    chosen: set[str] = set()
    for word in words:
        of_layer = {entry.id for entry in catalogue.ALL if entry.layer == word}
        if word not in ids and not of_layer:
            import difflib

            near = difflib.get_close_matches(word, [*ids, *LAYERS], n=1)
            hint = f'did you mean "{near[0]}"?' if near else "clusterft doctor --list-checks   names them all"
            raise UsageError(f'no check and no layer is called "{word}"', remedy=hint)
        chosen |= of_layer or {word}
    return frozenset(chosen)


@contextmanager
def _told(*, quiet: bool) -> Iterator[examining.Show]:
    """What is being done, on one line of the terminal that is gone afterwards."""
    if quiet or not sys.stderr.isatty():
        yield lambda words: None
        return

    def show(words: str) -> None:
        sys.stderr.write(f"\r\033[K{words} ...")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
