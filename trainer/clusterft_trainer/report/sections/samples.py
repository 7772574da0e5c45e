"""Pictures of fixed prompts over time: a row for each prompt, a column for each moment. Pure."""

from __future__ import annotations

from clusterft_trainer.report import loose, words
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Markup, el, link
from clusterft_trainer.report.masking import mask
from clusterft_trainer.report.pictures import Gallery, Sheet, cells
from clusterft_trainer.report.sections import section

_EDGE = 0.7  # pixels left out all around: scaling mixes the ground between two pictures into them
_MOST_NAMED = 200
_MOST_PROMPT = 600  # characters


def prompts(judged: Judged) -> list[str]:
    """The prompts, in the order in which they lie on a sheet."""
    return loose.texts(judged.settings, "samples", "prompts")


def samples(judged: Judged, gallery: Gallery) -> Markup | None:
    """The whole section."""
    if not gallery.sheets and not gallery.left_out:
        return None
    asked = prompts(judged)
    cut = [cells(sheet, len(asked)) for sheet in gallery.sheets]
    if asked and all(cut):
        shown = [_store(gallery), *(_prompt(gallery, asked[i], i, cut) for i in range(len(asked)))]
    else:
        shown = [el("div", *(_whole(sheet) for sheet in gallery.sheets), class_="sheets")]
    return section("pictures", "Pictures", *shown, _rest(gallery))


def _store(gallery: Gallery) -> Markup:
    """Each sheet once; the cells below show parts of it."""
    sheets = (
        el("image", id=f"sheet{i}", href=sheet.url, width=sheet.width, height=sheet.height)
        for i, sheet in enumerate(gallery.sheets)
    )
    return el("svg", el("defs", *sheets), class_="store", width=0, height=0, aria_hidden="true")


def _prompt(gallery: Gallery, asked: str, number: int, cut: list[list[tuple[int, int, int, int]]]) -> Markup:
    shown = (_cell(sheet, i, cut[i][number], asked) for i, sheet in enumerate(gallery.sheets))
    words_of = asked if len(asked) <= _MOST_PROMPT else asked[:_MOST_PROMPT] + " …"
    return el("div", el("h3", mask(words_of)), el("div", *shown, class_="pictures"), class_="prompt")


def _cell(sheet: Sheet, number: int, place: tuple[int, int, int, int], asked: str) -> Markup:
    left, top, width, height = place
    picture = el(
        "svg",
        el("use", href=f"#sheet{number}"),
        viewBox=f"{left + _EDGE} {top + _EDGE} {width - 2 * _EDGE} {height - 2 * _EDGE}",
        role="img",
        aria_label=f"{asked[:_MOST_PROMPT]}, {_step(sheet)}",
    )
    return el("figure", link(f"samples/{sheet.name}", picture), el("figcaption", _step(sheet)))


def _whole(sheet: Sheet) -> Markup:
    picture = el("img", src=sheet.url, alt=f"samples, {_step(sheet)}", loading="lazy")
    return el("figure", link(f"samples/{sheet.name}", picture), el("figcaption", _step(sheet)))


def _step(sheet: Sheet) -> str:
    return sheet.name if sheet.step is None else f"step {words.count(sheet.step)}"


def _rest(gallery: Gallery) -> Markup | None:
    left = gallery.left_out
    if not left:
        return None
    named = [el("li", link(f"samples/{name}", name)) for name in left[:_MOST_NAMED]]
    more = len(left) - len(named)
    title = f"{words.plural(len(left), 'more sheet')} in samples/"
    tail = el("li", f"and {more} more") if more else None
    return el("details", el("summary", title), el("ul", *named, tail, class_="names"))
