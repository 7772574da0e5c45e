"""What our own supervisors have written: streams of events, and the lines of `clusterft logs --json`. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from clusterft.diagnosis import lines
from clusterft.diagnosis.heard import Course, End, Quote, Source, Told
from clusterft_trainer import progress, stream

if TYPE_CHECKING:
    from clusterft.diagnosis.hearing import Hearing

NEVER = -1


class Events:
    """Passes what they say on to a Hearing, each under its rank and attempt."""

    def __init__(self, hearing: Hearing) -> None:
        self.attempt = NEVER  # the newest
        self._hearing = hearing
        self._attempts: dict[str, int] = {}
        self._sources: dict[tuple[str, int | None, int], Source] = {}
        self._lines: dict[
            tuple[str, int, int], int
        ] = {}  # (stream, attempt, rank) -> lines of that rank's log so far

    def take(self, source: Source, number: int, text: str) -> bool:
        """Whether the line was one of ours."""
        line = stream.decode(text)
        if line is not None:
            self.hear(source, number, line)
            return True
        return self._logged(source, number, text)

    def hear(self, source: Source, number: int, line: stream.Line) -> None:
        """One event."""
        quote = Quote(f"{source.name}:{number}", "")
        match line:
            case stream.Log():
                self._log(*self._written(source, number, line.rank), line.rank, line.text, line.at)
            case stream.Progress():
                of, place = self._written(source, number, line.rank)
                self._progress(source, Quote(f"{of.name}:{place}", ""), line.rank, line.record)
            case stream.RankDied():
                self._died(source, quote, line)
            case stream.Hang():
                words = f"no step for {line.seconds:.0f} s; what every rank was doing then: {line.stacks}"
                self._tell(source, quote, Told("hang", words, "", quote, "", None, line.at, 0, gang=True))
            case stream.Found() if line.status == "fail":
                where = ", ".join(line.nodes)
                words = f"{line.summary}: {line.cause}" if line.cause else line.summary
                told = Told(line.id, words, "; ".join(line.fix), quote, where, None, line.at, 0)
                self._tell(source, quote, told)
            case stream.Ended():
                self._hearing.heard.ended[source.node] = line.end
                if line.problem:
                    self._hearing.heard.unread += (f"{source.node}: its logs could not be kept: {line.problem}",)
            case _:
                self._course_of(source, quote, line)

    def _course_of(self, source: Source, quote: Quote, line: stream.Line) -> None:
        """When an attempt began, how it ended, and whether another one followed."""
        match line:
            case stream.Attempt():
                self._attempts[source.name] = line.attempt
                self.attempt = max(self.attempt, line.attempt)
                self._hearing.heard.world = line.world
                known = self._course(line.attempt)
                self._note(line.attempt, replace(known, began={**known.began, source.node: line.at}))
            case stream.AttemptEnded():
                known = self._course(line.attempt)
                self._note(line.attempt, replace(known, ends={**known.ends, source.node: line.end}))
            case stream.Decided():
                self._decided(source, quote, line)
            case stream.Started():
                self._started(source)
            case _:
                return

    def _course(self, attempt: int) -> Course:
        return self._hearing.heard.courses.get(attempt, Course())

    def _note(self, attempt: int, course: Course) -> None:
        self._hearing.heard.courses[attempt] = course

    def _logged(self, source: Source, number: int, text: str) -> bool:
        """A line of `clusterft logs --json`."""
        try:
            body = json.loads(text)
            at, rank, node, said = float(body["at"]), body["rank"], str(body["node"]), str(body["text"])
            attempt = body.get("attempt")
        except (ValueError, KeyError, TypeError):
            return False
        if isinstance(attempt, int):
            self._attempts[source.name] = attempt
            self.attempt = max(self.attempt, attempt)
        self._log(replace(source, node=node), number, rank if isinstance(rank, int) else stream.LAUNCHER, said, at)
        return True

    def _written(self, source: Source, number: int, rank: int) -> tuple[Source, int]:
        """Where a rank's line stands in its own log, of which the stream has every line."""
        if rank == stream.LAUNCHER:
            return source, number
        attempt = self._attempts.get(source.name, 0)
        key = (source.name, attempt, rank)
        self._lines[key] = self._lines.get(key, 0) + 1
        name = f"logs/attempt-{attempt}/{source.node}/rank{rank}.log"
        self._attempts[name] = attempt
        return self._of(replace(source, name=name), rank), self._lines[key]

    def _log(self, source: Source, number: int, rank: int, text: str, at: float) -> None:
        shown = lines.tidy(text)
        line = replace(lines.peel(shown, source.year), at=at, node="", kernel=False)
        who = None if rank == stream.LAUNCHER else rank
        self._hearing.say(self._of(source, who), number, line)

    def _progress(self, source: Source, quote: Quote, rank: int, record: progress.Record) -> None:
        if isinstance(record, progress.Failed):
            shown = Quote(quote.where, f"failed ({record.failure}): {record.message}")
            told = Told(record.failure, record.message, record.remedy, shown, source.node, rank, record.at, 0)
            self._tell(source, shown, told)
        elif isinstance(record, progress.Done):
            self._hearing.heard.done = True

    def _died(self, source: Source, quote: Quote, line: stream.RankDied) -> None:
        shown = Quote(quote.where, f"rank {line.rank} (pid {line.pid}) ended: {line.code}")
        of = self._of(source, line.rank)
        self._hearing.heard.ends.append(
            End(line.code, shown, of, source.node, rank=line.rank, pid=line.pid, at=line.at)
        )

    def _decided(self, source: Source, quote: Quote, line: stream.Decided) -> None:
        self._note(line.attempt, replace(self._course(line.attempt), again=line.again, why=line.why))
        if line.failure:
            told = Told(line.failure, line.cause, "", quote, line.node, line.rank, line.at, 0, gang=True)
            self._tell(source, quote, replace(told, again=line.again), attempt=line.attempt)

    def _started(self, source: Source) -> None:
        """Of a run that was resumed, its earlier life has said its last word before."""
        attempt = self._attempts.get(source.name)
        if self._hearing.heard.ended.pop(source.node, None) and attempt is not None:
            self._note(attempt, replace(self._course(attempt), resumed=True))

    def _tell(self, source: Source, quote: Quote, told: Told, attempt: int | None = None) -> None:
        shown = quote if quote.text else Quote(quote.where, f"{told.failure}: {told.text}")
        attempt = self._attempts.get(source.name) if attempt is None else attempt
        self._hearing.heard.told.append(replace(told, quote=shown, attempt=attempt))

    def _of(self, source: Source, rank: int | None) -> Source:
        attempt = self._attempts.get(source.name, 0)
        key = (f"{source.name}\0{source.node}", rank, attempt)
        found = self._sources.get(key)
        if found is None:
            found = self._sources[key] = replace(source, rank=rank, attempt=attempt)
        return found
