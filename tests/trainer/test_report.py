"""Proves that a run's page tells what happened, whatever is missing or broken, shows no secret, and lets no text
of a file become part of the page."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clusterft_trainer import progress, stream
from clusterft_trainer.report import __main__ as report
from clusterft_trainer.report import reading
from clusterft_trainer.report.judged import Judged, stages
from trainer import made_run

PACKAGES = Path(report.__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
A_BUG = "please report it"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that failed; tests that change it take a copy."""
    return made_run.write(tmp_path_factory.mktemp("shared") / made_run.RUN)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / made_run.RUN))


class Page(HTMLParser):
    """What a browser would make of a page: elements, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._silent = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def page(folder: Path) -> Page:
    return Page(report.make(folder))


def charts(found: Page) -> list[str]:
    return [str(attributes["aria-label"]) for attributes in found.tags("div") if attributes.get("role") == "img"]


def say(run: Path, node: str, *lines: stream.Line) -> None:
    with (run / "events" / f"{node}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(stream.encode(line) + "\n" for line in lines)


def test_a_failed_run_says_first_where_why_and_what_to_do(made: Path) -> None:
    text = page(made).text
    top = text[: text.index("Learning")]
    assert "✗ failed" in top and "at step 3 118 of 15 560" in top
    assert "gpu1 rank 6: Memory ran out: CUDA out of memory." in top
    assert "Lower batch.per_slot" in top and f"clusterft resume {made_run.RUN}" in top
    assert "the same step ended the same way twice" in top
    assert "torch.OutOfMemoryError: CUDA out of memory" in top and "logs/attempt-2/gpu1/rank6.log" in top
    assert "149 664" in top and "48 a step" in top


def test_a_run_that_finished_has_no_trouble_and_names_its_export(tmp_path: Path) -> None:
    found = page(made_run.write(tmp_path / "run", "ok"))
    assert "✓ finished" in found.text and "First cause" not in found.text.split("Learning")[0]
    assert "export/astolfo-xl-r1.safetensors" in found.text
    assert A_BUG not in found.text and "could not read" not in found.text


def test_every_chart_is_there_and_says_what_it_shows(made: Path) -> None:
    shown = charts(page(made))
    titles = {label.split(". ")[0] for label in shown}
    assert titles >= {
        "Loss",
        "Learning rate",
        "Pictures a second",
        "Gradient norm",
        "What a step's time goes into",
    }
    assert titles >= {
        "Card use",
        "Card memory",
        "Card temperature, °C",
        "Card power, W",
        "Host",
        "Network, bytes/s",
    }
    (loss,) = [label for label in shown if label.startswith("Loss")]
    assert "held out:" in loss and "mean of a twentieth:" in loss
    assert len([label for label in shown if label.startswith("Card use")]) == 3  # one a node


def test_restarts_are_told_with_their_causes_and_with_what_was_lost(made: Path) -> None:
    text = page(made).text
    assert "gpu2 rank 9: no step for 10 min" in text and "stacks in stacks/attempt-0" in text
    assert "the kernel killed python (pid 48122, 61.2 GB)" in text
    assert "1 201 to 2 400" in text and "90 again" in text and "100 again" in text
    titles = [str(one.get("title")) for one in page(made).tags("i")]
    assert any("gpu2 out of reach for 2 min 50 s" in title.replace("\u202f", " ") for title in titles)


def test_nothing_that_a_file_holds_becomes_part_of_the_page(run: Path) -> None:
    evil = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'</style></script><!--"
    record = json.loads((run / "run.json").read_text())
    config = {"samples": {"prompts": [evil] * 4}}
    for key in ("cluster", "runtime", "launcher", "run_dir"):
        record["plan"][key] = evil
    record["plan"]["nodes"][0] |= {"node": evil, "argv": [evil], "env": {"NCCL_X": evil}, "interface": evil}
    record["plan"]["nodes"][0]["files"] = {"/x/config.json": json.dumps(config)}
    (run / "run.json").write_text(json.dumps(record))
    (run / "job.yaml").write_text(evil)
    outcome = json.loads((run / "outcome.json").read_text()) | {"cause": evil, "why": evil, "failure": evil}
    (run / "outcome.json").write_text(json.dumps(outcome))
    decided = stream.Decided(2, False, evil, evil, evil, 6, evil, 2, 3, made_run.BEGAN + 9_000)
    notice = stream.Progress(6, progress.Notice(evil, made_run.BEGAN))
    found = stream.Found(evil, "fail", (evil,), evil, evil, evil, (evil,), made_run.BEGAN)
    hang = stream.Hang(2, 60.0, evil, made_run.BEGAN + 9_000)
    away = stream.Waiting((evil,), 0.0, made_run.BEGAN + 9_000)
    say(run, "gpu1", stream.Log(6, evil, 0.0), notice, found, hang, decided, away)
    (run / "events" / f"{evil.replace('/', '|')}.jsonl").write_text(
        stream.encode(stream.Usage(made_run.BEGAN, 0.5, 1, 2, 3.0, 4.0)) + "\n" + evil + "\n"
    )
    (run / "samples" / f"{evil.replace('/', '|')}.png").write_bytes(made_run.sheet(8, 1))
    html = report.make(run)
    shown = Page(html)
    assert A_BUG not in shown.text
    assert shown.text.count("alert(1)") > 20  # it is all there, to be read
    assert len(shown.tags("script")) == 1 and not shown.tags("script")[0] and len(shown.tags("style")) == 1
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset"):
            where = str(attributes.get(name, "#"))
            assert where.startswith(("#", "./", "data:image/")), (tag, where)
    assert html.count("<script") == 1 and "http://" not in html and "https://" not in html


def test_no_secret_is_shown(made: Path) -> None:
    html = report.make(made)
    assert "hf_should_not_be_seen" not in html and "typed-by-hand-0123" not in html
    assert "MY_API_KEY: ***" in html and "WANDB_API_KEY" in html and "tokens: 75" in html
    assert "NCCL_SOCKET_IFNAME==enp65s0" in html


@pytest.mark.parametrize(
    "name", ["run.json", "outcome.json", "job.yaml", "metrics.jsonl", "events", "checkpoints", "samples", "export"]
)
def test_without_any_one_part_the_page_still_comes(run: Path, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = page(run)
    assert A_BUG not in found.text and "step 3 118" in found.text
    assert ("What this page could not read" in found.text) == (name not in ("checkpoints", "samples", "export"))
    assert ("✗ failed" in found.text) and "Loss" in found.text


def test_an_empty_directory_has_a_page_too(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert A_BUG not in found.text and "has told no end" in found.text and "run.json is not there" in found.text


def test_documents_of_a_newer_version_are_shown_as_far_as_they_are_known(run: Path) -> None:
    for name in ("run.json", "outcome.json"):
        body = json.loads((run / name).read_text()) | {"schema": 99, "novelty": {"a": [1]}}
        (run / name).write_text(json.dumps(body))
    manifest = run / "checkpoints" / "step-00003100" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 7}))
    with (run / "events" / "gpu0.jsonl").open("a") as file:
        file.write(
            '{"schema": 9, "kind": "log", "rank": 0, "text": "x", "at": 1}\n{"schema": 2, "kind": "later"}\n'
        )
    text = page(run).text
    assert "run.json has schema 99" in text and "outcome.json has schema 99" in text
    assert "its manifest has schema 7" in text and "events/gpu0.jsonl: 2 lines are of a newer version" in text
    assert "✗ failed" in text and A_BUG not in text


def test_a_line_that_was_cut_short_is_counted_and_costs_nothing_else(run: Path) -> None:
    for name in ("events/gpu0.jsonl", "metrics.jsonl"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-30] + b"\n")
    text = page(run).text
    assert "events/gpu0.jsonl: line" in text and "metrics.jsonl: line 3118 cannot be read" in text
    assert "at step 3 118" in text  # the node's own lines still have it


def test_values_of_a_wrong_type_are_lines_that_cannot_be_read(run: Path) -> None:
    with (run / "events" / "gpu0.jsonl").open("a") as file:
        for body in (
            {"kind": "attempt", "attempt": "x", "machines": 1, "machine_rank": 0, "first_rank": 0, "world": 1},
            {"kind": "usage", "at": "now", "cpu": [], "memory": {}, "memory_total": 1, "sent": 1, "received": 1},
            {"kind": "progress", "rank": 0, "record": {"kind": "step", "step": "9" * 400, "at": None}},
            {"kind": "progress", "rank": 0, "record": 5},
            {
                "kind": "usage",
                "at": 1.0,
                "cpu": 1,
                "memory": 1,
                "memory_total": 1,
                "sent": 1,
                "received": 1,
                "cards": 3,
            },
            {"kind": "log", "rank": 0, "text": 7, "at": 1},
            {"kind": []},
        ):
            file.write(json.dumps({"schema": 2, **body}) + "\n")
        file.write("[1]\n" + "[" * 100_000 + "\nnull\n")
    found = reading.read(run)
    (told,) = [one for one in found.unread if one.startswith("events/gpu0.jsonl")]
    assert "and 8 more cannot be read" in told  # a log line's text is looked at only where it is shown
    assert A_BUG not in page(run).text


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_dying_disk_leaves_the_page_comes_whole(run: Path, seed: int) -> None:
    dice = random.Random(seed)
    for path in sorted(p for p in run.rglob("*") if p.is_file() and p.stat().st_size):
        raw = bytearray(path.read_bytes())
        for _ in range(dice.randint(0, 40)):
            raw[dice.randrange(len(raw))] = dice.choice(b'\x00\xff{}[]":,0-9e.<>\\\n')
        if dice.random() < 0.4:
            del raw[dice.randrange(len(raw)) :]
        path.write_bytes(bytes(raw))
    found = page(run)
    assert A_BUG not in found.text and found.tags("footer")


@pytest.mark.parametrize("seed", range(8))
def test_documents_of_any_shape_are_borne(run: Path, seed: int) -> None:
    dice = random.Random(seed)
    shutil.rmtree(run / "events")
    (run / "metrics.jsonl").unlink()
    for path in (run / "run.json", run / "outcome.json", *run.glob("checkpoints/*/manifest.json")):
        path.write_text(json.dumps(_bent(json.loads(path.read_text()), dice)))
    assert A_BUG not in page(run).text


def _bent(body: object, dice: random.Random) -> object:
    """The same document with some of its values replaced by others of another type."""
    if dice.random() < 0.12:
        return dice.choice([None, True, -1, 1e308, 10**400, "text", [], {}, [[1]], {"node": {}}, float("nan")])
    if isinstance(body, dict):
        return {key: _bent(value, dice) for key, value in body.items()}
    return [_bent(one, dice) for one in body] if isinstance(body, list) else body


def test_a_run_of_the_users_own_script_has_no_curves_and_the_rest(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for path in (run / "events").iterdir():
        lines = [line for line in path.read_text().splitlines() if '"kind": "progress"' not in line]
        path.write_text("\n".join(lines) + "\n")
    found = page(run)
    titles = [label.split(". ")[0] for label in charts(found)]
    assert "Loss" not in titles and "Card use" in titles
    assert "gpu2 rank 9: no step for 10 min" in found.text and A_BUG not in found.text


def test_an_outcome_that_a_resumed_run_has_left_behind_is_not_believed(run: Path) -> None:
    ended = json.loads((run / "outcome.json").read_text())["ended"]
    say(
        run,
        "gpu0",
        stream.Started(9, ended + 60, 0),
        stream.Attempt(3, 3, 0, 0, 12, "10.0.0.10", 29_503, ended + 61),
    )
    judged = Judged(reading.read(run))
    assert judged.outcome.state == "running"
    assert "was running when this page was made" in page(run).text


def test_without_documents_the_nodes_last_words_tell_the_end(run: Path) -> None:
    (run / "outcome.json").unlink()
    (run / "run.json").unlink()
    outcome = Judged(reading.read(run)).outcome
    assert (outcome.state, outcome.failure, outcome.node, outcome.rank) == ("failed", "oom", "gpu1", 6)
    assert outcome.remedy.startswith("Lower batch.per_slot")


def test_the_controllers_verdict_is_used_where_it_alone_knows(run: Path) -> None:
    (run / "outcome.json").unlink()
    record = json.loads((run / "run.json").read_text())
    verdict = {
        "end": "failed",
        "summary": "gpu0 is gone",
        "failure": "node-lost",
        "node": "gpu0",
        "remedy": "uptime",
    }
    record |= {
        "verdict": verdict | {"rank": None, "evidence": ["no answer for 5 min"]},
        "ended": made_run.BEGAN + 1e6,
    }
    (run / "run.json").write_text(json.dumps(record))
    top = page(run).text.split("Learning")[0]
    assert "gpu0: gpu0 is gone" in top and "uptime" in top and "no answer for 5 min" in top


def test_steps_of_a_replaced_head_are_put_in_the_order_of_their_clocks(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for path in (run / "events").iterdir():
        path.unlink()

    def step(number: int, at: float) -> stream.Progress:
        return stream.Progress(0, progress.Step(number, 400, 1, 1 / number, 1e-4, None, 8.0, 0.0, at))

    say(run, "zeta", *(step(n, 1_000.0 + n) for n in range(1, 301)))
    say(run, "alpha", *(step(n, 5_000.0 + n) for n in range(201, 401)))
    course = Judged(reading.read(run)).course
    assert list(course.column("step")) == list(range(1, 401)) and course.repeated == 100
    assert course.column("at")[250] == 5_251.0


def test_an_attempts_stages_follow_each_other_without_gaps(made: Path) -> None:
    first = Judged(reading.read(made)).attempts[0]
    found = stages(first)
    assert [name for name, _, _ in found] == ["imports", "data", "model", "train"]
    assert all(a[2] == b[1] for a, b in zip(found, found[1:], strict=False))
    assert found[0][1] == first.began and found[-1][2] == first.ended


def test_it_needs_the_standard_library_alone(run: Path) -> None:
    command = [sys.executable, "-S", "-P", "-m", "clusterft_trainer.report", str(run)]
    env = {"PYTHONPATH": str(PACKAGES), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and " s\n" in done.stdout
    assert "data:image/png" in (run / "report.html").read_text(encoding="utf-8")  # the sheets as they are


def test_the_page_is_written_whole_or_not_at_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run)]) == 0
    first = (run / "report.html").read_text(encoding="utf-8")
    assert first.startswith("<!doctype html>") and first.endswith("</html>\n") and len(first) < 10 << 20
    assert report.main([str(run), "-o", str(run / "no" / "such" / "page.html")]) == 5
    assert "cannot be written" in capsys.readouterr().err
    assert report.main([str(run / "nowhere")]) == 2
    assert "is no directory" in capsys.readouterr().err
    assert not list(run.glob(".report*"))


def test_a_lone_surrogate_or_a_control_character_does_not_stop_it(run: Path) -> None:
    with (run / "events" / "gpu1.jsonl").open("a") as file:
        said = "half \\ud800 \\u0000\\u001b[31mred\\u001b[0m"
        file.write(f'{{"schema": 2, "kind": "log", "rank": 6, "text": "{said}", "at": 1.0}}\n')
    assert report.main([str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "half \ufffd \ufffdred" in text


def test_large_event_files_are_streamed(run: Path) -> None:
    line = stream.encode(stream.Log(3, "x" * 200, 1.0)).encode() + b"\n"
    with (run / "events" / "gpu1.jsonl").open("ab") as file:
        for _ in range(60):
            file.write(line * 10_000)
        file.write(b'{"schema": 2, "kind": "log", "rank": 3, "text": "' + b"y" * (40 << 20))  # no end of line
    size = sum(path.stat().st_size for path in (run / "events").iterdir())
    assert size > 180 << 20
    code = "import sys\nfrom clusterft_trainer.report import __main__ as m\nm.main(sys.argv[1:])\n"
    code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    env = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run([sys.executable, "-c", code, str(run)], env=env, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 90 << 10, done.stdout + done.stderr  # kB
    assert "600 0" in (run / "report.html").read_text(encoding="utf-8").split("log lines")[0][-12:].replace(
        "\u202f", " "
    )


@pytest.mark.parametrize("name", ["boxes", "boxes_script", "three_ssh", "mixed_torchrun"])
def test_plans_as_the_launcher_writes_them_are_understood(name: str, tmp_path: Path) -> None:
    body = json.loads((GOLDEN / "plan" / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / "run.json").write_text(json.dumps({"schema": 2, "plan": body, "clusterft": "0.7.0"}))
    text = page(tmp_path).text
    assert A_BUG not in text and f"{body['master']['address']}:{body['master']['port']}" in text
    for node in body["nodes"]:
        assert node["node"] in text and node["address"] in text and node["interface"] in text
        if node.get("container"):
            assert node["container"]["name"] in text and node["container"]["request"]["Image"] in text


def test_a_bug_in_one_part_costs_no_other_and_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(judged: Judged) -> None:
        raise ZeroDivisionError("by <zero>")

    monkeypatch.setattr("clusterft_trainer.report.page.story", broken)
    monkeypatch.setattr("clusterft_trainer.report.page.head", broken)
    found = page(made)
    assert "the part 'time' of this page: a bug (ZeroDivisionError: by <zero>)" in found.text
    assert "Where the time went" not in found.text and "Loss" in found.text and made_run.RUN in found.text
