"""Who has a node: the run whose supervisor lives, not the one that a lock file still names."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest

from clusterft import hosts
from clusterft.apply import occupancy
from clusterft.hosts import Cluster
from clusterft.places import NodePlaces
from clusterft.remote.local import LocalRemote


class Fleet:
    """This machine as two nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def each(self, work: Callable[[str, Any], Any]) -> dict[str, Any]:
        """The same for both."""
        return {node.name: work(node.name, LocalRemote()) for node in self.cluster.active}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Its own home, in which nobody has run anything."""
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path / "home"))
    file = tmp_path / "pair"
    file.write_text("n1 slots=1 transport=local\nn2 slots=1 transport=local\n")
    return Fleet(hosts.load(file))


@pytest.fixture
def at_work() -> Iterator[subprocess.Popen[bytes]]:
    """What stands for a supervisor."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def took(home: Path, node: str, run: str, pid: int) -> None:
    """A supervisor has started there."""
    places = NodePlaces(PurePosixPath(home), "pair", node)
    began = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    Path(places.run(run)).mkdir(parents=True)
    Path(places.lock).write_text(f"{run}\n")
    Path(places.run(run), "supervisor.json").write_text(f'{{"pid": {pid}, "start": {began}}}')


def look(fleet: Fleet, run: str = "mine") -> list[tuple[str, tuple[str, ...], str]]:
    """What `train` would be told, and its last remedy."""
    found = occupancy.found(cast(Any, fleet), fleet.cluster, run, contained=False)
    return [(one.id, one.nodes, one.fix[-1]) for one in found]


def test_a_supervisor_at_work_has_its_node(
    fleet: Fleet, tmp_path: Path, at_work: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy, "_SETTLES", 0.0)
    assert look(fleet) == []
    took(tmp_path / "home", "n2", "theirs", at_work.pid)
    assert look(fleet) == [("run.occupied", ("n2",), "or end it: clusterft stop theirs")]
    assert occupancy.at_work(cast(Any, fleet)) == {"n2": "theirs"}
    assert look(fleet, "theirs") == [], "a run is not in its own way"


def test_one_that_ends_meanwhile_is_waited_for(
    fleet: Fleet, tmp_path: Path, at_work: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    took(tmp_path / "home", "n1", "theirs", at_work.pid)
    monkeypatch.setattr(occupancy.time, "sleep", lambda seconds: at_work.kill())
    assert look(fleet) == []
