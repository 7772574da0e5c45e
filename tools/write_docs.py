"""Writes docs/formats.md from the dataclasses that write the formats, and docs/settings.md from the settings
themselves, so that none can drift.

write_docs.py            write them
write_docs.py --check    exit 1 if one is not what the code says
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import settings_page

from clusterft import findings, spec
from clusterft.apply import record
from clusterft.board import verdict
from clusterft.ui import logs, outcome, status
from clusterft_trainer import assignment, checkpoint, progress, stream
from clusterft_trainer.supervisor import ending

DOCS = Path(__file__).resolve().parent.parent / "docs"

INTRO = """\
# Formats

Written by `tools/write_docs.py` from the code; do not edit. Every document and every line carries `schema`; a
reader skips a line of a newer schema, and refuses a document of one. Times are unix seconds on the writer's clock.
"""


CHECKPOINT = """\
`<shared>/<run>/checkpoints/step-<n>/` holds this manifest and a file for each rank that wrote,
`rank-<r>-of-<world>.safetensors`; `.new-*` beside it is being written or deleted. Each trained weight is one
flattened row of numbers, and a rank writes the runs of it that it owns under the keys `kind|weight|offset`:
kind `weight` (float32, or bfloat16 under `weights: bf16`), `ema` (the running mean), or a name of the
optimizer's state such as `exp_avg`; offset is the first element. What an optimizer keeps that has no number for
each weight (counters, factors, quantised blocks) stands under `rest|weight|key`. The metadata entry `shapes` of
every file is a JSON object of the weights' shapes. All runs of a weight together cover it without a gap,
whatever engine and number of ranks wrote them, so any other can read them:

```
from safetensors import safe_open
with safe_open("rank-00000-of-00002.safetensors", "pt") as file:
    file.metadata()["shapes"], file.keys()   # 'weight|unet.conv_in.weight|0', 'exp_avg|unet.conv_in.weight|0', ...
```

A file counts only with the size and checksum of the manifest, a folder only with its manifest and under its name.
"""


def main() -> int:
    """Write the pages, or compare them."""
    pages = {"formats.md": page(), "settings.md": settings_page.page(spec.json_schema())}
    drifted = []
    for name, text in pages.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            drifted.append(name)
    for name in drifted:
        print(f"docs/{name} is not what the code says: run tools/write_docs.py")
    return 1 if drifted else 0


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
            "## outcome.json: what a run came to, written by its head\n",
            document(ending.outcome),
            "## checkpoints/step-*/manifest.json\n",
            table(checkpoint.Manifest),
            CHECKPOINT,
            "## `--json` of the commands\n",
            "### `train`, `resume` and `attach`\n",
            document(outcome.to_dict),
            "Each of its `attempts`:\n",
            document(outcome.attempt_dict),
            "### `status`\n",
            document(status.overview_dict),
            "Each of its `runs`:\n",
            table(status.Glance),
            "Each that is `left_behind`:\n",
            table(status.LeftBehind),
            "### `status RUN`\n",
            document(status.run_dict),
            "### `runs`\n",
            document(status.past_dict),
            "Each of its `runs`:\n",
            table(status.Past),
            "### `logs`, a line each\n",
            document(logs.to_json),
            "### Checks, of a command that a check stopped\n",
            table(findings.Finding),
        ]
    )


def table(kind: type, name: str | None = None) -> str:
    """One record: its docstring, and a row for each field with the comment beside it."""
    notes = comments(kind)
    types = {f.name: f.type for f in fields(kind)} if is_dataclass(kind) else kind.__annotations__
    rows = [f"| `{name}` | `{_words(said)}` | {notes.get(name, '')} |" for name, said in types.items()]
    title = f"### `{name}`\n\n" if name else ""
    return f"{title}{inspect.getdoc(kind)}\n\n| field | type | |\n|-|-|-|\n" + "\n".join(rows) + "\n"


def _words(said: object) -> str:
    """An annotation; a table's cells are parted by |."""
    return str(getattr(said, "__forward_arg__", said)).replace("|", "or")


def document(writer: Callable[..., object]) -> str:
    """A document that a function makes: its docstring, and a row for each key with the comment beside it."""
    source = textwrap.dedent(inspect.getsource(writer))
    made = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict))
    lines = source.splitlines()
    rows = []
    for key, value in zip(made.keys, made.values, strict=True):
        remark = re.search(r"  # (.*)$", lines[value.end_lineno - 1])  # type: ignore[operator]
        rows.append(f"| `{key.value}` | {remark[1] if remark else ''} |")  # type: ignore[union-attr]
    return f"{inspect.getdoc(writer)}\n\n| key | |\n|-|-|\n" + "\n".join(rows) + "\n"


def comments(kind: type) -> dict[str, str]:
    """The trailing comments of a dataclass's fields, also where a field takes several lines."""
    found: dict[str, str] = {}
    field = None
    for line in inspect.getsource(kind).splitlines():
        named = re.match(r"    (\w+): ", line)
        continued = re.match(r"        \S|    \)", line)
        field = named[1] if named else field if continued else None
        remark = re.search(r"#\s*(?!noqa)(.*)$", line)
        if field and remark:
            found[field] = remark[1]
    return found


if __name__ == "__main__":
    sys.exit(main())
