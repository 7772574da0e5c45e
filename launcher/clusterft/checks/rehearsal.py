"""The node whose rank does not come as far as its first all-reduce in a rehearsal of the run, and why. Pure.

A rank that fails at what is its own is believed; others that waited for it, or that doctor itself ended, are not.
Where all of them are well by themselves and do not meet, that is said of all, unless the network layer says why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote

from clusterft.diagnosis import known, signatures
from clusterft.facts.imports import Imports
from clusterft.facts.rehearsal import Rehearsal, Try
from clusterft.findings import Finding

_ID = "run.rehearsal"
_KILL = 9
_APART = "one rank on each node, started as a run would start them, do not meet"
_REACHED = "ports and addresses could be reached one by one, and not as torch uses them: "
_UNTRIED = "the nodes' ports were not tried one by one; if they can be reached: "
_OOM = re.compile(r"out of memory|oom[-_ ]kill", re.IGNORECASE)
_FEW = 200  # characters of an error that a summary has room for
_LINES = 8  # of a traceback, whose end says where
_PACKAGE = re.compile(r"(?:site|dist)-packages/(\w+)")
_DOING = {
    "start": "starts",
    "libraries": "imports its libraries",
    "model": "reads the model's files",
    "pictures": "reads pictures",
    "processes": "starts a helper process and writes a temporary file",
    "store": "meets the others",
    "group": "meets the others",
    "first": "makes its first all-reduce",
}


def found(
    nodes: Sequence[str],
    seen: Rehearsal,
    pythons: Mapping[str, Imports],
    *,
    severed: str = "",
    dialled: bool = True,
) -> Iterator[Finding]:
    """run.rehearsal, of every node whose rank was tried; `pythons` tells which version of a package to install.

    severed: the id of the network layer that tells already why some of them cannot meet; dialled: whether their
    ports were tried at all.
    """
    if seen.unfit:
        fix = (seen.remedy,) if seen.remedy else ()
        yield Finding(
            _ID, "fail", (), f"this job cannot run on these nodes: {seen.unfit}", fix=fix, blast_radius="the job"
        )
    own = [one for one in seen.tries.values() if one.alone and not one.late and not one.stopped]
    for node, words in seen.unopened.items():
        yield _fail(node, f"a rank's Python does not come up: {_short(words)}", words, "", _again(node, seen))
    for one in own:
        yield _failed(one, seen, pythons)
    for one in seen.tries.values():
        if one.alone and one.late:
            summary = f"what a rank does before its first step did not end in time: it {_doing(one)}"
            yield Finding(_ID, "unknown", (one.node,), summary, one.words)
    yield from _unlike(seen)
    alone = [one for one in seen.tries.values() if one.alone]
    if own or seen.unopened or any(not one.stopped for one in alone):
        return  # the others waited for these in vain
    for one in alone:
        yield Finding(
            _ID,
            "unknown",
            (one.node,),
            f"it had come no further when another rank ended: it {_doing(one)}",
            one.error,
        )
    left = [one for one in seen.tries.values() if not one.done and one not in alone]
    told = _apart(nodes, left, seen, pythons, _REACHED if dialled else _UNTRIED)
    yield from told if not severed else _but_severed(told, severed)


def _but_severed(told: Iterator[Finding], severed: str) -> Iterator[Finding]:
    """That they do not meet is no news then, and nobody's guess; nor is it proven that the rest is well."""
    for one in told:
        together = one.summary == _APART
        yield Finding(_ID, "skipped", one.nodes, f"({severed})") if together else one


def _apart(
    nodes: Sequence[str], left: list[Try], seen: Rehearsal, pythons: Mapping[str, Imports], lead: str
) -> Iterator[Finding]:
    """Those that broke by themselves while all met; else all that did not meet."""
    broken = [one for one in left if not one.lost]
    for one in broken:
        yield _failed(one, seen, pythons)
    if left and not broken:
        least = min(left, key=lambda one: tuple(_DOING).index(one.stage))
        known_fix = _known(least)
        yield Finding(
            id=_ID,
            status="fail",
            nodes=tuple(node for node in nodes if node in {one.node for one in left}),
            summary=_APART,
            evidence="\n".join(
                f"{one.node}: {one.error or 'no end in time'}, when it {_doing(one)}" for one in left
            ),
            cause=known_fix[0]
            or f"{lead}a variable in env: of the job, or what is counted or limited between the nodes",
            fix=known_fix[1]
            or (
                "in job.yaml: look at env: for NCCL_, GLOO_, TORCH_; leave out what need not be there",
                "clusterft doctor --deep   tries every pair of nodes",
            ),
            blast_radius="the job's env:",
        )


