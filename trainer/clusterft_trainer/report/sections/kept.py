"""What the run leaves: checkpoints and the export. Pure."""

from __future__ import annotations

from clusterft_trainer.report import words
from clusterft_trainer.report.account import Kept
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Child, Markup, el, link, table
from clusterft_trainer.report.sections import section

_MOST = 200


def kept(judged: Judged) -> Markup | None:
    """The whole section."""
    account = judged.account
    written = [one for one in account.saved if one.what == "checkpoint"]
    if not account.checkpoints and not account.exports and not written:
        return None
    return section("kept", "Checkpoints and export", _checkpoints(judged), _gone(judged), _exports(judged))


def _checkpoints(judged: Judged) -> Markup | None:
    took = {one.step: one.seconds for one in judged.account.saved if one.what == "checkpoint"}
    head = ("Step", "Why it is kept", "Held-out loss", "Size", "Written", "Took", "State")
    shown = sorted(judged.account.checkpoints, key=lambda one: -one.step)[:_MOST]
    rows = [
        (
            words.count(one.step),
            [el("span", role, class_="tag") for role in one.roles],
            words.number(judged.held_out.get(one.step)),
            words.size(one.size),
            words.moment(one.written),
            words.duration(took.get(one.step)),
            _state(one),
        )
        for one in shown
    ]
    return table(head, rows, "kept") if rows else None


def _state(one: Kept) -> Child:
    if one.problem:
        return el("span", "✗ ", one.problem, class_="end failed")
    return el("span", "✓ complete", class_="end ok", title="manifest and sizes of all files agree")


def _gone(judged: Judged) -> Markup | None:
    """Rolling checkpoints make room for newer ones: that is as it should be, and told in one line."""
    there = {one.step for one in judged.account.checkpoints}
    written = sorted({one.step for one in judged.account.saved if one.what == "checkpoint"})
    gone = [step for step in written if step not in there]
    if not gone:
        return None
    last = f", the last at step {words.count(gone[-1])}"
    return el(
        "p", f"{words.plural(len(gone), 'more was', 'more were')} written and made room{last}.", class_="note"
    )


def _exports(judged: Judged) -> Markup | None:
    rows = [(link(one.path, el("code", one.path)), words.size(one.size)) for one in judged.account.exports[:_MOST]]
    return table(("Exported", "Size"), rows, "exports") if rows else None
