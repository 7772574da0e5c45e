"""Writes docs/formats.md from the dataclasses that write the formats, so that neither can drift.

write_docs.py            write it
write_docs.py --check    exit 1 if it is not what the code says
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path

from clusterft import findings
from clusterft.apply import record
from clusterft.board import verdict
from clusterft_trainer import assignment, checkpoint, progress, stream

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"

INTRO = """\
# Formats

Written by `tools/write_docs.py` from the code; do not edit. Every document and every line carries `schema`; a
reader skips a line of a newer schema, and refuses a document of one. Times are unix seconds on the writer's clock.
"""


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/formats.md is not what the code says: run tools/write_docs.py")
    return 1


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRO,
            "## Progress lines: trainer to supervisor\n",
            f"On stdout: `{progress.MARKER}`, a space, one JSON object with `schema` and `kind`.\n",
            *(table(kind, kind.kind) for kind in progress.Record.__args__),
            "## Stream lines: supervisor to controller\n",
            "`stream.jsonl` of the run on the node, mirrored to `<shared>/<run>/events/<node>.jsonl`.\n",
            *(table(kind, kind.kind) for kind in stream.Line.__args__),
            "## assignment.json: controller to supervisor\n",
            table(assignment.Assignment),
            "## run.json\n",
            "`state` is `running`, `ok`, `stopped` or `failed`; `plan` is what `train --dry-run --json` prints;\n"
            "`verdict` is null while the run goes on:\n",
            table(verdict.Verdict),
            "The controller's own note of a run, `~/.clusterft/.runs/<run>.json`:\n",
            table(record.Note),
            "## checkpoints/step-*/manifest.json\n",
            table(checkpoint.Manifest),
            "## Checks, as in `--json` of a command that a check stopped\n",
            table(findings.Finding),
        ]
    )


def table(kind: type, name: str | None = None) -> str:
    """One record: its docstring, and a row for each field with the comment beside it."""
    notes = comments(kind)
    rows = [f"| `{f.name}` | `{f.type.replace('|', 'or')}` | {notes.get(f.name, '')} |" for f in fields(kind)]
    title = f"### `{name}`\n\n" if name else ""
    return f"{title}{inspect.getdoc(kind)}\n\n| field | type | |\n|-|-|-|\n" + "\n".join(rows) + "\n"


def comments(kind: type) -> dict[str, str]:
    """The trailing comments of a dataclass's fields."""
    found = re.findall(r"^    (\w+): [^#\n]*#\s*(?!noqa)(.*)$", inspect.getsource(kind), re.MULTILINE)
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
