"""The loss curve as an SVG picture, from a list of losses. Pure: numbers in, text out.

Owns the drawing, readable on light and dark pages. Refuses dependencies: a plotting library would
be the heaviest import of the trainer.
"""

from __future__ import annotations

import html
import math

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 46, 46
_STYLE = """
  :root { color-scheme: light dark; }
  .page { fill: #ffffff; } text { fill: #1f2933; font: 12px system-ui, sans-serif; }
  .title { font-size: 15px; font-weight: 600; } .grid { stroke: #d8dee4; } .dim { fill: #5f6b7a; }
  .raw { stroke: #9db8e0; } .smooth { stroke: #1d5fbf; } path { fill: none; stroke-linejoin: round; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #14181d; } text { fill: #e4e8ec; } .grid { stroke: #2c343d; } .dim { fill: #98a4b0; }
    .raw { stroke: #35557f; } .smooth { stroke: #6fa8ff; }
  }
"""


def draw(losses: list[float], name: str) -> str:
    """The curve of one run: each step's loss, and its running mean on top."""
    points = [(i + 1, v) for i, v in enumerate(losses) if math.isfinite(v)]
    top = max((v for _, v in points), default=1.0) * 1.05 or 1.0
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>',
        f'<text class="title" x="{_LEFT}" y="26">Training loss of {html.escape(name)}</text>',
    ]
    body += _grid(len(losses), top)
    smooth = _smoothed(points)
    for style, line, width in (("raw", points, 1.0), ("smooth", smooth, 2.2)):
        path = _path(line, max(2, len(losses)), top)
        body.append(f'<path class="{style}" stroke-width="{width}" d="{path}"/>')
    body += _legend(smooth)
    return "\n".join(body) + "\n</svg>\n"


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean over a window of a twentieth of the run, around each point."""
    half = max(1, len(points) // 40)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    out = []
    for i, (step, _) in enumerate(points):
        low, high = max(0, i - half), min(len(points), i + half + 1)
        out.append((step, (sums[high] - sums[low]) / (high - low)))
    return out


def _x(step: float, steps: int) -> float:
    return _LEFT + (step - 1) / (steps - 1) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _path(points: list[tuple[int, float]], steps: int, top: float) -> str:
    return "".join(
        f"{'M' if i == 0 else 'L'}{_x(s, steps):.1f} {_y(v, top):.1f}" for i, (s, v) in enumerate(points)
    )


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 up, four to six of them."""
    raw = top / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw)
    return [step * i for i in range(int(top / step) + 1)]


def _grid(steps: int, top: float) -> list[str]:
    lines = []
    for value in _ticks(top):
        y = _y(value, top)
        lines.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="dim" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    if steps > 1:
        shown = sorted({1, *(s for s in _ticks(float(steps)) if s >= 1 and s == int(s)), steps})
        # the last tick may sit close to the end of the axis: the end wins
        shown = [s for s in shown if s in (1, steps) or steps / 20 < s < steps * 0.95]
        for step in shown:
            x = _x(step, max(2, steps))
            lines.append(
                f'<text class="dim" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{step:g}</text>'
            )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    lines.append(
        f'<text class="dim" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" '
        'text-anchor="middle">optimizer step</text>'
    )
    lines.append(
        f'<text class="dim" transform="translate(16 {middle}) rotate(-90)" '
        'text-anchor="middle">mean squared error</text>'
    )
    return lines


def _legend(smooth: list[tuple[int, float]]) -> list[str]:
    x = _WIDTH - _RIGHT - 216
    last = f"{smooth[-1][1]:.3f}" if smooth else "-"
    return [
        f'<path class="raw" stroke-width="1" d="M{x} 22h20"/>',
        f'<text class="dim" x="{x + 26}" y="26">each step</text>',
        f'<path class="smooth" stroke-width="2.2" d="M{x + 90} 22h20"/>',
        f'<text class="dim" x="{x + 116}" y="26">mean, now {last}</text>',
    ]
