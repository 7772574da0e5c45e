"""The first cause of an attempt's end, from what all nodes report of it. Pure.

A specific cause outranks the echoes on other ranks (connection closed by peer); among equals, what the head heard
first wins, since clocks differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterft_trainer.supervisor.messages import Report, Sign
from clusterft_trainer.supervisor.policy import INTERRUPTED
from clusterft_trainer.supervisor.signs import ECHO

_VAGUE = ("bug", "rendezvous", ECHO)  # what a rank may also say because of another's end


@dataclass(frozen=True, slots=True)
class Cause:
    """What ended an attempt."""

    failure: str
    text: str
    node: str = ""
    rank: int | None = None


def first(reports: Mapping[str, Report], of_the_gang: Sequence[Cause]) -> Cause:
    """From reports by node, in the order of their arrival, and what the head itself saw happen to members."""
    signs = [(node, sign) for node, report in reports.items() for sign in report.signs]
    ranked = (
        _pick(signs, "said", but=_VAGUE),
        of_the_gang[0] if of_the_gang else None,
        _pick(signs, "signal", only=("killed", "host-oom")),
        _pick(signs, "signal", but=(ECHO,)),
        _pick(signs, "said", but=(ECHO,)),
        _pick(signs, "log", but=(ECHO,)),
        _pick(signs, "launcher", but=(ECHO,)),
        _left(reports),
        _pick(signs, ""),
    )
    found = next((one for one in ranked if one is not None), None)
    return found or Cause("launcher", "no part of it has said why")


def known(report: Report) -> bool:
    """Whether a report alone names a cause that needs nobody else's words."""
    return any(one.source in ("said", "signal") and one.failure not in _VAGUE for one in report.signs)


def _pick(
    signs: Sequence[tuple[str, Sign]], source: str, *, but: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> Cause | None:
    for node, sign in signs:
        if source in ("", sign.source) and sign.failure not in but and (not only or sign.failure in only):
            where = f" on {node}" if sign.source != "said" else ""
            text = sign.text if not where else _placed(sign.text, where)
            return Cause(sign.failure, text, node, sign.rank)
    return None


def _placed(text: str, where: str) -> str:
    """`rank 3 was ended by SIGKILL` becomes `rank 3 on gpu1 was ended by SIGKILL`."""
    words = text.split(" ", 2)
    if words[0] == "rank" and len(words) == 3:
        number, colon = words[1].rstrip(":"), ":" if words[1].endswith(":") else ""
        return f"rank {number}{where}{colon} {words[2]}"
    if text.startswith("the launcher "):
        return f"the launcher{where} {text.removeprefix('the launcher ')}"
    return text + where


def _left(reports: Mapping[str, Report]) -> Cause | None:
    """All launchers ended well, and nobody finished: the ranks saved and left, since one of them was told to."""
    if any(report.code for report in reports.values()):
        return None
    return Cause(INTERRUPTED, "the ranks saved and ended, as one of their machines asked them to")
