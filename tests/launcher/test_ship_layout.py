"""What of an image travels, and how it is written down: the pure half of shipping."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft import relay
from clusterft.errors import Blocked, ClusterftError
from clusterft.ship import Blob, ImageParts, docks, layout, origin, scripts


def parts() -> ImageParts:
    layers = (Blob("a" * 64, 10), Blob("b" * 64, 20))
    return ImageParts("clusterft:1", b'{"rootfs": {}}', layers)


def test_both_kinds_of_engine_are_told_the_same() -> None:
    documents = parts().documents("arriving:x")
    (old,) = json.loads(documents["manifest.json"])
    assert old == {
        "Config": f"blobs/sha256/{parts().config_digest.removeprefix('sha256:')}",
        "RepoTags": ["arriving:x"],
        "Layers": [f"blobs/sha256/{'a' * 64}", f"blobs/sha256/{'b' * 64}"],
    }
    (entry,) = json.loads(documents["index.json"])["manifests"]
    assert entry["digest"] == parts().manifest_digest
    assert entry["annotations"]["io.containerd.image.name"] == "docker.io/library/arriving:x"
    manifest = json.loads(documents[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"])
    assert [layer["digest"] for layer in manifest["layers"]] == list(parts().diff_ids)
    assert [layer["size"] for layer in manifest["layers"]] == [10, 20]
    assert documents[old["Config"]] == parts().config


def test_the_identity_does_not_depend_on_the_name_or_the_controller() -> None:
    assert parts().documents("a:b").keys() == parts().documents("c:d").keys()
    assert parts().manifest_digest == "sha256:bf582f5959f4a15b0d55a9856c3b005192f9c84ee1a57626853657bd9bfd0599"


def test_parts_survive_a_file() -> None:
    kept = json.loads(json.dumps(parts().to_dict()))
    assert ImageParts.from_dict(kept) == parts()
    assert ImageParts.from_dict(kept).manifest_digest == parts().manifest_digest


@pytest.mark.parametrize(
    ("present", "lacking"),
    [
        ([], "abc"),
        (["ab"], "c"),
        (["abc"], ""),
        (["abcd", "x"], ""),
        (["b", "bc"], "abc"),  # layers that lie on others are other layers to an engine
        (["axc"], "bc"),
        (["a", "ab", "ax"], "c"),
    ],
)
def test_a_layer_counts_only_on_top_of_its_own(present: list[str], lacking: str) -> None:
    assert layout.lacking(tuple("abc"), [tuple(chain) for chain in present]) == tuple(lacking)


# -- docker save -----------------------------------------------------------------


def tar(entries: dict[str, bytes]) -> io.BytesIO:
    return io.BytesIO(layout.packed(entries))


def named(data: bytes) -> str:
    return layout.digest_of(data)


LAYERS = [os.urandom(3 << 20), os.urandom(100), b"x" * (2 << 20)]
DIGESTS = [named(one) for one in LAYERS]
CONFIG = b'{"os": "linux"}'


def old_save() -> dict[str, bytes]:
    """Engine 20.10: a directory for each layer, whose name says nothing."""
    entries = {f"{i:064x}/layer.tar": one for i, one in enumerate(LAYERS)}
    entries |= {"0/VERSION": b"1.0", f"{named(CONFIG)}.json": CONFIG}
    return entries | {
        "manifest.json": json.dumps([{"Config": f"{named(CONFIG)}.json", "Layers": list(entries)[:3]}]).encode()
    }


def new_save(compress: bool) -> dict[str, bytes]:
    """Engines from 25 on; those with the containerd store keep layers as they were pulled or built."""
    stored = [gzip.compress(one[: len(one) // 2]) + gzip.compress(one[len(one) // 2 :]) for one in LAYERS]
    blobs = stored if compress else LAYERS
    entries = {f"blobs/sha256/{named(one)}": one for one in [*blobs, CONFIG]}
    manifest = [{"Config": f"blobs/sha256/{named(CONFIG)}", "Layers": list(entries)[:3]}]
    return {**dict(sorted(entries.items())), "index.json": b"{}", "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    "save", [old_save(), new_save(False), new_save(True)], ids=["20.10", "26.1", "containerd"]
)
@pytest.mark.parametrize("wanted", [{0, 1, 2}, {2}, {1}, set()])
def test_wanted_layers_are_found_by_what_they_hold(save: dict[str, bytes], wanted: set[int]) -> None:
    reader = origin.Reader(DIGESTS, {DIGESTS[i] for i in wanted}, sizes_known=False)
    found = reader.read(tar(save))
    assert found.config == CONFIG
    assert found.sizes == {named(one): len(one) for one in LAYERS}
    assert reader.spool.sizes == {DIGESTS[i]: len(LAYERS[i]) for i in wanted}
    for i in wanted:
        assert reader.spool.read(DIGESTS[i], 0, 1 << 30) == LAYERS[i]
        assert reader.spool.read(DIGESTS[i], 50, 10) == LAYERS[i][50:60]
    reader.spool.close()


def test_a_missing_layer_and_a_torn_stream_are_errors() -> None:
    save = new_save(False)
    del save[f"blobs/sha256/{DIGESTS[0]}"]
    with pytest.raises(ClusterftError, match=f"no layer sha256:{DIGESTS[0]}"):
        origin.Reader(DIGESTS, DIGESTS, sizes_known=False).read(tar(save))
    torn = io.BytesIO(tar(old_save()).getvalue()[: 4 << 20])
    with pytest.raises(tarfile.TarError):
        origin.Reader(DIGESTS, DIGESTS, sizes_known=False).read(torn)


def test_a_spoiled_layer_is_not_taken_for_the_layer() -> None:
    save = new_save(False)
    save[f"blobs/sha256/{DIGESTS[0]}"] = LAYERS[0][:-1] + b"?"
    with pytest.raises(ClusterftError, match="no layer"):
        origin.Reader(DIGESTS, DIGESTS, sizes_known=False).read(tar(save))


def test_a_zstd_layer_is_refused_by_name() -> None:
    with pytest.raises(ClusterftError, match="blobs/sha256/zz is compressed with zstd"):
        origin.Reader(DIGESTS, DIGESTS, sizes_known=False).read(tar({"blobs/sha256/zz": b"\x28\xb5\x2f\xfd0000"}))


def test_the_spool_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "SPOOL", tmp_path)
    reader = origin.Reader(DIGESTS, DIGESTS, sizes_known=False)
    reader.read(tar(old_save()))
    assert list(tmp_path.iterdir()) == [] and reader.spool.sizes
    reader.spool.close()


def test_a_controller_without_room_is_told_before_the_first_byte() -> None:
    with pytest.raises(Blocked) as caught:
        origin.check_room(1 << 60)
    (finding,) = caught.value.findings
    assert finding.id == "os.disk-full" and "MiB free in /var/tmp on the controller" in finding.evidence


# -- what nodes say ----------------------------------------------------------------


def look(spool: int, root: int, *, same: bool, blobs: dict[str, int] | None = None) -> docks.Look:
    rooms = (
        docks.Room("spool", "/var/tmp", spool << 20, "/"),
        docks.Room("target", "docker's /var/lib/docker", root << 20, "/" if same else "/data"),
    )
    return docks.Look("", (), ("linux", "amd64"), rooms, blobs or {})


@pytest.mark.parametrize(
    ("there", "place"),
    [
        (look(165, 265, same=False), None),
        (look(163, 265, same=False), "/var/tmp"),
        (look(165, 263, same=False), "docker's /var/lib/docker"),
        (look(429, 429, same=True), None),
        (look(427, 427, same=True), "/var/tmp"),
        (look(70, 265, same=False, blobs={"a": 95 << 20}), None),
    ],
)
def test_room_is_once_in_the_spool_and_twice_in_dockers_root(there: docks.Look, place: str | None) -> None:
    finding = there.room_for("n1", {"a": 100 << 20})
    assert (finding.evidence.partition(":")[0] if finding else None) == place
    assert there.room_for("n1", {}) is None


def test_noise_is_no_word_of_ours() -> None:
    lines = ["motd", "+ship at 5", "x +ship at 6", "+shipat 7", "+ship good", "+ship short no route to  host "]
    assert list(scripts.said(lines)) == [("at", "5"), ("good", ""), ("short", "no route to  host")]


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_node_puts_its_offset_where_the_relay_expects_it(offset: int, total: int) -> None:
    before, after = relay.serve_around("0" * 16, "a" * 64, total)
    assert f"{before} {offset} {after}" == relay.serve("0" * 16, "a" * 64, offset, total)
    assert f"{relay.serving_before('a' * 64)} {offset}" == relay.serving("a" * 64, offset)
