"""The texts that run on a node, in a local shell: whose leftovers go, and what is one file and what is two."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest

from clusterft import ship
from clusterft.errors import UsageError
from clusterft.remote.local import LocalRemote
from clusterft.ship import docks, layout, scripts, tally
from clusterft.ship.manifest import Entry

SCRATCH = PurePosixPath("/var/tmp/clusterft-1000/Lab")
# An engine that has the image under any name, and writes down what it was asked.
_DOCKER = """\
echo "$*" >>"$0.asked"
case $* in
    load) cat >/dev/null ;;
    *'{{.Id}}'*) echo sha256:proven ;;
    *RootFS.Layers*) echo 'sha256:layer ' ;;
    "image ls --format"*) echo "$LEFT" | tr ' ' '\\n' ;;
    "tag "*) [ -z "$REFUSAL" ] || { echo "$REFUSAL" >&2; exit 1; } ;;
    version*) echo linux amd64 20.10 ;;
    create*) echo container ;;
esac
"""


class Docker:
    """The engine of `_DOCKER`."""

    def __init__(self, place: Path, **said: str) -> None:
        self._file = place / "docker"
        self._file.write_text(_DOCKER)
        words = {"LEFT": "", "REFUSAL": ""} | said
        self.command = ("env", *(f"{k}={v}" for k, v in words.items()), "sh", str(self._file))

    def asked(self) -> list[str]:
        """Every command line."""
        return Path(f"{self._file}.asked").read_text().splitlines()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    place = tmp_path / "top" / "cluster" / "0123456789abcdef"
    (place / "blobs" / "sha256").mkdir(parents=True)
    (place / "owner").write_text("me")
    return place


def test_each_shipment_has_a_name_of_its_own_that_docker_takes() -> None:
    name = docks.passing(SCRATCH, "0a" * 8)
    assert name.startswith(f"{docks.berth(SCRATCH)}-") and name.islower() and len(name.partition(":")[2]) < 128
    others = (PurePosixPath("/var/tmp/clusterft-1000/lab"), PurePosixPath("/var/tmp/clusterft-1001/Lab"))
    assert docks.berth(SCRATCH) not in {docks.berth(other) for other in others}
    assert docks.passing(SCRATCH, "0b" * 8) != name


def test_only_leftovers_of_the_same_user_and_cluster_go(tmp_path: Path) -> None:
    mine = docks.passing(SCRATCH, "dead")
    other = docks.passing(PurePosixPath("/var/tmp/clusterft-1001/Lab"), "alive")
    docker = Docker(tmp_path, LEFT=f"{other} {mine}")
    argv = scripts.sh(scripts.LOOK, "clusterft:1", docks.berth(SCRATCH), *docker.command)
    assert "looked" in dict(scripts.said(LocalRemote().run(argv).out.splitlines()))
    assert [line for line in docker.asked() if line.startswith("image rm")] == [f"image rm {mine}"]
    labels = [line for line in docker.asked() if "clusterft.proof" in line]
    assert len(labels) == 2 and all(f"clusterft.proof={docks.berth(SCRATCH)}" in line for line in labels)


def load(session: Path, docker: Docker) -> dict[str, str]:
    """What LOAD says."""
    passing = docks.passing(SCRATCH, "me")
    words = (session, "me", passing, "clusterft:1", "sha256:proven", "sha256:layer", "doc")
    argv = scripts.sh(scripts.LOAD, *map(str, words), *docker.command)
    return dict(scripts.said(LocalRemote().run(argv, stdin=layout.packed({"doc": b"x"})).out.splitlines()))


def test_the_name_is_given_to_the_id_that_was_proven(session: Path) -> None:
    docker = Docker(session)
    assert load(session, docker)["loaded"] == "sha256:proven"
    asked = docker.asked()
    assert "tag sha256:proven clusterft:1" in asked
    (create,) = [line for line in asked if line.startswith("create")]
    assert f"clusterft.proof={docks.berth(SCRATCH)} sha256:proven" in create
    assert asked.index(create) < asked.index("tag sha256:proven clusterft:1")
    assert asked[-1] == f"image rm {docks.passing(SCRATCH, 'me')}"


def test_a_name_that_the_engine_refuses_is_no_refused_load(session: Path) -> None:
    said = load(session, Docker(session, REFUSAL="refusing to create a tag with a digest reference"))
    assert said["unnamed"] == "refusing to create a tag with a digest reference" and "refused" not in said


@pytest.mark.parametrize(
    "name", ["base@sha256:" + "a" * 64, "base:1@sha256:" + "a" * 64, "base", "host:5000/base"]
)
def test_only_a_name_with_a_tag_can_be_given(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be given"):
        ship.image(cast(Any, None), name, cast(Any, None))


def stow(session: Path, top: Path, files: list[Entry], digests: dict[bytes, str]) -> dict[str, str]:
    """What STOW says."""
    names = [tally.at(entry.path) for entry in files]
    lists = {"packs": [], "big": tally.large(files, digests), "dirs": [b"./d"], "files": names, "modes": []}
    argv = scripts.sh(tally.STOW, str(session), str(top), "me", "n1")
    return dict(scripts.said(LocalRemote().run(argv, stdin=tally.packed(lists)).out.splitlines()))


def test_equal_large_files_are_files_of_their_own(session: Path, tmp_path: Path) -> None:
    data, top = b"equal" * 1000, tmp_path / "there"
    digest = layout.digest_of(data)
    blob = session / "blobs" / "sha256" / digest
    blob.write_bytes(data)
    files = [
        Entry(name, "f", 0o640, len(data), mtime=1_700_000_000) for name in (b"one", b"d/two", b"three\nline")
    ]
    assert "stowed" in stow(session, top, files, {entry.path: digest for entry in files})
    found = [top / entry.path.decode() for entry in files]
    assert len({path.stat().st_ino for path in found}) == 3
    assert {(path.stat().st_mode & 0o777, path.stat().st_mtime) for path in found} == {(0o640, 1_700_000_000)}
    assert all(path.read_bytes() == data for path in found) and blob.exists()
    with found[0].open("r+b") as file:
        file.write(b"E")
    assert found[1].read_bytes() == found[2].read_bytes() == data


def test_a_blob_that_has_another_name_is_not_taken_for_what_it_was(session: Path, tmp_path: Path) -> None:
    """A push whose end was lost leaves its blob, and the file beside it may be edited."""
    for name in ("a", "b"):
        (session / "blobs" / "sha256" / (name * 64)).write_bytes(b"bytes")
    (tmp_path / "weights").hardlink_to(session / "blobs" / "sha256" / ("a" * 64))
    for place in (session.parent.parent, session.parent, session):
        place.chmod(0o700)
    said = list(scripts.said(LocalRemote().run(scripts.sh(scripts.OPEN, str(session), "me")).out.splitlines()))
    assert [rest for word, rest in said if word == "blob"] == [f"{'b' * 64} 5"] and said[-1] == ("opened", "")
    assert (tmp_path / "weights").read_bytes() == b"bytes"
