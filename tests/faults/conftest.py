"""The rig that all faults share, and the account of what came of each: tests/FAULTS.md is made from it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.jobs import ROOT
from faults.rig import Rig, rigged

ACCOUNT = ROOT / ".test-state" / "faults.jsonl"
_SAID: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All of these take an hour and more: make test has one of them in its turn, make test-all has all."""
    if config.getoption("--all") or config.args_source == pytest.Config.ArgsSource.ARGS:
        return
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    others = [item for item in here if "[a rank is killed" not in item.name]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Brought up once: every test leaves it as it found it."""
    with rigged(tmp_path_factory.mktemp("rig") / "desk") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The rig, cleared of whatever the test has done to it."""
    yield shared_rig
    shared_rig.clear()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What came of the fault, in words for the account."""
    said = request.node.stash.setdefault(_SAID, [])
    return said.append  # type: ignore[no-any-return]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """One line of the account for each test, whether it passed or not."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" or not Path(item.path).is_relative_to(Path(__file__).parent) or report.skipped:
        return
    about = (item.obj.__doc__ or item.name).strip().splitlines()[0]  # type: ignore[attr-defined]
    which = item.nodeid.rpartition("[")[2].rstrip("]") if "[" in item.nodeid else ""
    line = {
        "test": item.nodeid,
        "fault": which or item.originalname.removeprefix("test_").replace("_", " "),  # type: ignore[attr-defined]
        "about": about,
        "passed": report.passed,
        "said": "; ".join(item.stash.get(_SAID, [])),
        "seconds": round(report.duration),
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }
    ACCOUNT.parent.mkdir(exist_ok=True)
    with ACCOUNT.open("a") as out:
        out.write(json.dumps(line) + "\n")


def _commit() -> str:
    """The newest commit, with a plus where the tree differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())
