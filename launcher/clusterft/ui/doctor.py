"""A Report as lines: layers with a tick, then what is wrong, why, and the command that mends it. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from clusterft import commands
from clusterft.checks.catalogue import ALL, entry
from clusterft.checks.check import LAYERS, Entry
from clusterft.checks.mends import Mend, Mended
from clusterft.checks.report import Report, by_layer
from clusterft.findings import Finding

_MARKS = {"fail": "✗", "warn": "!", "unknown": "?", "skipped": "·", "ok": "✓"}
_WORST = ("fail", "warn", "unknown", "skipped", "ok")
_EFFECTS = {"fail": "blocks training", "warn": "warning"}
_WIDTH = 12
_COLUMNS = 110
_QUIET = 12  # lines of what was not judged, before the rest is only counted


def lines(report: Report) -> Iterator[str]:
    """The whole answer."""
    slots = f"{report.slots} slot{'s' * (report.slots != 1)}"
    nodes = f"{len(report.nodes)} node{'s' * (len(report.nodes) != 1)}"
    yield f"cluster {report.cluster} · {nodes} · {slots} · {report.seconds:.0f} s"
    yield ""
    yield from _layers(report)
    for one in _sorted(report.above_info()):
        yield ""
        yield from _finding(one, report)
    if quiet := report.unjudged():
        yield ""
        yield from _unjudged(quiet, report)
    if report.busy:
        yield ""
        yield from _busy(report)
    yield ""
    for note in report.notes:
        yield f"{note}"
    yield _last(report)


def catalogue(known: Iterable[Entry] = ALL) -> Iterator[str]:
    """`--list-checks`."""
    by_layer: dict[str, list[Entry]] = {}
    for one in known:
        by_layer.setdefault(one.layer, []).append(one)
    for layer, ones in by_layer.items():
        yield layer
        yield from (f"  {one.id:<22} {one.title}" for one in ones)


def offered(chosen: Iterable[Mend]) -> Iterator[str]:
    """What `--fix` would do, before it asks."""
    yield "What can be mended without risk:"
    for one in chosen:
        yield f"  {one.id:<18} on {one.node or 'this machine'}:  {one.words}"


def mended(done: Iterable[Mended]) -> Iterator[str]:
    """What came of it."""
    for one in done:
        where = one.mend.node or "this machine"
        if one.words:
            yield f"✗ {one.mend.words} on {where}: {one.words}"
        else:
            yield f"✓ {one.mend.words} on {where}"


def explained(one: Entry) -> Iterator[str]:
    """`--explain ID`."""
    yield f"{one.id} ({one.layer})"
    yield f"  {one.title}."
    yield f"  seen as:   {one.symptom}"
    if one.cause:
        yield f"  because:   {one.cause}"
    yield f"  found by:  {one.why_not or one.how}"
    for step in one.mends:
        yield f"  mends it:  {step}"
    if one.source:
        yield f"  known from: {one.source}"


def _layers(report: Report) -> Iterator[str]:
    grouped = by_layer(report.findings)
    for name in LAYERS:
        if name not in grouped:
            continue
        worst = min((_WORST.index(one.status) for one in grouped[name]), default=4)
        judged = [one for one in grouped[name] if one.status in ("ok", "warn", "fail")]
        blind = any(one.status == "unknown" and (about := entry(one.id)) and about.vital for one in grouped[name])
        mark = _MARKS[_WORST[worst]] if worst < 2 else "?" if blind else "✓" if judged else "·"
        yield f"  {name:<{_WIDTH}}{mark}  {report.highlights.get(name, '')}".rstrip()


def _finding(one: Finding, report: Report) -> Iterator[str]:
    where = names(one.nodes, report.nodes)
    yield f"{_MARKS[one.status]} {one.id:<22} {where:<24} {_EFFECTS[one.status]}".rstrip()
    yield from _wrapped("  ", one.summary + (f": {one.cause}" if one.cause else ""))
    for line in one.evidence.splitlines():
        yield f"    {line}"
    for step in one.fix:
        yield f"  fix:  {commands.shown(step)}"
    if one.fix and one.blast_radius:
        root = ", needs root" if one.needs_root else ""
        yield f"        (touches {one.blast_radius}{root})"


def _wrapped(indent: str, text: str) -> Iterator[str]:
    """A sentence in lines; evidence and commands stay whole, since they are compared and pasted."""
    yield from textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def names(nodes: tuple[str, ...], whole: tuple[str, ...]) -> str:
    """Which nodes, in few words; of many, the few that are not meant."""
    if not nodes:
        return ""
    if len(whole) > 1 and set(nodes) == set(whole):
        return f"all {len(whole)} nodes"
    if len(nodes) <= 4:
        return " ".join(nodes)
    others = [name for name in whole if name not in nodes]
    if len(others) <= 3:
        return f"{len(nodes)} of {len(whole)} nodes, not {' '.join(others)}"
    return f"{len(nodes)} of {len(whole)} nodes: {' '.join(nodes[:3])} ... {nodes[-1]}"


def _busy(report: Report) -> Iterator[str]:
    """Who works there, and how it is followed or ended."""
    for one in report.busy:
        of = f" of cluster {one.cluster}" if one.cluster else ""
        yield f"· run {one.run}{of} holds {' '.join(one.nodes)}"
        if not one.cluster:
            yield commands.shown(f"    follow it:  clusterft attach {one.run}")
            yield commands.shown(f"    end it:     clusterft stop {one.run}")


def _unjudged(quiet: tuple[Finding, ...], report: Report) -> Iterator[str]:
    """What got no answer, gathered by reason: many ids on a node that is off are one line."""
    reasons: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for one in quiet:
        reasons.setdefault((one.status, one.nodes, one.summary), []).append(one.id)
    rows = list(reasons.items())
    for (status, nodes, summary), ids in rows[:_QUIET]:
        what = ids[0] if len(ids) == 1 else f"{len(ids)} checks"
        verb, why = "not readable" if status == "unknown" else "skipped", commands.shown(summary)
        yield f"{_MARKS[status]} {what:<22} {names(nodes, report.nodes):<24} {verb}  {why}".rstrip()
    if len(rows) > _QUIET:
        yield f"  and {len(rows) - _QUIET} more; --json has them all"


def _last(report: Report) -> str:
    blocking = sum(one.status == "fail" for one in report.findings)
    warning = sum(one.status == "warn" for one in report.findings)
    if blocking or warning:
        first = next(one for one in _sorted(report.above_info()))
        told = f"{blocking} block{'s' * (blocking == 1)}, {warning} warn{'s' * (warning == 1)}."
        explain = commands.shown(f"clusterft doctor --explain {first.id}")
        more = f"   {explain}   tells more" if entry(first.id) else ""
        return told + more
    judged, left = report.counts()
    rest = f", {left} skipped" if left else ""
    return f"{_verdict(report)}. {judged} check{'s' * (judged != 1)}{rest}."


def _verdict(report: Report) -> str:
    """Where nothing blocks and nothing warns."""
    if report.verdict == "unknown":
        return "Not known whether it is ready to train"
    words = []
    if report.busy:
        runs = " and ".join(f"run {one.run}" for one in report.busy)
        held = tuple(node for node in report.nodes if any(node in one.nodes for one in report.busy))
        where = "" if held == report.nodes else f" on {names(held, report.nodes)}"
        words.append(f"busy with {runs}{where}")
    words += [commands.shown(one) for one in report.untried]
    if not words:
        return "Ready to train"
    return f"{'Nothing wrong found' if report.untried else 'Healthy'}; {', and '.join(words)}"


def _sorted(found: Iterable[Finding]) -> list[Finding]:
    return sorted(found, key=lambda one: _WORST.index(one.status))
