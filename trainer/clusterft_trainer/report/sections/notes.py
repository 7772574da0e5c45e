"""What the run said beside its figures: findings of the look beforehand, notices, and what this page could not
read. Pure.
"""

from __future__ import annotations

from clusterft_trainer.report import words
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Child, Markup, el
from clusterft_trainer.report.masking import mask
from clusterft_trainer.report.sections import section
from clusterft_trainer.stream import Found

_SIGNS = {"fail": "✗", "warn": "!"}
_MOST = 100


def notes(judged: Judged) -> Markup | None:
    """Findings and notices."""
    account = judged.account
    found = [_finding(one) for one in account.found[:_MOST]]
    said = sorted(account.notices.values(), key=lambda one: one.at)
    items = [_notice(mask(one.text), sorted(one.nodes), one.times, one.at) for one in said[:_MOST]]
    if not found and not items:
        return None
    return section("notes", "Notices", *found, el("ul", *items, class_="notices") if items else None)


def _finding(one: Found) -> Markup:
    """A finding in the manner of `clusterft doctor`."""
    fixes = [el("pre", mask(line)) for line in one.fix]
    return el(
        "div",
        el(
            "p",
            el("b", _SIGNS.get(one.status, "·"), " ", el("code", one.id)),
            " ",
            el("small", ", ".join(one.nodes)),
        ),
        el("p", mask(one.summary)),
        el("p", mask(one.cause)) if one.cause else None,
        el("pre", mask(one.evidence)) if one.evidence else None,
        *fixes,
        class_=f"finding {one.status}",
    )


def _notice(text: str, nodes: list[str], times: int, at: float) -> Markup:
    often = f", {words.count(times)} times" if times > 1 else ""
    return el("li", text, " ", el("small", f"{', '.join(nodes)}{often}, {words.clock(at)} UTC"))


def unread(problems: list[str]) -> Markup | None:
    """What this page lacks, and why."""
    if not problems:
        return None
    items: list[Child] = [el("li", mask(one)) for one in problems[:_MOST]]
    more = len(problems) - len(items)
    tail = el("li", f"and {more} more") if more > 0 else None
    return section("unread", "What this page could not read", el("ul", *items, tail))
