"""How tests meet the machine: what cannot run here is skipped with a reason and a remedy, never silently.

Also the two sizes: `make test` takes a rotating share of the tests marked `long`, `make test-all` takes all and,
after an interruption, goes on with those that had not passed.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".test-state" / "passed.json"
WRITTEN = "tests/FAULTS.md"  # by make test-all itself: no change of the tree that it tests
SHARES = 20  # every long test comes up once in this many days of `make test`


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that tools/run_tests.py sets."""
    parser.addoption("--all", action="store_true", help="all long tests, and virtual machines; resumable")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what each skip would need, for the summary."""
    config.stash[_SKIPS] = Counter()
    config.stash[_PASSED] = _passed_before(config)


_SKIPS: pytest.StashKey[Counter[str]] = pytest.StashKey()
_PASSED: pytest.StashKey[set[str]] = pytest.StashKey()
_CALL_PASSED: pytest.StashKey[bool] = pytest.StashKey()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the machine lacks, deselect what this size of run leaves out."""
    known: dict[str, str | None] = {}
    chosen, left_out = [], []
    for item in items:
        if item.nodeid in config.stash[_PASSED] or not _in_this_run(item, config):
            left_out.append(item)
            if item.get_closest_marker("lab_vm"):
                config.stash[_SKIPS]["virtual machines take minutes; make test-all runs them"] += 1
            continue
        chosen.append(item)
        for mark, missing in _NEEDS.items():
            if item.get_closest_marker(mark):
                if mark not in known:
                    known[mark] = missing()
                if known[mark]:
                    config.stash[_SKIPS][f"{known[mark]}"] += 1
                    item.add_marker(pytest.mark.skip(reason=str(known[mark])))
                    break
    items[:] = chosen
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note each pass at once, so that an interrupted `make test-all` goes on from here."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.stash[_CALL_PASSED] = report.passed
    # Only now is it known that the test also cleaned up.
    whole = report.when == "teardown" and report.passed and item.stash.get(_CALL_PASSED, False)
    if whole and item.config.getoption("--all"):
        passed = item.config.stash[_PASSED]
        passed.add(item.nodeid)
        STATE.parent.mkdir(exist_ok=True)
        STATE.write_text(json.dumps({"tree": _tree(), "passed": sorted(passed)}))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """A lab that turns out impossible only when it is brought up is a skip with its reason, too."""
    import lab

    try:
        return (yield)
    except lab.LabUnavailable as problem:
        reason = f"{problem.reason}; {problem.remedy}"
        request.config.stash[_SKIPS][reason] += 1
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say plainly what did not run, and what would enable it."""
    out = terminalreporter
    for reason, count in config.stash[_SKIPS].items():
        out.write_line(f"not run here: {count} tests: {reason}")
    if not config.getoption("--all"):
        out.write_line(f"long tests: share {_share()} of {SHARES} (by date); make test-all runs all of them")
    elif config.stash[_PASSED]:
        out.write_line(f"{len(config.stash[_PASSED])} tests have passed on this very tree, earlier ones included")


def _in_this_run(item: pytest.Item, config: pytest.Config) -> bool:
    # Whoever names a file or a test means it.
    if (
        config.getoption("--all")
        or config.getoption("keyword")
        or config.args_source == pytest.Config.ArgsSource.ARGS
    ):
        return True
    if item.get_closest_marker("lab_vm"):
        return False
    if item.get_closest_marker("long"):
        return zlib.crc32(item.nodeid.encode()) % SHARES == _share()
    return True


def _share() -> int:
    wanted = os.environ.get("CLUSTERFT_TEST_SHARE")
    return int(wanted) % SHARES if wanted else datetime.date.today().toordinal() % SHARES


def _passed_before(config: pytest.Config) -> set[str]:
    if not config.getoption("--all") or not STATE.exists():
        return set()
    state = json.loads(STATE.read_text())
    return set(state["passed"]) if state["tree"] == _tree() else set()


def _tree() -> str:
    """The checkout as it is: every file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    digest = hashlib.sha256()
    for name in sorted({*listed.stdout.decode().split("\0")} - {"", WRITTEN}):
        path = ROOT / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"-"))
    return digest.hexdigest()


def _lab(weight: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        import lab

        problem = getattr(lab, f"{weight}_available")()
        return None if problem is None else f"{problem.reason}; {problem.remedy}"

    return missing


def _no_trainer() -> str | None:
    if importlib.util.find_spec("torch") and importlib.util.find_spec("deepspeed"):
        return None
    return "the trainer's libraries are missing; pip install 'clusterft[trainer]'"


def _no_gpu() -> str | None:
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        return None
    return "no NVIDIA GPU answers here; run them on a machine with one and its driver"


_NEEDS: dict[str, Callable[[], str | None]] = {
    "trainer": _no_trainer,
    "gpu": _no_gpu,
    "lab_light": _lab("light"),
    "lab_full": _lab("full"),
    "lab_vm": _lab("vm"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller's home of the test's own."""
    directory = tmp_path / "home"
    monkeypatch.setenv("CLUSTERFT_HOME", str(directory))
    return directory
