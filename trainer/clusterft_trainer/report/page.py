"""The page: its parts put together, with style and script inside. Pure but for its own two files beside it.

Owns the frame. The page may reach nothing: its policy allows no network, and of scripts its own one alone, by
hash.
"""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clusterft_trainer.report import words
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Markup, el, join
from clusterft_trainer.report.pictures import Gallery
from clusterft_trainer.report.sections.head import head
from clusterft_trainer.report.sections.kept import kept
from clusterft_trainer.report.sections.learning import learning
from clusterft_trainer.report.sections.nodes import nodes
from clusterft_trainer.report.sections.notes import notes, unread
from clusterft_trainer.report.sections.plan import plan
from clusterft_trainer.report.sections.samples import samples
from clusterft_trainer.report.sections.story import story

_HERE = Path(__file__).parent
_LINKS = {
    "learning": "Learning",
    "pictures": "Pictures",
    "time": "Time",
    "kept": "Checkpoints",
    "nodes": "Nodes",
    "plan": "Plan",
    "notes": "Notices",
    "unread": "Not read",
}


def render(judged: Judged, gallery: Gallery, libraries: dict[str, str], made: float) -> str:
    """The whole document."""
    broken: list[str] = []
    made_of: dict[str, Callable[[], Markup | None]] = {
        "learning": partial(learning, judged),
        "pictures": partial(samples, judged, gallery),
        "time": partial(story, judged),
        "kept": partial(kept, judged),
        "nodes": partial(nodes, judged),
        "plan": partial(plan, judged, libraries),
        "notes": partial(notes, judged),
    }
    top = _part(broken, "head", partial(head, judged)) or el("h1", judged.account.folder.name)
    parts = {name: _part(broken, name, work) for name, work in made_of.items()}
    parts["unread"] = unread([*broken, *judged.account.unread, *gallery.problems])
    there = [(key, part) for key, part in parts.items() if part is not None]
    body = el(
        "main",
        top,
        el("nav", *(el("a", _LINKS[key], href=f"#{key}") for key, _ in there)) if len(there) > 1 else None,
        *(part for _, part in there),
        el("footer", _footer(judged, made)),
    )
    return f"<!doctype html>\n{_document(judged.run, body)}\n"


def _part(broken: list[str], name: str, work: Callable[[], Markup | None]) -> Markup | None:
    """One part of the page. A bug in it must not cost the others: it is told there, and in full to stderr."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever a run directory holds, the page comes
        traceback.print_exc()
        broken.append(f"the part '{name}' of this page: a bug ({type(error).__name__}: {error}); please report it")
        return None


def _document(title: str, body: Markup) -> Markup:
    style, script = Markup(_own("page.css")), Markup(_own("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    top = join(
        (
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=policy),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", f"{title} · clusterft"),
            el("style", style),
        )
    )
    return el("html", el("head", top), el("body", body, el("script", script)), lang="en")


def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _footer(judged: Judged, made: float) -> str:
    lines = sum(node.log_lines for node in judged.account.nodes.values())
    logs = f" {words.plural(lines, 'log line')} in logs/." if lines else ""
    return f"Made by clusterft from {judged.account.folder.name}/ on {words.moment(made)}. Times are UTC.{logs}"
