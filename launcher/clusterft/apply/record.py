"""What the controller writes down about a run: run.json and job.yaml in the shared dir, and a note of its own.

The note (in the controller's home) is how `stop` finds the nodes again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusterft import __version__, places
from clusterft.board import Verdict
from clusterft.errors import ClusterftError, UsageError
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.plan import LaunchPlan
from clusterft.remote import files, private

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Note:
    """Enough to reach a run's supervisors again."""

    run: str
    cluster: str
    hostfile: str
    run_dir: str
    stop: dict[str, list[str]]  # node -> the command that stops its part; empty where that is a container
    containers: bool = False


class Record:
    """One run's record, begun before the first process starts and ended after the last one is gone."""

    def __init__(self, planned: LaunchPlan, fleet: Fleet, job_text: str) -> None:
        self._plan = planned
        self._fleet = fleet
        self._job_text = job_text
        self._began = time.time()

    def begin(self) -> None:
        """Write the note, job.yaml and run.json."""
        head = self._fleet.remotes[self._plan.head.node.name]
        _save_note(self._note())
        files.write(head, self._plan.places.dir / "job.yaml", self._job_text)
        self._write("running", None)

    def end(self, verdict: Verdict) -> str | None:
        """Write down what the run came to; why that was not possible, if it was not.

        A share that fills up or hangs must not hide what the run came to.
        """
        try:
            self._write(verdict.end, verdict)
        except ClusterftError as error:
            return f"run.json still says that the run goes on: {error.what}"
        return None

    def _write(self, state: str, verdict: Verdict | None) -> None:
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "clusterft": __version__,
            "state": state,
            "began": self._began,
            "ended": time.time() if verdict else None,
            "verdict": verdict.to_dict() if verdict else None,
            "plan": self._plan.to_dict(),
        }
        text = json.dumps(body, indent=2) + "\n"
        path = self._plan.places.dir / "run.json"
        problem = ClusterftError(f"{path} cannot be written: no node is reachable")
        for remote in self._fleet.remotes.values():  # the shared dir is the same on all; the head may be gone
            try:
                files.write(remote, path, text)
            except ClusterftError as error:
                problem = error
            else:
                return
        raise problem

    def _note(self) -> Note:
        return Note(
            run=self._plan.run,
            cluster=self._plan.cluster,
            hostfile=str(self._fleet.cluster.path.absolute()),
            run_dir=str(self._plan.places.dir),
            stop={node.node.name: list(node.supervisor("stop")) for node in self._plan.nodes},
        )


def save_box(run: str, cluster: Cluster) -> None:
    """The note of containers that nobody has started a launcher in; kept before the first of them is made."""
    nodes: dict[str, list[str]] = {node.name: [] for node in cluster.active}
    _save_note(Note(run, cluster.name, str(cluster.path.absolute()), "", nodes, containers=True))


def forget_box(run: str) -> None:
    """Nothing of it was left."""
    (_notes() / f"{run}.json").unlink(missing_ok=True)


def forget_boxes(cluster: str) -> None:
    """`down` has taken these containers away; runs without containers keep their notes, for `stop`."""
    for path in _notes().glob("*.json"):
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["cluster"] == cluster and body.get("containers"):
            path.unlink()


def _notes() -> Path:
    return places.controller_home() / ".runs"  # no cluster's name begins with a dot


def _save_note(note: Note) -> None:
    private.write(_notes() / f"{note.run}.json", json.dumps({"schema": SCHEMA, **asdict(note)}).encode("utf-8"))


def find(run: str) -> Note:
    """The note of a run; UsageError with the nearest ids when there is none."""
    import difflib

    known = sorted(path.stem for path in _notes().glob("*.json"))
    if run not in known:
        near = difflib.get_close_matches(run, known, n=3) or known[-3:]
        raise UsageError(
            f'no run "{run}" was started from this controller',
            remedy="did you mean: " + ", ".join(near) if near else "",
        )
    body = json.loads((_notes() / f"{run}.json").read_text(encoding="utf-8"))
    del body["schema"]
    return Note(**body)
