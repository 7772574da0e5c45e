"""When compressing pays, and that what comes out on a node is what went in; the scripts run in a local shell."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterft.remote.local import LocalRemote
from clusterft.ship import headsave, layout, scripts, squeeze
from clusterft.ship.origin import Spool

MIB = 1 << 20
_rates = st.floats(1e4, 1e10)


@pytest.mark.parametrize(
    ("ratio", "press", "link", "pays"),
    [
        (0.3, 1.0e9, 125e6, True),  # gigabit, eight cores
        (0.4, 1.0e9, 1.25e9, False),  # ten gigabit
        (0.9, 1.0e9, 12e6, False),
        (0.4, 0.1e9, 125e6, False),  # a controller of one slow core
        (0.4, 0.1e9, 2e6, True),  # a home's uplink
    ],
)
def test_it_pays_on_slow_links(ratio: float, press: float, link: float, pays: bool) -> None:
    assert squeeze.pays(10 << 30, ratio, press, link) is pays


@given(st.floats(0.01, 1.2), _rates, _rates)
def test_a_faster_link_never_makes_it_pay(ratio: float, press: float, link: float) -> None:
    if not squeeze.pays(1 << 30, ratio, press, link):
        assert not squeeze.pays(1 << 30, ratio, press, link * 2)


def spool_of(*blobs: bytes) -> Spool:
    spool = Spool()
    for blob in blobs:
        file = tempfile.TemporaryFile()
        file.write(blob)
        spool.put(layout.digest_of(blob), file)
    return spool


@pytest.fixture
def session(tmp_path: Path) -> Path:
    place = tmp_path / "0123456789abcdef"
    (place / "blobs" / "sha256").mkdir(parents=True)
    (place / "owner").write_text("me")
    return place


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not here; apt install zstd")
def test_what_is_released_is_what_was_pressed(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"%d words and words\n" % random.Random(i).randrange(10**6) for i in range(1_200_000))[
        : 20 * MIB
    ]
    noise, small = os.urandom(20 * MIB), b"x" * MIB
    spool = spool_of(text, noise, small)
    monkeypatch.setattr(squeeze, "link_rate", lambda remote: 1e6)
    press = squeeze.Press(spool, LocalRemote())
    assert press.squeezed(layout.digest_of(noise)) is None and press.squeezed(layout.digest_of(small)) is None
    done = press.squeezed(layout.digest_of(text))
    assert done is not None and spool.sizes[done] < len(text) // 2
    packed = spool.read(done, 0, len(text))
    assert layout.digest_of(packed) == done
    (session / "blobs" / "sha256" / done).write_bytes(packed)
    argv = scripts.sh(squeeze.RELEASE, str(session), "me", done, layout.digest_of(text))
    assert "released" in dict(scripts.said(LocalRemote().lines(argv)))
    assert (session / "blobs" / "sha256" / layout.digest_of(text)).read_bytes() == text
    # Another blob's bytes under that digest.
    argv = scripts.sh(squeeze.RELEASE, str(session), "me", done, "f" * 64)
    assert dict(scripts.said(LocalRemote().lines(argv)))["failed"].startswith("sha256 ")
    assert not (session / "blobs" / "sha256" / ("f" * 64)).exists()
    spool.close()


def test_a_fast_link_is_measured_and_gets_plain_bytes() -> None:
    if not shutil.which("zstd"):
        pytest.skip("zstd is not here; apt install zstd")
    spool = spool_of(b"word " * (4 * MIB))
    (digest,) = spool.sizes
    assert squeeze.link_rate(LocalRemote()) > 1e6
    press = squeeze.Press(spool, LocalRemote())
    press._link = 50e9
    assert press.squeezed(digest) is None
    spool.close()


def test_the_head_sorts_compressed_and_linked_layers(session: Path) -> None:
    """A `docker save` of every kind: plain, compressed, and a second name for the same layer."""
    layers = {"plain": os.urandom(5000), "zipped": os.urandom(7000)}
    save = session / "save"
    (save / "a").mkdir(parents=True)
    (save / "plain").write_bytes(layers["plain"])
    (save / "zipped").write_bytes(gzip.compress(layers["zipped"]))
    (save / "a" / "again").symlink_to("../plain")
    asked = []
    for file, name, wanted in (("plain", "plain", "no"), ("zipped", "zipped", "yes"), ("a/again", "plain", "yes")):
        asked += [file, layout.digest_of(layers[name]), wanted]
    said = list(scripts.said(LocalRemote().lines(scripts.sh(headsave.SORT, str(session), *asked))))
    sizes = [("plain", 5000), ("zipped", 7000), ("plain", 5000)]
    assert said == [("layer", f"{layout.digest_of(layers[n])} {s}") for n, s in sizes] + [("sorted", "")]
    for name, data in layers.items():
        assert (session / "blobs" / "sha256" / layout.digest_of(layers[name])).read_bytes() == data
    assert not save.exists()


def test_the_head_refuses_a_layer_that_is_not_what_it_says(session: Path) -> None:
    (session / "save").mkdir()
    (session / "save" / "x").write_bytes(b"other")
    said = dict(scripts.said(LocalRemote().lines(scripts.sh(headsave.SORT, str(session), "x", "a" * 64, "yes"))))
    assert "sha256 of x" in said["failed"] and list((session / "blobs" / "sha256").iterdir()) == []
