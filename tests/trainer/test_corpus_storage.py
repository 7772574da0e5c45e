"""Sources on S3-compatible storage: a server of its own, with and without errors."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import SKIPPING, indexed, npz, pairs, picture, put, report, tar
from fsspec.implementations.arrow import ArrowFSWrapper

from clusterft_trainer.config.sources import FolderSource, KohyaSource, TableSource, TaggedSource, TarSource
from clusterft_trainer.corpus import reach
from clusterft_trainer.corpus.remote import RemoteReader
from clusterft_trainer.errors import DataError, RunError

pytest.importorskip("moto")
pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    reach._client.cache_clear()
    name = f"set{time.monotonic_ns()}"
    request = urllib.request.Request(f"{server}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return name


def put_object(url: str, data: bytes) -> None:
    # without a type, urllib says it is a form, and the server takes it apart
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT"), timeout=10).close()


def upload(server: str, bucket: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put_object(f"{server}/{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_a_bucket_gives_the_rows_that_a_folder_gives(tmp_path: Path, server: str, bucket: str) -> None:
    root = pairs(tmp_path / "in", 12)
    upload(server, bucket, root)
    local = indexed(tmp_path / "out", FolderSource(folder=str(root)))
    remote = indexed(tmp_path / "remote", FolderSource(folder=f"s3://{bucket}/"))
    assert remote.digest == local.digest
    assert remote.column("hash").to_pylist() == local.column("hash").to_pylist()
    assert remote.row(1).file == f"s3://{bucket}/{remote.row(1).name}"


def test_a_second_run_asks_for_what_changed_only(
    tmp_path: Path, server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pairs(tmp_path / "in", 6)
    upload(server, bucket, root)
    source = FolderSource(folder=f"s3://{bucket}")
    indexed(tmp_path / "out", source)
    time.sleep(1.1)  # the server keeps whole seconds
    reach.client(f"s3://{bucket}").pipe_file(f"{bucket}/0000.txt", b"edited now")
    asked: list[str] = []
    real = RemoteReader._data
    monkeypatch.setattr(RemoteReader, "_data", lambda self, name: (asked.append(name), real(self, name))[1])
    index = indexed(tmp_path / "out", source)
    assert asked == ["0000.txt"]
    assert index.caption(0) == "edited now"


def test_every_kind_of_source_reads_from_a_bucket(tmp_path: Path, server: str, bucket: str) -> None:
    root, url = tmp_path / "in", f"s3://{bucket}"
    for k in range(3):
        put(root / f"images/{k}.png", picture(20 + k, 30, seed=k))
        put(root / f"metadata/{k}.json", json.dumps({"tags": [f"t{k}"], "path": f"images/{k}.png"}))
    npz(root / "images/far.npz", (640, 480))
    names = [f"images/{k}" for k in range(3)]
    put(root / "meta.json", json.dumps({name: {"caption": "k"} for name in [*names, "images/far", "images/gone"]}))
    put(root / "meta.csv", "filename,caption\n" + "\n".join(f"{name}.png,c" for name in names))
    tar(root / "tars/0.tar", [("a.png", picture(seed=9)), ("a.txt", b"in a tar")])
    upload(server, bucket, root)
    index = indexed(
        tmp_path / "out",
        TaggedSource(tagged=url),
        KohyaSource(kohya=f"{url}/meta.json"),
        TableSource(table=f"{url}/*.csv"),
        TarSource(tars=f"{url}/tars"),
        problems=SKIPPING.model_copy(update={"duplicate": "keep"}),
    )
    assert [source["rows"] for source in index.head.sources] == [3, 4, 3, 1]
    assert [index.caption(i) for i in (0, 3, 7, 10)] == ["t0", "k", "c", "in a tar"]
    far = index.row(3)
    assert (far.name, far.width, far.npz) == ("images/far".replace("far", "0"), 20, "")
    rows = {index.row(i).name: index.row(i) for i in range(3, 7)}
    assert (rows["images/far"].width, rows["images/far"].npz) == (640, f"{url}/images/far.npz")
    assert index.row(10).file == f"{url}/tars/0.tar"
    assert report(tmp_path / "out")["found"]["absent"]["names"][0]["name"] == "images/gone"


def failing(times: int, name: str) -> object:
    """Make reads of one object fail that often."""
    left = [times]
    real = ArrowFSWrapper.cat_file

    def cat_file(self: ArrowFSWrapper, path: str, **options: object) -> bytes:
        if path.endswith(name) and left[0]:
            left[0] -= 1
            raise OSError(5, "AWS Error SLOW_DOWN during GetObject operation")
        return real(self, path, **options)

    return cat_file


def test_an_error_in_the_middle_is_tried_again_and_then_named_and_what_was_read_is_kept(
    tmp_path: Path, server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_PAUSE", 0.001)
    monkeypatch.setattr("clusterft_trainer.corpus.chunk.SIZE", 3)
    upload(server, bucket, pairs(tmp_path / "in", 9))
    source = FolderSource(folder=f"s3://{bucket}")
    with monkeypatch.context() as patch:
        patch.setattr(ArrowFSWrapper, "cat_file", failing(reach.TRIES - 1, "0006.png"))
        first = indexed(tmp_path / "out", source)
    with monkeypatch.context() as patch:
        patch.setattr(ArrowFSWrapper, "cat_file", failing(99, "0004.txt"))
        with pytest.raises(RunError, match=r"sub1/0004\.txt could not be read in 4 tries.*SLOW_DOWN"):
            indexed(tmp_path / "again", source)
    asked: list[str] = []
    real = RemoteReader._data
    monkeypatch.setattr(RemoteReader, "_data", lambda self, name: (asked.append(name), real(self, name))[1])
    assert indexed(tmp_path / "again", source).digest == first.digest
    assert not [name for name in asked if name.startswith("000")]  # they were in the journal


def test_storage_that_does_not_answer_and_a_scheme_that_nobody_knows_are_named(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_PAUSE", 0.001)
    with pytest.raises(DataError, match="s3://no-such-bucket-here is not there"):
        indexed(tmp_path / "out", FolderSource(folder="s3://no-such-bucket-here"))
    with monkeypatch.context() as patch:
        patch.setattr(ArrowFSWrapper, "ls", lambda *_, **__: (_ for _ in ()).throw(OSError("curlCode: 7")))
        with pytest.raises(RunError, match=rf"s3://{bucket} could not be read in 4 tries: curlCode: 7"):
            indexed(tmp_path / "out", FolderSource(folder=f"s3://{bucket}"))
    with pytest.raises(DataError, match="nope://x cannot be reached"):
        indexed(tmp_path / "out", FolderSource(folder="nope://x"))


def test_several_processes_read_from_a_bucket(tmp_path: Path, server: str, bucket: str) -> None:
    upload(server, bucket, pairs(tmp_path / "in", 5))
    assert len(indexed(tmp_path / "out", FolderSource(folder=f"s3://{bucket}"), processes=2)) == 5
