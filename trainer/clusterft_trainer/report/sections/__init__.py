"""The parts of the page, one module each: a Judged account in, Markup or None out. Pure."""

from __future__ import annotations

from clusterft_trainer.report.markup import Child, Markup, el


def section(key: str, title: str, *children: Child) -> Markup:
    """One part of the page, under the name by which the top of the page links to it."""
    return el("section", el("h2", title), *children, id=key)
