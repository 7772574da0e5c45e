"""What launchers say of the processes that they started and that ended: codes, ranks, pids, times. Pure."""

from __future__ import annotations

import ast
import re
import signal
from dataclasses import dataclass, field

from clusterft.diagnosis import lines
from clusterft.diagnosis.heard import End, Quote, Source

# Their own tracebacks say nothing of a cause.
LAUNCHERS = re.compile(
    r"(torch\.distributed\.elastic\.\S*)?ChildFailedError|subprocess\.CalledProcessError|CalledProcessError|"
    r"torch\.distributed\.elastic\.multiprocessing\.api\.SignalException|RendezvousGracefulExitError"
)
_ROW = re.compile(r"\s+(time|host|rank|exitcode|error_file|traceback)\s*: ?(.*)")
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
_DEEPSPEED = re.compile(r"\[sigkill_handler\]|(?:local_rank=(\d+).*)?exits with return code = (-?\d+)")
_SPAWNED = re.compile(r"process (\d+) spawned with command: .*local_rank=(\d+)")
_GOT = re.compile(r"SignalException: Process (\d+) got signal: (\d+)")
_DIED = re.compile(r"died with <Signals\.(SIG[A-Z0-9]+): (\d+)>")
_RETURNED = re.compile(r"returned non-zero exit status (\d+)")
_SHELL = re.compile(
    r"(?:\S+: line \d+: +(\d+) +)?(Killed|Segmentation fault|Bus error|Aborted|Terminated|Hangup)\b"
)
_SHELL_CODES = {"Killed": 9, "Segmentation fault": 11, "Bus error": 7, "Aborted": 6, "Terminated": 15, "Hangup": 1}
_MAPPING = re.compile(r"global_rank_mapping=defaultdict\(<class 'list'>, (\{.*?\})\)")
NAMES = {int(number): number.name for number in signal.Signals}


@dataclass(slots=True)
class Launcher:
    """What one source's launcher has said so far."""

    source: Source
    row: dict[str, str] = field(default_factory=dict)
    rows: list[Quote] = field(default_factory=list)
    root: bool = False
    locals: dict[int, int] = field(default_factory=dict)  # pid -> local rank
    places: dict[str, list[int]] = field(default_factory=dict)

    def take(self, text: str, quote: Quote, node: str, at: float | None) -> End | None:
        """The end that this line tells of."""
        if text.startswith("Root Cause (first observed failure)"):
            self.root = True
        elif text.startswith("Failures:"):
            self.root = False
        row = _ROW.match(text)
        if row:
            return self._table(row[1], row[2].strip(), quote, node)
        return self._line(text, quote, node, at)

    def _table(self, key: str, value: str, quote: Quote, node: str) -> End | None:
        """torchrun's summary, a line each."""
        if key == "time":
            self.row, self.rows = {}, []
        self.row[key] = value
        if key in ("rank", "exitcode", "traceback"):
            self.rows.append(quote)
        if key != "traceback" or "exitcode" not in self.row:
            return None
        rank = re.match(r"(\d+) \(local_rank: (\d+)\)", self.row.get("rank", ""))
        code = re.match(r"(-?\d+) \(pid: (\d+)\)", self.row["exitcode"])
        if code is None:
            return None
        when = lines.peel(self.row.get("time", ""), self.source.year).at
        return End(
            int(code[1]),
            quote if "Signal" in value else self.rows[-2],
            self.source,
            node,
            rank=int(rank[1]) if rank else None,
            local=int(rank[2]) if rank else None,
            pid=int(code[2]),
            at=when,
            first=self.root,
        )

    def _line(self, text: str, quote: Quote, node: str, at: float | None) -> End | None:
        if hit := _FAILED.search(text):
            return self._end(int(hit[1]), quote, node, at, local=int(hit[2]), pid=int(hit[3]))
        if hit := _SPAWNED.search(text):
            self.locals[int(hit[1])] = int(hit[2])
            return None
        if hit := _MAPPING.search(text):
            self._places(hit[1])
            return None
        if hit := _DEEPSPEED.search(text):
            if hit[2] is None:
                return None
            local = int(hit[1]) if hit[1] else None
            return self._end(int(hit[2]), quote, node, at, local=local)
        if hit := _GOT.search(text):
            return self._end(-int(hit[2]), quote, node, at, pid=int(hit[1]))
        if hit := _DIED.search(text):
            return self._end(-int(hit[2]), quote, node, at)
        if hit := _SHELL.fullmatch(text.split(" python", 1)[0].strip()) or _SHELL.fullmatch(
            text.partition(" (core")[0]
        ):
            return self._end(-_SHELL_CODES[hit[2]], quote, node, at, pid=int(hit[1]) if hit[1] else None)
        if hit := _RETURNED.search(text):
            return self._end(int(hit[1]), quote, node, at)
        return None

    def _places(self, text: str) -> None:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return
        if isinstance(found, dict):
            self.places = {
                str(node): [one for one in ranks if isinstance(one, int)]
                for node, ranks in found.items()
                if isinstance(ranks, list)
            }

    def _end(
        self,
        code: int,
        quote: Quote,
        node: str,
        at: float | None,
        *,
        local: int | None = None,
        pid: int | None = None,
    ) -> End:
        return End(code, quote, self.source, node, local=local, pid=pid, at=at)


def named(code: int) -> str:
    """A code in words."""
    if code < 0:
        return NAMES.get(-code, f"signal {-code}")
    if code > 128 and code - 128 in NAMES:
        return f"{NAMES[code - 128]} (exit code {code})"
    return f"exit code {code}"
