"""Reading a run that others follow, or nobody: what its parts say now, else their mirror in the shared dir.

A part that lives is asked itself, since a share may hang. One that is over, or cannot be asked, is read from its
mirror, over any node. For a glance, the mirror of a part that lives is believed as long as it keeps up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from clusterft import runtime
from clusterft.apply import runs
from clusterft.apply.listening import Source, listen, unreachable
from clusterft.apply.runs import Located
from clusterft.board import Board
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.plan import Part, Prep
from clusterft.remote import Lines, Remote, Unreachable
from clusterft_trainer import stream

_SECONDS = 15.0  # a share that hangs must not hold up who only wants to look
_SILENCE = 30.0  # a large file over a slow share
_KEEPS_UP = 30.0  # seconds that the mirror of a part that lives may be behind; usage is told more often
_LAST = 400  # log lines of a part that a glance needs
_MARK = "@clusterft@"
# The mirrored streams of a run, each with its last line.
_LISTING = (
    'cd -- "$1" 2>/dev/null || exit 0; for at in *.jsonl; do [ -f "$at" ] || continue; '
    'printf "%s %s " "$2" "${at%.jsonl}"; tail -n 1 -- "$at"; printf "\\n"; done'
)
_RANKS = (
    'cd -- "$1/logs" 2>/dev/null || exit 0; for at in attempt-*/*/rank*.log; do '
    'at=${at##*/rank}; printf "%s\\n" "${at%.log}"; done'
)
# All but the bulk: of log lines, the last ones. Read twice, since awk cannot look back.
_BRIEF = r'NR == FNR { n++; next } FNR > n - last || index(substr($0, 1, 40), "\"kind\": \"log\"") == 0'
# All before the part that is there now said its first word.
_EARLIER = (
    r'function first() { return index(substr($0, 1, 40), "\"started\"") && index($0, "\"incarnation\": 0") } '
    r"NR == FNR { if (first()) last = FNR; next } FNR < last"
)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """One part's stream in the shared dir."""

    node: str
    path: PurePosixPath
    remote: Remote  # over which it can be read
    last: stream.Line | None  # its last line, if that is one

    @property
    def complete(self) -> bool:
        """Whether it holds the part's last word."""
        return isinstance(self.last, stream.Ended)


def sources(located: Located, only: str | None = None) -> tuple[list[Source], list[Source]]:
    """Where each part is read in full: what an earlier life of a resumed run has left, and what there is now.

    Of the parts that are there, and of those that were and have been replaced.
    """
    mirrored = _mirrored(located)
    live = _carriers(located)
    kept = located.state == "running" or all(part.runtime == "process" for part in located.parts)
    resumed = bool(located.record.get("plan", {}).get("first_attempt"))
    before, now = [], []
    for node in dict.fromkeys((*(part.node for part in located.parts), *mirrored)):
        if only is not None and node != only:
            continue
        copy, part = mirrored.get(node), live.get(node)
        if copy and (copy.complete or part is None or not kept):
            now.append(_file(copy, ("tail", "-n", "+1", "--", str(copy.path))))
        else:
            now.append(part or unreachable(node, _missed(located.fleet, node)))
            if copy and resumed:
                before.append(_file(copy, ("awk", _EARLIER, str(copy.path), str(copy.path))))
    return before, now


def board(located: Located) -> Board:
    """What is known of a run right now, as if somebody had followed it from its start."""
    mirrored = _mirrored(located)
    live = _carriers(located)
    made = empty(located, clock_offsets(located.fleet))
    chosen = []
    for node in dict.fromkeys((*(part.node for part in located.parts), *mirrored)):
        copy, part = mirrored.get(node), live.get(node)
        # Of a run that is over nothing is still to come: what has no last word has to be asked for it.
        current = located.outcome is None and copy and _keeps_up(copy, made.offsets.get(node, 0.0))
        if copy and (copy.complete or part is None or current):
            argv = ("awk", "-v", f"last={_LAST}", _BRIEF, str(copy.path), str(copy.path))
            chosen.append(_file(copy, argv))
        else:
            chosen.append(part or unreachable(node, _missed(located.fleet, node)))
    for event in listen(chosen, follow=False, offsets=made.offsets):
        if event is not None:
            made.see(event)
    return made


