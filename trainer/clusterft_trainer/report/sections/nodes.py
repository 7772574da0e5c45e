"""How busy the nodes were: a strip for each card, then a few small charts a node. Pure."""

from __future__ import annotations

from clusterft_trainer.report import chart, strip, words
from clusterft_trainer.report.account import CardUse, NodeUse
from clusterft_trainer.report.chart import Axis, Chart, Mark, Series
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Markup, el, table
from clusterft_trainer.report.sections import section
from clusterft_trainer.report.thinning import Row, Span, Trace, finite
from clusterft_trainer.report.words import Unit

_COLUMNS = 150
_STRIP = 240
_MOST_OPEN = 4  # nodes whose charts are shown at once; those of the others are opened by hand
_MOST_NODES = 64


def nodes(judged: Judged) -> Markup | None:
    """The whole section."""
    known = [node for _, node in sorted(judged.account.nodes.items()) if len(node.cpu)]
    if not known or judged.began is None or judged.ended is None:
        return None
    axis = chart.time_axis(judged.ended - judged.began)
    shown = known[:_MOST_NODES]
    blocks = [_block(judged, node, axis, open_=number < _MOST_OPEN) for number, node in enumerate(shown)]
    more = len(known) - len(shown)
    note = el("p", f"{more} more nodes are left out.", class_="note") if more else None
    return section("nodes", "Nodes", _strips(judged, shown, axis), _cards(shown), *blocks, note)


def _strips(judged: Judged, known: list[NodeUse], axis: Axis) -> Markup:
    """All cards of the cluster at a glance; the processors where there are no cards."""
    with_cards = any(node.cards for node in known)
    rows = []
    for node in known:
        traces = [card.use for _, card in sorted(node.cards.items())] if with_cards else [node.cpu]
        cells = [_cells(trace, axis, judged.began or 0.0) for trace in traces]
        what = f"{node.name}, {'cards' if with_cards else 'processors'} in use over time"
        rows.append(el("div", el("span", node.name, class_="name"), strip.draw(cells, what), class_="row"))
    ticks = (
        el("span", label, class_="minor" if n % 2 else None, style=f"left:{axis.place(v):.2%}")
        for n, (v, label) in enumerate(axis.ticks)
    )
    key = el("span", "idle", el("i", class_="ramp"), "busy", class_="legend")
    title = "Cards in use" if with_cards else "Processors in use"
    return el(
        "figure",
        el("figcaption", el("b", title), key),
        el("div", *rows, el("div", *ticks, class_="x", aria_hidden="true"), class_="timeline strips"),
        class_="chart",
    )


def _cells(trace: Trace, axis: Axis, origin: float) -> list[float | None]:
    """Mean use in each cell of a strip; None where nothing was told."""
    sums, counts = [0.0] * _STRIP, [0] * _STRIP
    row = trace.row(_STRIP, origin)
    previous: int | None = None
    for span in row:
        if span is None:
            previous = None
            continue
        cell = min(_STRIP - 1, int(axis.place(span.x) * _STRIP))
        # A line every ten seconds may be rarer than cells: the value holds until the next one.
        for i in range(cell if previous is None else min(previous + 1, cell), cell + 1):
            sums[i] += span.mean
            counts[i] += 1
        previous = cell
    return [total / many if many else None for total, many in zip(sums, counts, strict=True)]


def _cards(known: list[NodeUse]) -> Markup | None:
    """A line for each card: stragglers, hot ones and full ones stand out."""
    rows = [
        (
            node.name if number == 0 else "",
            str(index),
            words.share(card.use.mean),
            _memory(card),
            _degrees(card.temperature),
            _watts(card.power),
        )
        for node in known
        for number, (index, card) in enumerate(sorted(node.cards.items()))
    ]
    head = ("Node", "Card", "Use, mean", "Memory, most", "Temperature, most", "Power, mean and most")
    if not rows:
        return None
    return el("details", el("summary", "Each card in figures"), table(head, rows, "cards"))


def _memory(card: CardUse) -> str:
    of = f" of {words.size(card.memory_total)}" if card.memory_total else ""
    return words.size(card.memory.highest) + of


