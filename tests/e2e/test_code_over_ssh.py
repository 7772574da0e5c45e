"""A program's folder into the shared dir over real SSH, from several nodes at once and through a broken line."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from clusterft import hosts, places
from clusterft.fleet import Fleet
from clusterft.remote import Remote, Unreachable
from clusterft.ship import code, depot
from lab import LightLab

pytestmark = pytest.mark.lab_light


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Two nodes that share a directory."""
    with LightLab.up(count=2) as made:
        yield made


@pytest.fixture
def fleet(lab: LightLab) -> Iterator[Fleet]:
    """Logged in to both."""
    with Fleet(hosts.parse(lab.hostfile.read_text(), path=lab.hostfile, name="code"), lab.known_hosts) as made:
        made.survey(lambda node: ())
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hundred small files and one of 8 MiB."""
    root = tmp_path / "code"
    (root / "model").mkdir(parents=True)
    for number in range(100):
        (root / "model" / f"layer {number}.py").write_text(f"N = {number}\n")
    (root / "table.bin").write_bytes(bytes(range(256)) * (8 << 12))
    (root / "train.py").write_text("print('hello')\n")
    return root


def read_there(remote: Remote, path: PurePosixPath) -> str:
    """As the node sees it."""
    done = remote.run(("cat", str(path)))
    assert done.code == 0, done.err
    return done.out


def test_one_node_takes_it_and_all_see_it(fleet: Fleet, lab: LightLab, folder: Path) -> None:
    first, second = fleet.remotes["n1"], fleet.remotes["n2"]
    shared = PurePosixPath(lab.shared, "over ssh")
    heard: list[int] = []
    sent = code.send(first, code.read(folder), shared, heard.append)
    assert sent.files == 102 and sent.bytes == heard[-1] > 8 << 20
    assert read_there(second, sent.path / "train.py") == "print('hello')\n"
    began = time.monotonic()
    assert code.send(second, code.read(folder), shared) == depot.Sent(sent.path, 0, 0)
    assert time.monotonic() - began < 5
    (folder / "train.py").write_text("print('goodbye')\n")
    changed = code.send(second, code.read(folder), shared)
    assert (changed.files, changed.bytes) == (1, 17)
    assert read_there(first, changed.path / "train.py") == "print('goodbye')\n"
    assert read_there(first, sent.path / "train.py") == "print('hello')\n"


def test_both_nodes_at_once_come_to_the_same(fleet: Fleet, lab: LightLab, folder: Path) -> None:
    shared = PurePosixPath(lab.shared, "at once")
    tree = code.read(folder)
    results: list[depot.Sent] = []
    threads = [
        threading.Thread(target=lambda name=name: results.append(code.send(fleet.remotes[name], tree, shared)))
        for name in ("n1", "n2", "n1", "n2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.path for one in results} == {places.code(shared, tree.digest)} and len(results) == 4
    assert leftovers(fleet, shared) == []


def test_a_line_that_breaks_leaves_nothing_under_the_name(fleet: Fleet, lab: LightLab, folder: Path) -> None:
    shared = PurePosixPath(lab.shared, "broken")
    tree = code.read(folder)

    def gone(count: int) -> None:
        if count > 4 << 20:
            fleet.remotes["n1"].close()

    with pytest.raises(Unreachable):
        code.send(fleet.remotes["n1"], tree, shared, gone)
    assert fleet.remotes["n2"].run(("test", "-e", str(places.code(shared, tree.digest)))).code != 0
    sent = code.send(fleet.remotes["n2"], tree, shared)
    assert read_there(fleet.remotes["n2"], sent.path / "train.py") == "print('hello')\n"
    deadline = time.monotonic() + 10
    while leftovers(fleet, shared) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert leftovers(fleet, shared) == []


def leftovers(fleet: Fleet, shared: PurePosixPath) -> list[str]:
    """Folders of attempts that nobody cleared away."""
    listed = fleet.remotes["n2"].run(("ls", "-A", str(depot.top(shared))))
    return [name for name in listed.out.split() if name.startswith(".")]
