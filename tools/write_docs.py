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

import doctor_page
import settings_page

from clusterft import findings, spec
from clusterft.apply import record
from clusterft.board import verdict
from clusterft.checks.check import Entry
from clusterft.checks.report import Report
from clusterft.cli import doctor
from clusterft.diagnosis.diagnosis import Diagnosis, Follower, Setback
from clusterft.diagnosis.heard import Quote
from clusterft.ui import logs, outcome, status
from clusterft_trainer import assignment, checkpoint, progress, stream
from clusterft_trainer.corpus import faults, index, keeping
from clusterft_trainer.latents import catalogue, key, packing, shard, verify, writing
from clusterft_trainer.prep import counting
from clusterft_trainer.prep import status as prepared
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

INDEX = """\
`<shared>/.clusterft/index/<sources>-<rules>/`, the two names being digests of settings. `index.json` names the
generation that counts, a folder with `index.arrow` (the rows, in the order of source and name, 16,384 to a record
batch), `sizes.int32` (width and height of each, little-endian, to be mapped), and `left.arrow` (rows left out).
Beside it: `report.json`, `report.txt` and `buckets.txt` for people, `journal-*` of an ingest that is under way or
was killed: frames of 8 bytes `cftcorp1`, length and XXH3-64 (8 bytes each), and one record batch. `.new-*` is
being written.
"""

KEPT = """\
`<shared>/<run>/index/` is one generation by itself, with an `index.json` of its own: the pictures that a run began
with, for all its attempts. It is made of hard links where the file system has them, else a copy, so that no later
ingest takes it away. `kept.json` there:
"""

HELD = """\
`<shared>/.clusterft/held/<worker>/` is the same for one worker of `prep` while it works, of hard links alone;
without them it works with the published one, and there is no folder. It goes with its worker, and those of workers
that have died are cleared by the next.
"""

SHARDS = """\
`<shared>/.clusterft/latents/<recipe>/` and `text/<recipe>/`, the name being a digest of the recipe. Files are
safetensors; `<width>x<height>-<XXH3-128 of its keys>.safetensors` holds up to 1,000 entries, one after the other
(text states: `0x0-`). Its arrays:

| array | type | |
|-|-|-|
| `offsets` | U64 (n + 1) | where each entry begins in `data`, and where the last one ends |
| `sums` | U64 (n) | XXH3-64 of each entry's stored bytes |
| `keys` | U8 (n, 16) | XXH3-128 of all that decides the entry's bytes |
| `data` | U8 | the entries: the arrays of `arrays`, one after the other |

`*.bad` was moved aside. `suspects/` has an empty file for each shard in which a run has read a damaged entry.
"""

CATALOGUE = """\
Where each entry of a folder lies; made again by whoever sees that the shards are others. Its arrays, in the order
of keys: `high` and `low` (U64: the key's two halves, big-endian), `places` (I64: the shard's number times 2^20,
plus the entry's place in it).
"""


def main() -> int:
    """Write the pages, or compare them."""
    pages = {
        "formats.md": page(),
        "settings.md": settings_page.page(spec.json_schema()),
        "doctor.md": doctor_page.page(),
    }
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
            *_data_path(),
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
            "### `prep --status`\n",
            "`schema`, and:\n",
            document(counting.Counted.body),
            document(prepared.body),
            "Each of `work`:\n",
            document(prepared.work_body),
            "Each of `workers`:\n",
            document(prepared.worker_body),
            "### `verify`\n",
            "`schema`, and:\n",
            table(verify.Report),
            "### `pack` and `unpack`\n",
            "`schema`, and:\n",
            table(packing.Report),
            "### `doctor`\n",
            document(Report.to_dict),
            "### `doctor --list-checks`\n",
            "`schema`, and `checks`:\n",
            document(doctor.listed),
            "### `doctor --explain ID`\n",
            "`schema`, and:\n",
            table(Entry),
            "### `doctor --run` and `doctor --log`\n",
            "`schema`, and:\n",
            table(Diagnosis),
            table(Follower),
            table(Setback),
            table(Quote),
            "### Checks, of `doctor` and of a command that a check stopped\n",
            table(findings.Finding),
        ]
    )


def _data_path() -> list[str]:
    """What ingest, prep, verify and pack leave."""
    return [
        "## index/*/index.json: which pictures there are\n",
        "`schema`, and:\n",
        table(index.Head),
        INDEX,
        "The columns of both `.arrow` files:\n",
        columns(),
        KEPT,
        document(keeping.note),
        HELD,
        "## index/*/report.json: what is wrong with them\n",
        document(faults.Report.body),
        "Each that was `found`, by its name ("
        + ", ".join(f"`{kind.name.lower()}`" for kind in faults.WORDS)
        + "):\n",
        document(faults.Report.kind),
        "## Shards of a cache\n",
        SHARDS,
        document(shard.metadata),
        "The recipe of latents, with `schema` and `kind`:\n",
        table(key.Recipe),
        "The recipe of text states, likewise:\n",
        table(key.TextRecipe),
        "### `catalogue.table`\n",
        CATALOGUE,
        document(catalogue.metadata),
        "### `problems/*.jsonl`, a line each\n",
        document(writing.line),
        "### `bad.jsonl`, a line each, of what verify moved aside\n",
        "`schema`, and:\n",
        table(verify.Bad),
        "## Lists beside tars\n",
        "`pack` writes `<tar>.json` beside each tar:\n",
        document(packing.contents),
    ]


def columns() -> str:
    """A row for each column of an index."""
    notes = comments(index.Row) | schema_comments()
    rows = [
        f"| `{one.name}` | {one.type}{' or null' if one.nullable else ''} | {notes.get(one.name, '')} |"
        for one in index.SCHEMA
    ]
    return "| column | type | |\n|-|-|-|\n" + "\n".join(rows) + "\n"


def schema_comments() -> dict[str, str]:
    """The comments of columns that workers do not read."""
    found = re.findall(r'pa\.field\("(\w+)".*\),  # (.*)$', inspect.getsource(index), re.MULTILINE)
    return dict(found)


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
    for name, value in zip(made.keys, made.values, strict=True):
        remark = re.search(r"  # (.*)$", lines[value.end_lineno - 1])  # type: ignore[operator]
        if name is None:  # several keys, which the comment names
            rows.append("| {} | {} |".format(*remark[1].split(": ", 1)))  # type: ignore[index]
            continue
        rows.append(f"| `{name.value}` | {remark[1] if remark else ''} |")  # type: ignore[attr-defined]
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