def _degrees(trace: Trace) -> str:
    return words.NONE if trace.highest is None else words.spell(trace.highest, "degrees")


def _watts(trace: Trace) -> str:
    if trace.mean is None or trace.highest is None:
        return words.NONE
    return f"{words.spell(trace.mean, 'watts')} · {words.spell(trace.highest, 'watts')}"


def _block(judged: Judged, node: NodeUse, axis: Axis, *, open_: bool) -> Markup:
    origin = judged.began or 0.0
    marks = tuple(
        Mark(one.began - origin, f"attempt {one.number}")
        for one in judged.attempts[1:]
        if one.began is not None and node.name in one.nodes
    )
    charts = _of_cards(node, origin) if node.cards else []
    drawn = [
        chart.draw(Chart(t, s, axis, y, marks, size="small")) for t, s, y in [*charts, *_of_host(node, origin)]
    ]
    beside = el("small", _beside(node))
    return el(
        "details", el("summary", el("b", node.name), " ", beside), chart.grid(drawn), open="" if open_ else None
    )


def _beside(node: NodeUse) -> str:
    parts = [words.plural(len(node.cards), "card")] if node.cards else []
    parts.append(f"{words.size(node.memory_total)} of memory")
    if node.starts > 1:
        parts.append(f"its supervisor was brought back {words.plural(node.starts - 1, 'time')}")
    if node.ended is not None and node.ended.problem:
        parts.append(f"logs: {node.ended.problem}")
    return " · ".join(parts)


Drawn = tuple[str, tuple[Series, ...], Axis]


def _of_host(node: NodeUse, origin: float) -> list[Drawn]:
    cpu = _row(node.cpu, origin)
    memory = _row(node.memory, origin, 1 / node.memory_total if node.memory_total else 1.0)
    sent, received = _row(node.sent, origin), _row(node.received, origin)
    host = (Series("processors", cpu, "s1", unit="share"), Series("memory", memory, "s2", unit="share"))
    net = (Series("sent", sent, "s1", unit="rate"), Series("received", received, "s3", unit="rate"))
    return [
        ("Host", host, chart.share_axis()),
        ("Network, bytes/s", net, chart.value_axis([sent, received], "rate")),
    ]


def _row(trace: Trace, origin: float, scale: float = 1.0) -> Row:
    return [
        None if s is None else Span(s.x, s.mean * scale, s.low * scale, s.high * scale)
        for s in trace.row(_COLUMNS, origin)
    ]


def _of_cards(node: NodeUse, origin: float) -> list[Drawn]:
    cards = [card for _, card in sorted(node.cards.items())]
    total = max((card.memory_total for card in cards), default=0)
    memory = _together([card.memory for card in cards], origin)
    share: Row = [None if s is None or not total else Span(s.x, *(v / total for v in s[1:])) for s in memory]
    use = _together([card.use for card in cards], origin)
    found: list[Drawn] = []
    for title, row in (("Card use", use), ("Card memory", share)):
        if finite(row):
            found.append((title, (Series("mean of the cards", row, "s1", "band", "share"),), chart.share_axis()))
    found += _single("Card temperature, °C", [card.temperature for card in cards], origin, "degrees")
    found += _single("Card power, W", [card.power for card in cards], origin, "watts")
    return found


def _single(title: str, traces: list[Trace], origin: float, unit: Unit) -> list[Drawn]:
    row = _together(traces, origin)
    if not finite(row):
        return []
    return [(title, (Series("mean of the cards", row, "s4", "band", unit),), chart.value_axis([row], unit))]


def _together(traces: list[Trace], origin: float) -> Row:
    """Several cards as one band: their mean, the least and the greatest. They are told of in the same lines."""
    rows = [row for trace in traces if (row := trace.row(_COLUMNS, origin))]
    if not rows:
        return []
    longest = max(rows, key=len)
    by_x: dict[float, list[Span]] = {}
    for row in rows:
        for span in finite(row):
            by_x.setdefault(span.x, []).append(span)
    return [None if span is None else _joined(by_x[span.x]) for span in longest]


def _joined(spans: list[Span]) -> Span:
    means = [span.mean for span in spans]
    return Span(spans[0].x, sum(means) / len(means), min(means), max(means))
