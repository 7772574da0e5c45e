"""Proves that a real browser shows a run's page: charts, pictures, values under the pointer, light and dark, and
on a phone without anything sticking out. Needs Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clusterft_trainer.report import __main__ as report
from trainer import made_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium to show a page in; apt-get install chromium")

# The page stands in a frame of a phone's width; what it looks like from within is written into the title.
FRAME = """<!doctype html><title></title>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement;
  const plane = inside.querySelector("figure[data-chart] .plane"), box = plane.getBoundingClientRect();
  const at = {{clientX: box.left + box.width / 2, clientY: box.top + 20, bubbles: true}};
  plane.dispatchEvent(new inside.defaultView.PointerEvent("pointermove", at));
  const width = (one) => one.getBoundingClientRect().width;
  const all = (what) => [...inside.querySelectorAll(what)];
  const out = all("body *").filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1);
  document.title = JSON.stringify({{
    ready: root.dataset.ready || "",
    tip: inside.querySelector(".tip")?.textContent || "",
    wide: root.scrollWidth - root.clientWidth,
    out: out.filter((e) => !e.closest(".scroll, pre, use")).map((e) => e.tagName + "." + e.className).slice(0, 5),
    charts: all("figure.chart").length,
    drawn: all(".plane").filter((p) => width(p) > 100 && p.clientHeight > 60).length,
    lines: all(".plane path.line").filter((p) => width(p) > 50).length,
    ground: inside.defaultView.getComputedStyle(inside.body).backgroundColor,
    pictures: all(".pictures use").filter((u) => width(u) > 50).length,
    strips: all(".strip img").filter((i) => i.naturalWidth === 240).length,
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a run that failed."""
    run = made_run.write(tmp_path_factory.mktemp("shared") / made_run.RUN)
    assert report.main([str(run)]) == 0
    return run / "report.html"


def browse(url: str, profile: Path, *options: str) -> tuple[str, str]:
    """What the browser made of a page, and what it complained of."""
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--log-level=0",
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=4000", *options, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2_000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line or "Uncaught" in line)
    return done.stdout, console


def inside(page: Path, tmp_path: Path, width: int, *options: str) -> dict[str, Any]:
    """The look from within a frame of that width."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        FRAME.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8"
    )
    dom, console = browse(frame.as_uri(), tmp_path / "profile", *options)
    assert console == ""
    found = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert found and found[1], dom[:500]
    known: dict[str, Any] = json.loads(html.unescape(found[1]))
    return known


def test_a_browser_shows_the_page_without_complaint(page: Path, tmp_path: Path) -> None:
    dom, console = browse(page.as_uri(), tmp_path / "profile")
    assert console == ""
    assert 'data-ready="1"' in dom and dom.count('<path class="line') >= 20 and "First cause" in dom


@pytest.mark.parametrize("width", [400, 1_200])
def test_nothing_sticks_out_and_everything_is_drawn(page: Path, tmp_path: Path, width: int) -> None:
    seen = inside(page, tmp_path, width, "--window-size=1300,1000")
    assert seen["ready"] == "1" and (seen["wide"], seen["out"]) == (0, [])
    assert seen["drawn"] == seen["charts"] - 2 >= 20  # attempts and strips are no planes
    assert seen["lines"] >= 20 and seen["pictures"] == 32 and seen["strips"] == 3
    assert re.search(r"step 1.?5\d\d", seen["tip"]) and "held out" in seen["tip"]


def test_a_dark_page_is_dark_and_a_light_one_light(page: Path, tmp_path: Path) -> None:
    light = inside(page, tmp_path, 800)["ground"]
    dark = inside(page, tmp_path, 800, "--blink-settings=preferredColorScheme=0")["ground"]
    assert min(map(int, re.findall(r"\d+", light))) > 230 and max(map(int, re.findall(r"\d+", dark))) < 40
