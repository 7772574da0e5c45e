"""Sources whose metadata others wrote: kohya's files, tag rules, tables, tars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from corpora import SKIPPING, indexed, npz, picture, put, report, tar
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus_ingest import settle

from clusterft_trainer import kohya as kohya_files
from clusterft_trainer.config.data import Problems
from clusterft_trainer.config.sources import Columns, KohyaSource, TableSource, TaggedSource, TagRules, TarSource
from clusterft_trainer.corpus import streamed, tags
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.corpus.look import Reader
from clusterft_trainer.errors import DataError

pytestmark = pytest.mark.trainer


def rows(index: Index) -> dict[str, Any]:
    return {index.row(i).name: index.row(i) for i in range(len(index))}


def kohya(tmp_path: Path, entries: dict[str, Any], name: str = "meta.json") -> KohyaSource:
    return KohyaSource(kohya=str(put(tmp_path / "in" / name, json.dumps(entries, indent=2))))


# kohya


def test_kohya_keys_are_stems_or_names_or_whole_paths(tmp_path: Path) -> None:
    for k, name in enumerate(("a.png", "b.webp", "sub/c.jpg", "d.png")):
        put(
            tmp_path / "in" / name,
            picture(20 + k, 30, kind={"g": "PNG", "p": "WEBP"}.get(name[-1], "PNG"), seed=k),
        )
    source = kohya(
        tmp_path,
        {
            "a": {"caption": "one", "tags": "x, y"},
            "b.webp": {"tags": "only tags "},
            str(tmp_path / "in/sub/c.jpg"): {"caption": "first\nsecond", "tags": "t"},
            "sub\\..\\d.png": {"caption": "out"},
        },
    )
    with pytest.raises(DataError, match="leads out"):
        indexed(tmp_path / "out", source)
    found = rows(indexed(tmp_path / "out", source, problems=SKIPPING))
    assert {name: row.caption for name, row in found.items()} == {
        "a": "one,x, y",
        "b.webp": "only tags",
        "sub/c.jpg": "first,t\nsecond,t",
    }
    assert found["a"].file == str(tmp_path / "in/a.png")
    assert (found["a"].width, found["a"].hash) == (
        20,
        xxhash.xxh3_128_digest((tmp_path / "in/a.png").read_bytes()),
    )


def test_kohya_caches_stand_for_pictures_that_are_gone(tmp_path: Path) -> None:
    root = tmp_path / "in"
    npz(root / "legacy.npz", (640, 480))
    npz(root / "new_0801x0600_sdxl.npz", (801, 600))
    npz(root / "both.npz", (11, 12))
    npz(root / "both_0999x0999_sdxl.npz", (999, 999))
    npz(root / "told_0300x0200_sdxl.npz", (300, 200))
    npz(root / "old.npz")
    npz(root / "older.npz")
    npz(root / "renamed_0300x0200_sdxl.npz", (64, 64))
    put(root / "rotten.npz", b"PK\x03\x04 nothing")
    put(root / "legacy.png", picture())
    source = kohya(
        tmp_path,
        {
            "legacy": {"caption": "l", "train_resolution": [640, 448]},
            "new": {"caption": "n"},
            "both": {"caption": "b"},
            "told.png": {"caption": "t", "image_size": [300, 200]},
            "old": {"caption": "o", "train_resolution": [704, 512]},
            "older": {"caption": "?"},
            "renamed": {"caption": "?"},
            "rotten": {"caption": "r"},
            "gone": {"caption": "g"},
        },
    )
    found = rows(indexed(tmp_path / "out", source, problems=SKIPPING))
    assert {name: (row.width, row.height) for name, row in found.items()} == {
        "legacy": (640, 480),
        "new": (801, 600),
        "both": (11, 12),
        "told.png": (300, 200),
    }
    both = root / "both.npz"
    assert found["both"].npz == str(both) and found["both"].hash == kohya_files.look(both).identity
    assert found["legacy"].file == str(root / "legacy.png") and found["new"].file == ""
    told = report(tmp_path / "out")["found"]
    assert {entry["name"]: entry["detail"] for entry in told["broken"]["names"]} == {
        "old": "its cache: it holds no original_size",
        "older": "its cache: it holds no original_size",
        "renamed": "its cache is of a picture of 64x64, its name says 300x200",
        "rotten": "its cache: it lost its tail",
    }
    assert [entry["name"] for entry in told["absent"]["names"]] == ["gone"]


def test_a_picture_takes_the_place_of_a_cache_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    names = ["torn", "oldest", "whole", "both"]
    for k, name in enumerate(names):
        put(root / f"{name}.png", picture(20 + k, 30, seed=k))
        npz(root / f"{name}.npz", (640, 480))
    put(root / "torn.npz", (root / "torn.npz").read_bytes()[:-200])
    np.savez(root / "oldest.npz", np.zeros((4, 8, 8), np.float32))
    put(root / "both.npz", b"")
    put(root / "both.png", picture()[:40])
    settle(root)
    source = kohya(tmp_path, {name: {"caption": name, "image_size": [640, 480]} for name in names})
    real = Reader.picture
    for again in (False, True):
        found = rows(indexed(tmp_path / "out", source, problems=SKIPPING))
        assert {name: (row.width, row.npz) for name, row in found.items()} == {
            "torn": (20, ""),
            "oldest": (21, ""),
            "whole": (640, str(root / "whole.npz")),
        }
        assert found["torn"].hash == xxhash.xxh3_128_digest((root / "torn.png").read_bytes())
        told = report(tmp_path / "out")["found"]
        assert (told["bad_cache"]["count"], told["bad_cache"]["decision"]) == (2, "keep")
        assert {entry["name"]: entry["detail"] for entry in told["bad_cache"]["names"]} == {
            "torn": "its cache: it lost its tail, or it is no file of np.savez",
            "oldest": "its cache: it is of the oldest kind, which holds no sizes",
        }
        assert [entry["name"] for entry in told["broken"]["names"]] == ["both"]
        if not again:  # what is known of pictures with bad caches is not read again
            monkeypatch.setattr(Reader, "picture", lambda self, name: real(self, name) if "both" in name else None)
    npz(root / "torn.npz", (640, 480))  # mended
    settle(root)
    found = rows(indexed(tmp_path / "out", source, problems=SKIPPING))
    assert (found["torn"].width, found["torn"].npz) == (640, str(root / "torn.npz"))
    assert report(tmp_path / "out")["found"]["bad_cache"]["count"] == 1


def test_kohya_caches_can_lie_elsewhere_or_be_left_alone(tmp_path: Path) -> None:
    npz(tmp_path / "cache/sub/a.npz", (640, 480))
    put(tmp_path / "pictures/sub/a.png", picture(33, 44))
    source = KohyaSource(
        kohya=str(put(tmp_path / "meta.json", json.dumps({"sub/a": {"caption": "c"}}))),
        folder=str(tmp_path / "pictures"),
        npz=str(tmp_path / "cache"),
    )
    with_cache = indexed(tmp_path / "out", source).row(0)
    assert (with_cache.width, with_cache.npz) == (640, str(tmp_path / "cache/sub/a.npz"))
    without = indexed(tmp_path / "out2", source, npz=False).row(0)
    assert (without.width, without.npz, len(without.hash)) == (33, "", 16)


def test_kohya_json_lines_of_the_newer_trainer(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png", picture(20, 30))
    npz(tmp_path / "in/b_0640x0480_sdxl.npz", (640, 480))
    lines = [
        {"image_path": "a.png", "caption": "one", "tags": ["x", "y"]},
        {"image_path": "b.png", "tags": "z", "image_size": [640, 480]},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\nnot json\n[1]\n"
    source = KohyaSource(kohya=str(put(tmp_path / "in/meta.jsonl", text)))
    found = rows(indexed(tmp_path / "out", source, problems=SKIPPING))
    assert [(row.caption, row.width) for row in found.values()] == [("one,x, y", 20), ("z", 640)]
    assert report(tmp_path / "out")["found"]["metadata"]["count"] == 2


def test_kohya_paths_never_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", picture())
    npz(tmp_path / "secret.npz", (1, 1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    keys = [
        "../secret",
        str(tmp_path / "secret.png"),
        "/etc/passwd",
        "link/secret",
        "link/secret.png",
        "a\0b",
        "\ud800",
    ]
    source = kohya(tmp_path, {key: {"caption": "c"} for key in keys})
    assert len(indexed(tmp_path / "out", source, problems=SKIPPING)) == 0
    told = report(tmp_path / "out")["found"]
    assert sum(kind["count"] for kind in told.values()) == len(keys)
    assert told["outside"]["count"] >= 3 and told["metadata"]["count"] == 2


def test_a_second_run_takes_new_captions_and_reads_no_picture_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(5):
        put(tmp_path / f"in/{k}.png", picture(20 + k, 30, seed=k))
    npz(tmp_path / "in/cached.npz", (640, 480))
    names = [*map(str, range(5)), "cached"]
    kohya(tmp_path, {name: {"caption": "old"} for name in names})
    settle(tmp_path / "in")
    source = KohyaSource(kohya=str(tmp_path / "in/meta.json"))
    first = rows(indexed(tmp_path / "out", source))
    kohya(tmp_path, {name: {"caption": "new"} for name in reversed(names)})
    monkeypatch.setattr("clusterft_trainer.corpus.look.Reader.picture", None)
    monkeypatch.setattr("clusterft_trainer.corpus.cached.kohya.look", None)
    second = rows(indexed(tmp_path / "out", source))
    assert {row.caption for row in second.values()} == {"new"}
    assert {n: (r.width, r.hash, r.npz, r.file) for n, r in second.items()} == {
        n: (r.width, r.hash, r.npz, r.file) for n, r in first.items()
    }


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": {}', '{"a" {}}', '{"a": {"caption": "\x01"}}', '{"a": {}; "b": {}}'],
)
def test_metadata_that_is_no_json_is_refused_by_name(tmp_path: Path, text: str) -> None:
    source = KohyaSource(kohya=str(put(tmp_path / "in/meta.json", text)))
    with pytest.raises(DataError, match=r"meta\.json is not readable JSON"):
        indexed(tmp_path / "out", source)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.text(), values, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40)
)
def test_streaming_gives_what_json_gives_however_the_file_is_cut(body, indent, ascii_only, piece) -> None:
    import io

    data = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    kept, streamed._PIECE = streamed._PIECE, piece
    try:
        data.decode()
        assert dict(streamed.members(io.BytesIO(data), "x")) == json.loads(data)
        for end in range(0, len(data) - 1, 7):
            with pytest.raises(DataError):
                list(streamed.members(io.BytesIO(data[:end]), "x"))
    except UnicodeDecodeError:
        pass
    finally:
        streamed._PIECE = kept


# tags and scores


def tagged(tmp_path: Path, *bodies: dict[str, Any], **rules: Any) -> TaggedSource:
    for k, body in enumerate(bodies):
        path = f"images/{k % 2}/{k}.png"
        put(tmp_path / "in" / path, picture(20 + k, 30, seed=k))
        put(tmp_path / f"in/metadata/{k % 3}/{k}.json", json.dumps({"path": path, "extra": 1} | body))
    return TaggedSource(tagged=str(tmp_path / "in"), rules=TagRules(**rules))


def test_rules_are_applied_in_the_order_of_their_inventor() -> None:
    rules = TagRules(
        absolute_minimum_score=50,
        minimum_score=200,
        score_tags=(100, 3200, 200),
        bonus={"solo": 100, "scr100": 20, "sketch": -75},
        blacklist=("gore", "scr3200"),
        non_caption=("source:", "oc"),
        replacements={"princess luna": "luna", "artist:": "by=", ":": "="},
    )
    said = lambda tags_, score: tags.caption(tags_, score, rules)  # noqa: E731
    assert (
        said(["solo", "artist:x", "princess luna", "source:y", "oc", "a:b"], 100)
        == "a=b, by=x, luna, scr100, solo"
    )
    assert said(["solo"], 49) == tags.LeftOut("absolute_minimum_score")
    assert said(["solo"], None) == tags.LeftOut("absolute_minimum_score")
    assert said(["solo", "sketch"], 100) == tags.LeftOut("minimum_score")
    assert said(["solo", "gore"], 500) == tags.LeftOut("blacklist")
    assert said([], 4000) == tags.LeftOut("blacklist")
    assert said(["b", "a"], 200) == "a, b, scr200"


def test_a_tagged_folder_has_tags_scores_and_what_the_rules_leave(tmp_path: Path) -> None:
    source = tagged(
        tmp_path,
        {"tags": ["b", "a"], "score": 60},
        {"tags": ["a"], "score": 3},
        {"tags": ["bad"], "score": 90},
        {"tags": ["c"], "score": 70},
        absolute_minimum_score=10,
        blacklist=("bad",),
    )
    found = rows(indexed(tmp_path / "out", source))
    assert {n: (r.caption, r.score) for n, r in found.items()} == {
        "images/0/0.png": ("a, b", 60.0),
        "images/1/3.png": ("c", 70.0),
    }
    assert report(tmp_path / "out")["left_out"] == {"absolute_minimum_score": 1, "blacklist": 1}


def test_every_nth_and_its_other_half_are_all_and_share_nothing(tmp_path: Path) -> None:
    bodies = [{"tags": ["t"]}] * 10
    one = rows(indexed(tmp_path / "out", tagged(tmp_path, *bodies, every_nth=3)))
    other = rows(indexed(tmp_path / "out", tagged(tmp_path, *bodies, not_every_nth=3)))
    assert (len(one), len(other)) == (4, 6)
    assert not set(one) & set(other)


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe", b"[]", b'{"tags": "a", "path": "images/0/0.png"}', b'{"tags": []}', b"", b"[" * 100_000]
    + [b'{"tags": ["a"], "score": "high", "path": "images/0/0.png"}', b'{"tags": ["a"], "path": ""}'],
)
def test_metadata_that_says_nothing_is_named(tmp_path: Path, body: bytes) -> None:
    source = tagged(tmp_path, {"tags": ["a"]})
    put(tmp_path / "in/metadata/bad.json", body)
    with pytest.raises(DataError, match=r"metadata/bad\.json"):
        indexed(tmp_path / "out", source)
    assert len(indexed(tmp_path / "out", source, problems=SKIPPING)) == 1


@pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "images/../../x.png"])
def test_metadata_paths_never_leave_the_folder(tmp_path: Path, path: str) -> None:
    put(tmp_path / "x.png", picture())
    source = tagged(tmp_path, {"tags": ["a"], "path": path})
    assert len(indexed(tmp_path / "out", source, problems=SKIPPING)) == 0
    assert report(tmp_path / "out")["found"]["outside"]["count"] == 1


# tables

COLUMNS = {"filename": ["a.png", "b.png", "no.png"], "caption": ["one", None, "three"], "width": [20, 99, 1]}


def write(path: Path, kind: str, columns: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        body = [
            ",".join(columns),
            *(",".join("" if v is None else f'"{v}"' for v in row.values()) for row in table.to_pylist()),
        ]
        path.write_text("\n".join(body) + "\n")
    else:
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_of_every_kind(tmp_path: Path, kind: str) -> None:
    for k, name in enumerate("ab"):
        put(tmp_path / f"in/{name}.png", picture(20 + k, 30, seed=k))
    columns = COLUMNS | {"height": [30, 30, 1], "rating": [1.5, 2.5, 3.5]}
    path = write(tmp_path / f"in/meta.{kind}", kind, columns)
    source = TableSource(table=str(path), columns=Columns(score="rating"))
    found = rows(indexed(tmp_path / "out", source, problems=Problems(broken="skip", no_caption="empty")))
    assert {n: (r.caption, r.score, r.width) for n, r in found.items()} == {
        "a.png": ("one", 1.5, 20),
        "b.png": ("", 2.5, 21),
    }
    told = report(tmp_path / "out")["found"]
    assert told["absent"]["names"][0]["name"] == "no.png"
    assert "99x30 said, 21x30 seen" in told["size_differs"]["names"][0]["detail"]
    assert told["empty_text" if kind == "csv" else "no_text"]["count"] == 1


def test_a_second_run_over_a_table_reads_no_picture_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, name in enumerate("ab"):
        put(tmp_path / f"in/{name}.png", picture(20 + k, 30, seed=k))
    settle(tmp_path / "in")
    path = write(tmp_path / "in/m.jsonl", "jsonl", {"filename": ["a.png", "b.png"], "caption": ["1", "2"]})
    first = rows(indexed(tmp_path / "out", TableSource(table=str(path))))
    monkeypatch.setattr("clusterft_trainer.corpus.look.Reader.picture", None)
    write(path, "jsonl", {"filename": ["b.png", "a.png"], "caption": ["two", "1"]})
    second = rows(indexed(tmp_path / "out", TableSource(table=str(path))))
    assert {n: r.hash for n, r in second.items()} == {n: r.hash for n, r in first.items()}
    assert {n: r.caption for n, r in second.items()} == {"a.png": "1", "b.png": "two"}


def test_several_tables_name_pictures_beside_each_and_tags_go_behind_captions(tmp_path: Path) -> None:
    for k in range(2):
        put(tmp_path / f"in/{k}/x.png", picture(seed=k))
        write(tmp_path / f"in/{k}/m.parquet", "parquet", {"f": ["x.png"], "c": [f"cap{k}"], "t": [["p", "q"]]})
    source = TableSource(table=str(tmp_path / "in/*/m.parquet"), columns=Columns(file="f", caption="c", tags="t"))
    found = rows(indexed(tmp_path / "out", source))
    assert {n: r.caption for n, r in found.items()} == {"0/x.png": "cap0, p, q", "1/x.png": "cap1, p, q"}


def test_a_table_without_the_column_or_not_a_table_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in/m.parquet", "parquet", {"file": ["a.png"]})
    with pytest.raises(DataError, match="no column 'filename'; it has 'file'"):
        indexed(tmp_path / "out", TableSource(table=str(path)))
    put(path, b"PAR1 and nothing")
    with pytest.raises(DataError, match=r"m\.parquet is not a readable table"):
        indexed(tmp_path / "out", TableSource(table=str(path)))
    with pytest.raises(DataError, match="no file there ends in"):
        indexed(tmp_path / "out", TableSource(table=str(tmp_path / "in/*.xlsx")))


def test_a_picture_that_is_listed_twice_is_one_row(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png", picture())
    path = write(tmp_path / "in/m.jsonl", "jsonl", {"filename": ["a.png", "./a.png"], "caption": ["1", "2"]})
    assert len(indexed(tmp_path / "out", TableSource(table=str(path)), problems=SKIPPING)) == 1
    with pytest.raises(DataError, match=r"a\.png"):
        indexed(tmp_path / "out", TableSource(table=str(path)))


# tars


def test_a_row_of_a_tar_is_a_place_in_it(tmp_path: Path) -> None:
    members = [
        (f"d/{k}{suffix}", data)
        for k in range(6)
        for suffix, data in ((".png", picture(20 + k, seed=k)), (".txt", b"t%d" % k))
    ]
    members.insert(3, ("d/2.json", json.dumps({"caption": "from json", "score": 5}).encode()))
    members.remove(("d/2.txt", b"t2"))
    tar(tmp_path / "in/0.tar", members[:8])
    tar(tmp_path / "in/sub/1.tar", members[8:])
    index = indexed(tmp_path / "out", TarSource(tars=str(tmp_path / "in")))
    for i in range(len(index)):
        row = index.row(i)
        with open(row.file, "rb") as file:
            file.seek(row.offset)
            assert xxhash.xxh3_128_digest(file.read(row.size)) == row.hash
    found = rows(index)
    assert found["0.tar/d/1.png"].caption == "t1" and found["0.tar/d/1.png"].width == 21
    assert found["0.tar/d/2.png"].caption == "from json"
    assert any(name.startswith("sub/1.tar/d/") for name in found)


def test_a_tar_is_read_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(2):
        tar(tmp_path / f"in/{k}.tar", [("a.png", picture(seed=k)), ("a.txt", b"old")])
    source = TarSource(tars=str(tmp_path / "in"))
    indexed(tmp_path / "out", source)
    read: list[str] = []
    real = __import__("clusterft_trainer.corpus.tars", fromlist=["x"]).scan
    monkeypatch.setattr(
        "clusterft_trainer.corpus.tars.scan",
        lambda job, place, stamp: (read.append(Path(place).name), real(job, place, stamp))[1],
    )
    assert len(indexed(tmp_path / "out", source)) == 2
    assert read == []
    tar(tmp_path / "in/1.tar", [("a.png", picture(seed=1)), ("a.txt", b"a new caption")])
    index = indexed(tmp_path / "out", source)
    assert read == ["1.tar"]
    assert [index.caption(i) for i in range(2)] == ["old", "a new caption"]


def test_bad_members_and_tars_that_lost_their_tail_are_named(tmp_path: Path) -> None:
    good = [("good.png", picture(seed=1)), ("good.txt", b"g")]
    bad = [
        ("../out.png", picture(seed=2)),
        ("/abs.png", picture(seed=3)),
        ("rot.png", b"no picture"),
        ("good.jpg", picture(seed=4)),
    ]
    tar(tmp_path / "in/a.tar", [*good, *bad])
    whole = tar(tmp_path / "in/b.tar", [*good, ("last.png", picture(200, 200, seed=5))])
    whole.write_bytes(whole.read_bytes()[:50_000])
    source = TarSource(tars=str(tmp_path / "in"))
    with pytest.raises(DataError, match=r"a\.tar/"):
        indexed(tmp_path / "out", source)
    for _ in range(2):
        index = indexed(tmp_path / "out", source, problems=Problems(broken="skip", no_caption="skip"))
        assert list(rows(index)) == ["a.tar/good.png", "b.tar/good.png"]
        told = report(tmp_path / "out")["found"]
        assert told["outside"]["count"] == 2
        assert [entry["name"] for entry in told["broken"]["names"]] == ["a.tar/rot.png", "b.tar"]
        assert told["shared_stem"]["names"][0]["name"] == "a.tar/good.jpg"


def test_compressed_tars_and_none_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "in/a.tar.gz", b"x")
    with pytest.raises(DataError, match=r"no \.tar file"):
        indexed(tmp_path / "out", TarSource(tars=str(tmp_path / "in")))
    with pytest.raises(DataError, match=r"does not end in \.tar"):
        indexed(tmp_path / "out", TarSource(tars=str(tmp_path / "in/a.tar.gz")))
