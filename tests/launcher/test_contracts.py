"""Proves that each import contract bites when it is breached, and that help needs no heavy library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import scenes

# Contract -> (file, line added to it). A file that is not there is made.
BREACHES = {
    "launcher-layers: upward": ("clusterft/hosts.py", "import clusterft.plan"),
    "launcher-layers: stray module": ("clusterft/utils.py", '"""A stray."""'),
    "launcher-layers: sideways": ("clusterft/apply/gang.py", "import clusterft.ui.text"),
    "trainer-layers: upward": ("clusterft_trainer/buckets.py", "import clusterft_trainer.train"),
    "trainer-layers: stray module": ("clusterft_trainer/helpers.py", '"""A stray."""'),
    "torch-free: supervisor": ("clusterft_trainer/supervisor/tails.py", "import torch"),
    "pure: subprocess": ("clusterft/plan/launch.py", "import subprocess"),
    "pure: clock": ("clusterft/board/state.py", "import time"),
    "pure: terminal": ("clusterft/checks/host.py", "import rich.text"),
    "pure: clock of a diagnosis": ("clusterft/diagnosis/cause.py", "import time"),
    "launcher-layers: diagnosis and checks": ("clusterft/diagnosis/cause.py", "import clusterft.checks.check"),
    "no-torch: direct": ("clusterft/spec/job.py", "import torch"),
    "no-torch: through the trainer": ("clusterft_trainer/config/data.py", "import numpy"),
    "no-torch: through migrate": ("clusterft_trainer/migrate/shell.py", "import torch"),
    "torch-free: migrate": ("clusterft_trainer/migrate/page.py", "import numpy"),
    "seam: train": ("clusterft/runtime/process.py", "import clusterft_trainer.train"),
    "seam: supervisor": ("clusterft/remote/ssh.py", "import clusterft_trainer.supervisor.part"),
    "data: torch": ("clusterft_trainer/latents/shard.py", "import torch"),
    "trainer-alone: errors": ("clusterft_trainer/captions.py", "import clusterft.errors"),
}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the copy, as `make check` does on the tree."""
    environment = {**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "200", "NO_COLOR": "1"}
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=directory, env=environment, capture_output=True, text=True
    )


def copy(directory: Path) -> Path:
    """Both packages and the contracts, where a breach does no harm."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(scenes.ROOT / "launcher" / "clusterft", directory / "clusterft", ignore=ignore)
    shutil.copytree(scenes.ROOT / "trainer" / "clusterft_trainer", directory / "clusterft_trainer", ignore=ignore)
    shutil.copy(scenes.ROOT / "pyproject.toml", directory)
    return directory


def breach(directory: Path, where: str, line: str) -> subprocess.CompletedProcess[str]:
    """Add one import to a copy of the tree and judge it."""
    path = copy(directory) / where
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    return lint(directory)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """All breaches, judged side by side since each takes seconds."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        clean = pool.submit(lambda: lint(copy(tmp_path_factory.mktemp("clean"))))
        found = {
            name: pool.submit(breach, tmp_path_factory.mktemp("breach"), *what) for name, what in BREACHES.items()
        }
        return {"clean": clean.result(), **{name: future.result() for name, future in found.items()}}


def test_the_tree_keeps_its_contracts(outcomes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    clean = outcomes["clean"]
    assert clean.returncode == 0, clean.stdout + clean.stderr
    assert clean.stdout.count("KEPT") == len(contracts())


def contracts() -> dict[str, str]:
    """Contract id -> its name, from pyproject.toml."""
    body = tomllib.loads((scenes.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract["name"] for contract in body["tool"]["importlinter"]["contracts"]}


def test_every_contract_is_breached_here() -> None:
    assert {name.partition(":")[0] for name in BREACHES} == set(contracts())


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_found_and_named(name: str, outcomes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    outcome = outcomes[name]
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    broken = [line.strip() for line in outcome.stdout.splitlines() if line.rstrip().endswith("BROKEN")]
    assert f"{contracts()[name.partition(':')[0]]} BROKEN" in broken


HEAVY = "torch accelerate deepspeed numpy paramiko fabric docker yaml rich.markdown rich.live cryptography".split()
OURS = "clusterft.spec clusterft.remote clusterft.plan clusterft.fleet clusterft.apply clusterft_trainer".split()
LOADED = f"""
import sys
from clusterft.cli import run
code = run(sys.argv[1:])
print("loaded:", sorted(set({HEAVY + OURS!r}) & sys.modules.keys()), "pydantic" in sys.modules)
sys.exit(code)
"""


VERBS = (
    *("up", "down", "open", "ssh", "push", "prep", "train", "resume", "attach", "stop", "status", "logs", "runs"),
    *("init", "migrate", "settings", "schema", "doctor"),
)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_heavy(verb: str) -> None:
    words = [*verb.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    # typer itself imports pydantic (30 ms) where a verb has parameters.
    assert done.stdout.splitlines()[-1].startswith("loaded: [] " if verb else "loaded: [] False")
    assert "Usage: clusterft" in done.stdout and "Traceback" not in done.stderr


def test_every_verb_is_among_those() -> None:
    from clusterft.cli import app

    assert set(app.command().commands) == set(VERBS)
