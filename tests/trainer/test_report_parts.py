"""Proves the parts that a run's page is made of: thinning that loses no outlier, words, ticks, masks, pictures."""

from __future__ import annotations

import math
import random
import struct
import zlib
from pathlib import Path

import pytest

from clusterft_trainer import progress, stream
from clusterft_trainer.report import chart, markup, masking, pictures, strip, words
from clusterft_trainer.report.course import Course
from clusterft_trainer.report.soundness import sound
from clusterft_trainer.report.thinning import Span, Trace, finite, smooth, thin
from trainer import made_run


def test_thinning_keeps_the_lowest_and_the_highest() -> None:
    xs = [float(i) for i in range(50_000)]
    ys = [1.0] * 50_000
    ys[12_345], ys[40_001] = 99.0, -7.0
    row = thin(xs, ys, 600)
    assert len(row) <= 601
    assert max(s.high for s in finite(row)) == 99.0 and min(s.low for s in finite(row)) == -7.0
    near = [s for s in finite(row) if s.high == 99.0]
    assert abs(near[0].x - 12_345) < 100


def test_few_points_stay_as_they_are() -> None:
    assert thin([1.0, 2.0, 3.0], [5.0, 4.0, 3.0], 600) == [Span(1, 5, 5, 5), Span(2, 4, 4, 4), Span(3, 3, 3, 3)]
    assert thin([], [], 600) == []


def test_missing_values_and_missing_steps_leave_a_gap() -> None:
    row = thin([1.0, 2.0, 3.0, 4.0, 50.0, 51.0], [1, math.nan, 1, 1, 1, 1], 600)
    assert [span is None for span in row] == [False, True, False, False, True, False, False]
    steps = [float(i) for i in range(10_000) if not 4_000 <= i < 6_000]
    assert thin(steps, [1.0] * len(steps), 300).count(None) == 1


def test_a_running_mean_passes_over_what_is_no_number() -> None:
    found = smooth([1.0, math.nan, 3.0, math.inf, 5.0], share=1.0)
    assert math.isnan(found[1]) and math.isnan(found[3]) and found[2] == pytest.approx(3.0)


def test_a_trace_is_bounded_and_forgets_neither_peak_nor_mean() -> None:
    trace = Trace()
    values = [math.sin(i / 5_000) for i in range(60_000)]
    values[33_333] = 42.0
    for i, value in enumerate(values):
        trace.add(1e9 + 10.0 * i, value)
    assert len(trace) <= 960 and trace.highest == 42.0
    assert trace.mean == pytest.approx(sum(values) / len(values))
    row = trace.row(150, 1e9)
    assert len(row) <= 152 and None not in row
    assert row[0] is not None and row[-1] is not None
    assert row[0].x < 6_000 and row[-1].x > 594_000


def test_a_trace_takes_values_in_any_order_and_shows_where_there_were_none() -> None:
    seconds = [10.0 * i for i in range(300) if not 100 <= i < 200]
    random.Random(1).shuffle(seconds)
    trace = Trace()
    for at in seconds:
        trace.add(at, at)
    row = trace.row(600, 0.0)
    assert row.count(None) == 1
    assert [s.mean for s in finite(row)] == sorted(seconds)


def test_a_step_that_comes_again_replaces_all_from_there_on() -> None:
    course = Course()
    for number in (1, 2, 3, 4, 3, 4, 5):
        course.add(progress.Step(number, 9, 1, float(number), 1e-4, None, 8.0, 0.0, 10.0 + len(course)))
    assert list(course.column("step")) == [1, 2, 3, 4, 5] and course.repeated == 2
    assert math.isnan(course.column("mfu")[0]) and not course.has("mfu")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.04, "0.0 s"),
        (9.949, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_600, "1 h"),
        (7_505, "2 h 05 min"),
        (86_399.7, "1 d"),
        (273_600, "3 d 4 h"),
        (-5, "-5.0 s"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_durations_in_at_most_two_units(seconds: float | None, told: str) -> None:
    assert words.duration(seconds).replace("\u202f", " ") == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0"), (4e-7, "4e-7"), (1.25e-5, "1.25e-5"), (0.10432, "0.1043"), (15_560.0, "15 560"), (math.inf, "–")],
)
def test_numbers_in_few_digits(value: float, told: str) -> None:
    assert words.number(value).replace("\u202f", " ") == told


