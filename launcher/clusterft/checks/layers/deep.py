"""What collectives, cards at work and a saved checkpoint say: the checks of `doctor --deep`.

Network and shared dir have cheaper checks of their own, which come first; where they have found something, these
are not believed.
"""

from __future__ import annotations

from clusterft.checks.check import Check
from clusterft.checks.work import exchange, pace, saved, unmet

_NETWORK = ("net.", "nccl.")

CHECKS: tuple[Check, ...] = (
    Check(("run.straggler",), unmet.ranks, reads=("facts", "deep"), after=_NETWORK),
    Check(("run.straggler",), exchange.slow, reads=("facts", "deep"), after=_NETWORK),
    Check(("run.straggler",), exchange.fallen, reads=("facts", "deep"), after=_NETWORK),
    Check(("run.straggler",), exchange.inside, reads=("facts", "deep"), cuda=True),
    Check(("run.straggler",), pace.slow_cards, reads=("facts", "deep"), cuda=True),
    Check(("run.host-bound",), pace.starved, reads=("facts", "deep"), cuda=True),
    Check(("gpu.p2p",), pace.no_direct_copies, reads=("facts", "deep"), cuda=True),
    Check(("ckpt.latest", "ckpt.race"), saved.through_the_share, reads=("facts", "deep"), after=("fs.", "net.")),
)
