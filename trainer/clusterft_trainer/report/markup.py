"""HTML as values: what comes from files is escaped unless somebody made it Markup on purpose. Pure.

Owns the one way in which text gets onto the page. Refuses characters that HTML cannot hold.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from urllib.parse import quote

# Colours and cursor moves of a terminal, then what no HTML document may hold; lone surrogates cannot be encoded.
_TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_FOREIGN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_EMPTY = frozenset({"br", "hr", "img", "link", "meta", "path", "image", "source", "use"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | float | Iterable[object] | None


def text(value: object) -> Markup:
    """Any value as text that a browser shows as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(plain(str(value))))


def plain(words: str) -> str:
    """Without what a terminal would obey and a page cannot hold."""
    return _FOREIGN.sub("\ufffd", _TERMINAL.sub("", words))


def join(children: Iterable[object]) -> Markup:
    """Children one after the other; None is none."""
    return Markup("".join(_child(child) for child in children))


def _child(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, str) or not isinstance(child, Iterable):
        return text(child)
    return join(child)


def el(tag: str, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` is class, `data_x` is data-x; an attribute that is None is left out."""
    given = "".join(_attribute(name, value) for name, value in attributes.items() if value is not None)
    if tag in _EMPTY:
        return Markup(f"<{tag}{given}>") if tag not in ("path", "image", "use") else Markup(f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{join(children)}</{tag}>")


def _attribute(name: str, value: object) -> str:
    # Camel case and underscores inside are SVG's own; only the prefixes that HTML spells with a hyphen are turned.
    name = re.sub(r"^(data|aria|http)_", r"\1-", name.rstrip("_"))
    # Even what is Markup is escaped here: a quote in it would end the attribute.
    return f' {name}="{html.escape(plain(str(value)))}"'


def link(path: str, *children: Child) -> Markup:
    """A link to a file of the run directory, from the page that lies in it."""
    return el("a", *children, href="./" + quote(path.encode("utf-8", "surrogateescape")))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str | None = None) -> Markup:
    """A table that may be wider than a phone: it scrolls by itself, or its rows become blocks, whose cells say of
    which column they are."""
    names = list(head)
    top = el("tr", *(el("th", name, scope="col") for name in names))
    body = (
        el("tr", *(el("td", cell, data_head=name) for name, cell in zip(names, row, strict=True))) for row in rows
    )
    return el("div", el("table", el("thead", top), el("tbody", *body), class_=class_), class_="scroll")
