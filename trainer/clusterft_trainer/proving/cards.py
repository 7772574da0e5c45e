"""One card at work: matrix products for a few seconds, and what the card says of itself meanwhile.

The card's own clock times the products, and it is kept at work until nvidia-smi has answered, which takes seconds
on some machines: else the wait would count as work, and the answer be one of an idle card. On a CPU a small
product, which proves the way and no more.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from clusterft_trainer.proving.forks import Tell

_SIDE = 8192  # of a product that fills any card
_WARM, _MEASURED = 2.0, 3.0  # seconds; some cards tell their power as the mean of the last second
_SAMPLES = 3
_CHUNK = 0.1  # seconds of products that are handed over at once
_SMALL, _SHORT = 384, 0.3
_ASK = 3.0  # seconds for nvidia-smi; one that is slower is asked no more
_QUERY = "power.draw,enforced.power.limit,utilization.gpu"
_LAUNCHES = 2000


def run(given: dict[str, Any], tell: Tell) -> None:
    """One slot."""
    import torch

    time.sleep(float(given.get("wait", 0.0)))  # some power supplies trip when all cards wake at once
    if not given["cuda"]:
        side, seconds, count = _SMALL, *_cpu()
        tell({"stage": "done", "flops": 2 * side**3 * count / seconds, "name": "cpu"})
        return
    card = int(given["card"])
    torch.cuda.set_device(card)
    known = torch.cuda.get_device_properties(card)
    tell({"stage": "work"})
    work = Products(torch.bfloat16 if known.major >= 8 else torch.float16 if known.major >= 7 else torch.float32)
    found = measured(work, lambda: Question(f"GPU-{getattr(known, 'uuid', '')}"))
    tell(
        {
            "stage": "done",
            "name": known.name,
            "flops": 2 * _SIDE**3 / found.each,
            "samples": found.samples,
            "unasked": found.unasked,
            "launch": _launch(),
        }
    )


class Mark(Protocol):
    """A place in the order of what a card was given to do; torch's event."""

    def synchronize(self) -> None:
        """Wait until the card has come to it."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds of the card from here to there."""


class Work(Protocol):
    """What keeps a card at work."""

    def give(self, count: int) -> Any:
        """So many products more; the mark behind them."""


class Asked(Protocol):
    """A question to the driver, and what became of it."""

    sample: list[float] | None  # watts, watts at most, utilisation in per cent
    late: bool

    def over(self) -> bool:
        """Whether it was answered, or given up."""


@dataclass(frozen=True)
class Measured:
    """What a card did."""

    each: float  # seconds of a product
    samples: list[list[float]]
    unasked: str  # why there are no more samples


def measured(work: Work, ask: Callable[[], Asked], now: Callable[[], float] = time.monotonic) -> Measured:
    """A warm card's products, timed in turns, each with a question to the driver as long as it answers in time."""
    first, _ = _turn(work, 1, 2)
    each, _ = _turn(work, 2, chunk(first))
    until = now() + _WARM
    while now() < until:
        each, _ = _turn(work, chunk(each))
    took: list[float] = []
    samples: list[list[float]] = []
    unasked = ""
    until = now() + _MEASURED
    while now() < until or len(took) < _SAMPLES:
        each, asked = _turn(work, chunk(each), least=5, ask=None if unasked else ask)
        took.append(each)
        if asked is not None and asked.sample is not None:
            samples.append(asked.sample)
        if asked is not None and asked.late:
            unasked = f"nvidia-smi gave no answer within {_ASK:g} s while the card worked"
    return Measured(statistics.median(took), samples, unasked)


def chunk(each: float) -> int:
    """Products that are handed over at once: as many as the host can be sure to stay ahead of the card with."""
    return max(1, math.ceil(_CHUNK / each))


def _turn(
    work: Work, count: int, least: int = 1, ask: Callable[[], Asked] | None = None
) -> tuple[float, Asked | None]:
    """(seconds of a product, the question): at least so many chunks, and more until the driver has answered.

    A chunk is always waiting behind the one that runs, so the card is at work whenever an answer comes.
    """
    begun = running = work.give(count)
    asked = ask() if ask else None
    given = 0
    while True:
        waiting = work.give(count)
        given += 1
        running.synchronize()
        if given >= least and (asked is None or asked.over()):
            break
        running = waiting
    waiting.synchronize()
    return begun.elapsed_time(waiting) / 1000 / (given * count), asked


class Products:
    """Large matrix products on the current card."""

    def __init__(self, numbers: Any) -> None:
        import torch

        self._left = torch.randn(_SIDE, _SIDE, device="cuda", dtype=numbers)
        self._right = torch.randn(_SIDE, _SIDE, device="cuda", dtype=numbers)

    def give(self, count: int) -> Mark:
        """Hand them over."""
        import torch

        for _ in range(count):
            self._left @ self._right
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


class Question:
    """nvidia-smi, running beside the work."""

    def __init__(self, uuid: str) -> None:
        self.sample: list[float] | None = None
        self.late = False
        self._until = time.monotonic() + _ASK
        argv = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        self._child: subprocess.Popen[str] | None = None
        try:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return  # there is no such program, so there is no sample

    def over(self) -> bool:
        """Whether it was answered, or given up; nothing waits for one that cannot be killed."""
        if self._child is None:
            return True
        if self._child.poll() is None:
            self.late = time.monotonic() >= self._until
            if self.late:
                self._child.kill()
                self._child = None
            return self.late
        said, _ = self._child.communicate()
        self.sample, self._child = read(said), None
        return True


def read(said: str) -> list[float] | None:
    """What nvidia-smi says; None where a figure is not known."""
    try:
        draw, limit, used = (float(word) for word in said.split(","))
    except ValueError:
        return None
    return [draw, limit, used]


def _cpu() -> tuple[float, int]:
    """(seconds, products)."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(_SMALL, _SMALL), torch.randn(_SMALL, _SMALL)
    left @ right
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SHORT or count < 2:
        left @ right
        count += 1
    return time.perf_counter() - began, count


def _launch() -> float:
    """Seconds that this host takes to start one small kernel."""
    import torch

    one = torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_LAUNCHES):
        one.add_(1.0)
    spent = time.perf_counter() - began
    torch.cuda.synchronize()
    return spent / _LAUNCHES
