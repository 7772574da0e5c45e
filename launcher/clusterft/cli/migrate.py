"""`clusterft migrate`: kohya's command line or TOML, or accelerate's YAML, as a job, and what is lost."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from clusterft import commands
from clusterft.errors import UsageError
from clusterft_trainer import migrate
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate import Migration


def run(file: Path, out: Path | None, *, as_json: bool) -> int:
    """The job goes to `out` or to stdout; the report to the other of stdout and stderr."""
    found = _migrated(file)
    if out is not None:
        _write(out, found.yaml)
    if as_json:
        sys.stdout.write(json.dumps(_document(found, out)) + "\n")
    elif out is None:
        sys.stdout.write(found.yaml)
        sys.stdout.flush()
        sys.stderr.write(migrate.report(found))
    else:
        after = commands.shown(f"{out} is written; next: clusterft train {out} --dry-run")
        sys.stdout.write(f"{migrate.report(found)}\n{after}\n")
    return 0


def _migrated(file: Path) -> Migration:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    except UnicodeDecodeError:
        raise UsageError("the file is no text", where=str(file), remedy="save it as UTF-8") from None
    try:
        return migrate.run(text, file.name, migrate.Beside(file))
    except ConfigError as error:
        raise UsageError(error.message, remedy=error.remedy) from None


def _write(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError("the file exists already", where=str(out), remedy="name another one") from None
    except OSError as error:
        raise UsageError(f"the file cannot be written: {error.strerror}", where=str(out)) from None


def _document(found: Migration, out: Path | None) -> dict[str, object]:
    return {
        "schema": 1,
        "source": found.source,
        "kind": found.kind,
        "script": found.script,
        "carried": list(found.carried),
        "left": [asdict(one) for one in found.unknown],
        "notes": list(found.notes),
        "blanks": list(found.blanks),
        "written": None if out is None else str(out),
        "yaml": found.yaml,
    }