def _failed(one: Try, seen: Rehearsal, pythons: Mapping[str, Imports]) -> Finding:
    words = one.error.removesuffix(".") or "it ended without a word"
    cause, fix = _known(one)
    if one.signal == _KILL:
        words, cause, fix = _killed(one)
    return _fail(
        one.node,
        f"a rank fails when it {_doing(one)}: {_short(words)}",
        _evidence(one) or words,
        cause,
        ((_there(one),) if one.remedy else fix) or (*_anew(one, pythons), *_again(one.node, seen)),
    )


def _killed(one: Try) -> tuple[str, str, tuple[str, ...]]:
    """Signal 9 has no sender: only the kernel's own words make it the memory."""
    if _OOM.search(one.words):
        return "it was killed, as the kernel does when memory runs out", "the node's memory ran out", ()
    return (
        "it was killed by signal 9",
        "the kernel kills so when memory runs out, and its log then says it; else a person or a program did",
        (f"on {one.node}: sudo dmesg -T | grep -iE 'out of memory|oom-kill' | tail -n 5   names it, if memory",),
    )


def _there(one: Try) -> str:
    """A remedy that is a command belongs to its node."""
    return f"on {one.node}: {one.remedy}" if one.remedy.startswith("sudo ") else one.remedy


def _fail(node: str, summary: str, evidence: str, cause: str, fix: tuple[str, ...]) -> Finding:
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=summary,
        evidence=evidence,
        cause=cause or "one rank was started there as a run starts it; a run would end in the same way",
        fix=fix,
        blast_radius="what its words name",
    )


def _unlike(seen: Rehearsal) -> Iterator[Finding]:
    """A model that is another one than most nodes have; all ranks would refuse to train a mixture."""
    signs = {node: one.model for node, one in seen.tries.items() if one.model}
    if len(set(signs.values())) < 2:
        return
    usual, _ = Counter(signs.values()).most_common(1)[0]
    good = next(node for node, sign in signs.items() if sign == usual)
    for node, sign in signs.items():
        if sign != usual:
            yield Finding(
                id=_ID,
                status="fail",
                nodes=(node,),
                summary="the model of the job is another one there than on the other nodes",
                evidence="\n".join(f"{each}: {one[:12]}" for each, one in signs.items()),
                cause="each node has a copy of its own, and they are not the same",
                fix=(f"on {node}: copy the model again from {good}, {seen.addresses.get(good, good)}: rsync -c",),
                blast_radius="the model's files on that node",
            )


def _known(one: Try) -> tuple[str, tuple[str, ...]]:
    """What the tables of known words say of its end; the last line that any of them knows counts."""
    for line in reversed([*one.words.splitlines(), one.error]):
        for match in signatures.telling(line, known.ALL):
            if match.signature.weight == "specific":
                words = {**match.words, "node": one.node}
                sign = match.signature
                return signatures.told(sign.cause, words), tuple(signatures.told(fix, words) for fix in sign.fix)
    return "", ()


def _again(node: str, seen: Rehearsal) -> tuple[str, ...]:
    python = quote(seen.pythons.get(node, "python3"))
    return (
        f"on {node}: {python} -c 'import torch, clusterft_trainer.train'   shows it outside of doctor",
        "clusterft doctor --only run.rehearsal   tries it again",
    )


def _anew(one: Try, pythons: Mapping[str, Imports]) -> tuple[str, ...]:
    """A package in whose files a rank fails as it imports them, in the version that most nodes have."""
    named = _PACKAGE.findall(f"{one.words}\n{one.error}")
    if one.stage != "libraries" or not named:
        return ()
    package, own = named[-1], pythons.get(one.node)
    versions = [version for each in pythons.values() if (version := dict(each.versions).get(package))]
    usual = f"=={Counter(versions).most_common(1)[0][0]}" if versions else ""
    python = quote(own.command) if own else "python3"
    return (f"on {one.node}: {python} -m pip install --force-reinstall --no-deps {package}{usual}",)


def _evidence(one: Try) -> str:
    """Of an error that the trainer knows its own sentence; of others where it came about."""
    lines = () if one.remedy else one.words.splitlines()[-_LINES:]
    return "\n".join((*((one.error,) if one.error and one.error not in lines[-1:] else ()), *lines))


def _doing(one: Try) -> str:
    return _DOING.get(one.stage, one.stage)


def _short(words: str) -> str:
    """Of several lines the last, where Python says what is wrong."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    last = lines[-1] if lines else words
    return last if len(last) <= _FEW else last[: _FEW - 3] + "..."