def concluded(heard: Board, fleet: Fleet) -> Board:
    """What was heard of a run that is over, made whole from the shared dir.

    Another controller may clear a part away before this one has heard its last word. That would look like a lost
    node, and a run that was stopped would be said to have failed, or even be started anew.
    """
    if not heard.gone:
        return heard
    try:
        now = runs.again(fleet, heard.run)
        told = board(now) if now.outcome else heard
    except ClusterftError:
        return heard  # the shared dir says nothing: what was heard is all that is known
    return told if len(told.gone) < len(heard.gone) else heard


def empty(located: Located, offsets: Mapping[str, float]) -> Board:
    """The Board of a run before anything is heard of it."""
    plan = located.record.get("plan", {})
    survival = plan.get("survival", {})
    return Board(
        located.run,
        tuple(part.node for part in located.parts) or tuple(located.containers),
        dict(offsets),
        run_dir=str(located.run_dir),
        restarts=survival.get("restarts"),
        prep=Prep.from_plan(plan) is not None,
    )


def ranks(located: Located) -> set[int]:
    """All that have left a log in the shared dir, in any attempt; none where no node can say."""
    argv = ("sh", "-c", _RANKS, "sh", str(located.run_dir))
    for remote in list(located.fleet.remotes.values()):
        try:
            done = remote.run(argv, seconds=_SECONDS)
        except ClusterftError:
            continue  # another node may see it
        return {int(word) for word in done.out.split() if word.isdecimal()}
    return set()


def clock_offsets(fleet: Fleet) -> dict[str, float]:
    """Seconds that each node's clock is ahead of this machine's, to half a round trip."""

    def one(_: str, remote: Remote) -> float:
        asked = time.time()
        done = remote.run(("date", "+%s.%N"), seconds=_SECONDS)
        middle = (asked + time.time()) / 2
        try:
            return float(done.out.split()[-1].replace(".N", "")) - middle  # a date without %N says N
        except (IndexError, ValueError):
            raise Unreachable("ssh.noisy-shell", f"date said {done.out.strip()[-100:]!r}") from None

    return {node: ahead for node, ahead in fleet.each(one).items() if isinstance(ahead, float)}


def _keeps_up(copy: Mirrored, ahead: float) -> bool:
    line = copy.last
    if line is None:
        return False
    at = line.record.at if isinstance(line, stream.Progress) else line.at
    return time.time() - (at - ahead) < _KEEPS_UP


def _carriers(located: Located) -> dict[str, Source]:
    """The parts that can be asked themselves, by node."""
    kinds = {
        part.runtime: runtime.carrier(part.runtime, located.cluster.name, located.run) for part in located.parts
    }
    return {
        part.node: _live(kinds[part.runtime], part, located.fleet)
        for part in located.parts
        if part.node in located.fleet.remotes
    }


def _live(carrier: runtime.Carrier, part: Part, fleet: Fleet) -> Source:
    return Source(
        part.node,
        lambda skip: carrier.follow(part, fleet.remotes[part.node], skip),
        lambda: fleet.reconnect(part.node),
    )


def _file(copy: Mirrored, argv: tuple[str, ...]) -> Source:
    def open_(_skip: int) -> Lines:
        return copy.remote.lines(argv, silence=_SILENCE)

    return Source(copy.node, open_, lasting=False)


def _mirrored(located: Located) -> dict[str, Mirrored]:
    """From the first node that can list them; none where no node can."""
    directory = located.run_dir / "events"
    argv = ("sh", "-c", _LISTING, "sh", str(directory), _MARK)
    for remote in list(located.fleet.remotes.values()):
        try:
            done = remote.run(argv, seconds=_SECONDS)
        except ClusterftError:
            continue  # another node may see it
        return {
            name: Mirrored(name, directory / f"{name}.jsonl", remote, last) for name, last in _listed(done.out)
        }
    return {}


def _listed(out: str) -> Iterable[tuple[str, stream.Line | None]]:
    for row in out.splitlines():
        if row.startswith(_MARK + " "):
            name, _, last = row.removeprefix(_MARK + " ").partition(" ")
            yield name, stream.decode(last)


def _missed(fleet: Fleet, node: str) -> str:
    why = next((miss.words for miss in fleet.unreached if miss.node == node), "")
    return why or f"{node} is not in {fleet.cluster.path}"
