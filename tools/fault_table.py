"""tests/FAULTS.md: what came of each fault when its test last ran, from the account that the tests keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ACCOUNT = ROOT / ".test-state" / "faults.jsonl"
PAGE = ROOT / "tests" / "FAULTS.md"
BLIND = ROOT / "tests" / "faults" / "BLIND.md"
_HEAD = """\
# What runs live through

Three full lab nodes and a spare, a run of the tiny SDXL with DeepSpeed ZeRO-2 on them, and one thing that goes
wrong. Every test also proves from the ranks' own notes that each sample was computed exactly once in each epoch,
and that nothing is left on any node: no container, no process, no file outside clusterft's directories.

`make test-all` writes this page (tests/faults). Seconds are those of the whole test on two shared cores, the start
of the run included; a plus behind the commit means that the tree had changes on top of it.

"""
_DOCTOR = """\

# What doctor names

Each fault is injected into real nodes, must be told under its id, on its node, with the line that mends it, and
doctor must be clean after that line; and a healthy cluster must give no finding, twenty times in a row. More such
faults, of every layer, are in tests/e2e/test_doctor_lab_*.py. Faults that were thought up and injected by somebody
who had not seen the checks, ten a round, are in [faults/BLIND.md](faults/BLIND.md), unedited. {rates}

"""
_COLUMNS = "| what happens | what came of it | seconds | commit |\n|-|-|-:|-|\n"


def write(account: Path = ACCOUNT, page: Path = PAGE) -> bool:
    """Bring the page up to date; whether there was anything to tell."""
    if not account.exists():
        return False
    newest: dict[str, dict[str, Any]] = {}
    for line in account.read_text(encoding="utf-8").splitlines():
        body = json.loads(line)
        newest[body["test"]] = body
    doctors = {test: body for test, body in newest.items() if "/test_doctor_" in test}
    runs = {test: body for test, body in newest.items() if test not in doctors}
    parts = ((_HEAD, runs), (_DOCTOR.format(rates=blind_rates(BLIND.read_text(encoding="utf-8"))), doctors))
    page.write_text("".join(head + _table(rows) for head, rows in parts if rows).lstrip(), encoding="utf-8")
    return bool(newest)


def blind_rates(page: str) -> str:
    """What the page of the blind faults says of each of its rounds, as it stands there."""
    rounds = re.findall(r"^\*\*([^*]*\d+ of \d+[^*]*)\*\*", page, re.MULTILINE)
    if not rounds:
        raise ValueError(f"{BLIND} tells no hit rate: a line that begins with **... N of N ...**.")
    return " ".join(rounds)


def _table(rows: dict[str, dict[str, Any]]) -> str:
    return _COLUMNS + "".join(_row(body) for _, body in sorted(rows.items()))


def _row(body: dict[str, Any]) -> str:
    came = body["said"] if body["passed"] else "**FAILED** " + body["said"]
    cells = (body["fault"], came.strip(), body["seconds"], body["commit"])
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"