@pytest.mark.parametrize(
    ("value", "told"), [(999, "999 B"), (999_600, "1 MB"), (23.7e9, "23.7 GB"), (5e15, "5000 TB")]
)
def test_sizes_in_decimal_units(value: float, told: str) -> None:
    assert words.size(value).replace("\u202f", " ") == told


def test_moments_that_no_calendar_has_are_not_told() -> None:
    assert words.moment(1e300) == words.moment(-1e300) == words.moment(math.nan) == "–"


@pytest.mark.parametrize("high", [1e-9, 0.37, 1.0, 7, 99, 101, 3_118, 1e6, 3.3e12, 1e300])
def test_ticks_are_round_ordered_and_few(high: float) -> None:
    found = words.ticks(0.0, high, 4)
    assert 3 <= len(found) <= 8 and found == sorted(set(found)) and found[0] == 0 and found[-1] <= high * 1.001
    assert 2 <= len(words.clock_ticks(high, 6)) <= 13 or high < 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("WANDB_API_KEY=abc123", "WANDB_API_KEY=***"),
        ('hf_token: "a b c"', "hf_token: ***"),
        ("--api-key s3cr3t --lr 4e-7", "--api-key *** --lr 4e-7"),
        ("https://me:pass@example.org/x", "https://me:***@example.org/x"),
        ("found hf_abcdefghijklmnopqrstuv here", "found *** here"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAA\n", "-----BEGIN OPENSSH PRIVATE KEY-----***"),
        ("captions: {tokens: 75, keep: 1}", "captions: {tokens: 75, keep: 1}"),
        ("secrets: [WANDB_API_KEY]", "secrets: [WANDB_API_KEY]"),
        ("tokenizers: /models/clip", "tokenizers: /models/clip"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masking.mask(text) == shown


def test_a_secret_in_the_word_after_its_option_is_masked() -> None:
    assert masking.mask_argv(["x.py", "--token", "abc", "--tokens", "7", "--password=q"]) == [
        "x.py",
        "--token",
        "***",
        "--tokens",
        "7",
        "--password=***",
    ]
    assert masking.mask_value("NCCL_AUTH", "x") == "***" and masking.mask_value("NCCL_DEBUG", "INFO") == "INFO"


def test_text_is_escaped_everywhere_and_markup_is_not() -> None:
    inner = markup.el("b", "a < b")
    made = markup.el("p", inner, ' & "c"', title='"><i>', data_x=inner)
    assert made == (
        '<p title="&quot;&gt;&lt;i&gt;" data-x="&lt;b&gt;a &amp;lt; b&lt;/b&gt;">'
        "<b>a &lt; b</b> &amp; &quot;c&quot;</p>"
    )
    assert markup.link("logs/a b/#1?.log", "x") == '<a href="./logs/a%20b/%231%3F.log">x</a>'


def test_records_that_hold_something_else_are_not_sound() -> None:
    usage = stream.Usage(1.0, 0.5, 1, 2, 3.0, 4.0, (stream.Card(0, None, 1, 2, None, 3.0),))
    assert sound(usage) and sound(stream.RankDied(0, -9, 1, 2.0))
    assert not sound(stream.Usage(1.0, 0.5, 1, 2, 3.0, 4.0, (stream.Card(0, "x", 1, 2, None, 3.0),)))  # type: ignore[arg-type]
    assert not sound(stream.Log(0, "x", math.nan)) and not sound(stream.Log(True, "x", 1.0))
    step = progress.Step(1, 2, 1, math.nan, 1e-4, None, 8.0, 0.0, 1.0)
    assert sound(stream.Progress(0, step)) and not sound(stream.Progress(0, progress.Notice(7, 1.0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [2, 15, 115, 300, 1050, 11_500, 105_000, 1_150_000])
@pytest.mark.parametrize("small", [False, True])
def test_labels_of_steps_stay_apart(last: int, small: bool) -> None:
    axis = chart.step_axis(1, last, small=small)
    wide, digit = 225.0, 6.4  # pixels: of the narrowest plane, of a digit of the page's font
    first, *between, end = [(axis.place(value) * wide, len(label) * digit) for value, label in axis.ticks]
    assert axis.ticks[0][0] == 1 and axis.ticks[-1][0] == last  # the ends are named whatever is between them
    for place, width in between:
        assert first[1] + 6 < place - width / 2 and place + width / 2 + 6 < wide - end[1], axis.ticks
    drawn = chart.draw(chart.Chart("Steps", (), axis, chart.value_axis([], "number")))
    assert "</span><span" not in drawn.partition('class="x"')[2]  # read as text, they are words of their own


def test_a_chart_without_any_value_is_drawn() -> None:
    axis = chart.time_axis(0.0)
    drawn = chart.draw(chart.Chart("Nothing", (), axis, chart.value_axis([], "number")))
    assert "No values" in drawn and "nan" not in drawn
    flat = [Span(0.0, 5.0, 5.0, 5.0)]
    for value in (0.0, 5.0, -3.0, 1e-320, 1e308):
        made = chart.value_axis([[Span(0.0, value, value, value)]], "number")
        assert made.low < made.high, value
    assert "M0.0" in chart.draw(
        chart.Chart("One", (chart.Series("x", flat, "s1"),), axis, chart.value_axis([flat], "number"))
    )


def test_a_strip_is_a_picture_with_a_see_through_cell_where_nothing_is_known() -> None:
    raw = strip.png([[0.0, None, 1.0]], ((0, 0, 0), (200, 200, 200)))
    assert raw.startswith(b"\x89PNG") and struct.unpack(">II", raw[16:24]) == (3, 12)
    start = raw.index(b"IDAT")
    (length,) = struct.unpack(">I", raw[start - 4 : start])
    assert zlib.decompress(raw[start + 4 : start + 4 + length])[:4] == bytes([0, 1, 0, 101])


def _samples(folder: Path, count: int, side: int = 16) -> list[str]:
    names = [f"step-{i:08d}.png" for i in range(1, count + 1)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(made_run.sheet(side, number))
    return names


def test_the_first_the_last_and_an_even_choice_of_pictures_are_shown(tmp_path: Path) -> None:
    names = _samples(tmp_path, 40)
    found = pictures.gather(tmp_path, names, 4)
    steps = [sheet.step or 0 for sheet in found.sheets]
    assert len(steps) == 8 and steps == sorted(steps) and (steps[0], steps[-1]) == (1, 40)
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) <= 7
    assert len(found.left_out) == 32 and not found.problems


def test_pictures_stay_within_their_budget_and_the_last_comes_first(tmp_path: Path) -> None:
    names = _samples(tmp_path, 10)
    one = len(pictures.gather(tmp_path, names[:1], 4).sheets[0].url)
    found = pictures.gather(tmp_path, names, 4, budget=int(one * 2.5))
    assert [sheet.step for sheet in found.sheets] == [1, 10]
    assert sum(len(sheet.url) for sheet in found.sheets) <= one * 2.5 and len(found.left_out) == 8


def test_a_picture_that_is_cut_short_is_named_and_another_shown(tmp_path: Path) -> None:
    names = _samples(tmp_path, 3)
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:-20])
    (tmp_path / names[1]).write_text("no picture")
    found = pictures.gather(tmp_path, names, 4)
    assert [sheet.step for sheet in found.sheets] == [1]
    assert [problem.split(": ")[1] for problem in found.problems] == ["it is cut short", "it is no PNG"]


@pytest.mark.parametrize("prompts", range(1, 17))
def test_each_prompts_picture_is_found_on_a_sheet_as_the_sampler_lays_it_out(prompts: int) -> None:
    columns = math.ceil(math.sqrt(prompts))
    rows = math.ceil(prompts / columns)
    sheet = pictures.Sheet("s.png", 1, columns * 68 + 4, rows * 36 + 4, "", False)
    found = pictures.cells(sheet, prompts)
    assert len(found) == prompts and {cell[2:] for cell in found} == {(64, 32)}
    assert found[-1][:2] == (4 + (prompts - 1) % columns * 68, 4 + (prompts - 1) // columns * 36)


def test_a_sheet_that_does_not_fit_its_prompts_is_not_cut() -> None:
    assert pictures.cells(pictures.Sheet("s.png", 1, 137, 140, "", False), 4) == []
    assert pictures.cells(pictures.Sheet("s.png", 1, 140, 140, "", False), 0) == []


def test_large_sheets_are_made_small_where_pil_is(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="without PIL pictures stay as they are")
    noise = random.Random(1).randbytes(3 * 1_400 * 1_400)
    image.frombytes("RGB", (1_400, 1_400), noise).save(tmp_path / "step-1.png")
    (sheet,) = pictures.gather(tmp_path, ["step-1.png"], 4).sheets
    assert sheet.shrunk and sheet.url.startswith("data:image/jpeg") and sheet.width == 1_400
    assert len(sheet.url) < (tmp_path / "step-1.png").stat().st_size / 8
