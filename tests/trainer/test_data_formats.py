"""docs/formats.md against the files of the data path as they are written: no key is in one of them alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import made_cache
import numpy as np
import pyarrow as pa
import pytest
from corpora import SKIPPING, indexed, pairs, put, report

from clusterft_trainer.config.sources import FolderSource
from clusterft_trainer.corpus.faults import Fault
from clusterft_trainer.latents import packing, tables, verify, writing
from clusterft_trainer.latents.feeding import Problem
from clusterft_trainer.prep import status

pytestmark = pytest.mark.trainer
PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def told(heading: str, number: int = 0) -> set[str]:
    """The first column of a section's table."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.split(r"^\|-\|.*\n", section, flags=re.MULTILINE)[1:]
    rows = re.match(r"(?:\|.*\n)*", found[number])
    assert rows is not None
    cells = [line.split("|")[1] for line in rows[0].splitlines()]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_what_ingest_leaves_is_told(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 4)
    put(root / "torn.png", b"")
    put(root / "torn.txt", "torn")
    index = indexed(tmp_path / "out", FolderSource(folder=str(root)), problems=SKIPPING)
    head = json.loads((index.folder.parent / "index.json").read_text())
    assert told("index/*/index.json: which pictures there are") | {"schema"} == set(head)
    columns = told("index/*/index.json: which pictures there are", 1)
    for name in ("index.arrow", "left.arrow"):
        assert columns == set(pa.ipc.open_file(str(index.folder / name)).schema.names)
    body = report(tmp_path / "out")
    heading = "index/*/report.json: what is wrong with them"
    assert told(heading) == set(body) and told(heading, 1) == set(body["found"]["broken"])
    named = re.search(r"Each that was `found`, by its name \((.*)\)", PAGE.read_text())
    assert named and set(named[1].strip("`").split("`, `")) == {kind.name.lower() for kind in Fault if kind}


def test_what_a_cache_holds_is_told(tmp_path: Path) -> None:
    index = made_cache.indexed(tmp_path / "index", made_cache.pictures(tmp_path / "p", 5))
    made_cache.work(tmp_path, index, made_cache.Stub())
    folder = made_cache.order(tmp_path, index).folder
    path = sorted(folder.glob("*.safetensors"))[0]
    one = tables.Mapped(path).header
    assert told("Shards of a cache") == set(one.entries) and told("Shards of a cache", 1) == set(one.metadata)
    assert told("Shards of a cache", 2) == set(json.loads(one.metadata["recipe"])) - {"schema", "kind"}
    catalogue = tables.Mapped(folder / "catalogue.table").header
    assert told("`catalogue.table`") == set(catalogue.metadata)
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    verify.cache(folder)
    bad = json.loads((folder / "bad.jsonl").read_text().splitlines()[0])
    assert told("`bad.jsonl`, a line each, of what verify moved aside") | {"schema"} == set(bad)
    found = writing.line(Problem(b"k" * 16, "a.png", "/p/a.png", "broken", "torn"))
    assert told("`problems/*.jsonl`, a line each") == set(found)


def test_lists_of_tars_and_reports_are_told(tmp_path: Path) -> None:
    root = pairs(tmp_path / "in", 4)
    made = packing.pack(root, tmp_path / "tars", files=4)
    listed = json.loads(sorted((tmp_path / "tars").glob("*.json"))[0].read_text())
    assert told("Lists beside tars") == set(listed)
    assert told("`pack` and `unpack`") | {"schema"} == set(json.loads(made.to_json()))
    report_ = verify.Report("x")
    assert told("`verify`") | {"schema"} == set(json.loads(report_.to_json()))


def test_the_document_of_status_is_told() -> None:
    work = status.Work("latents-x/1", "latents", 5, 0, over=False, workers=1, rate=0.0)
    body = status.body([work], [status.Worker("one", True, "latents-x/1", 2, 0, 1.0)])
    assert told("`prep --status`") == {"missing", "index", "latents", "text"}
    assert told("`prep --status`", 1) == set(body)
    assert told("`prep --status`", 2) == set(body["work"][0])
    assert told("`prep --status`", 3) == set(body["workers"][0])
