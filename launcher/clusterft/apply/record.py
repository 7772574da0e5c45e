"""What is written down about a run: run.json and job.yaml in the shared dir, and a note on the controller.

run.json is enough for any controller that reaches the nodes: it holds the plan and how each part is addressed. The
note (in the controller's home) is how a command finds the cluster of a run by the run's id alone.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from clusterft import __version__, places
from clusterft.board import Verdict
from clusterft.errors import ClusterftError
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.plan import LaunchPlan, Part, Prep
from clusterft.remote import Remote, files, private
from clusterft.spec import JobSpec

SCHEMA = 2
_READ_SECONDS = 10.0  # a share that hangs must not hold up who only wants to look
_CAT = 'cat -- "$1" 2>/dev/null || { [ ! -e "$1" ] && exit 44; exit 1; }'
_NOT_THERE = 44
# mkdir of one name succeeds once, on NFS too. Whose it is lies in it: an answer may be lost on its way.
_CLAIM = (
    'mkdir -p -- "${1%/*}" || exit 1; '
    'if mkdir -- "$1" 2>/dev/null; then printf "%s\\n" "$2" >"$1/by"; exit 0; fi; '
    '[ -d "$1" ] || { mkdir -- "$1"; exit; }; [ "$(cat -- "$1/by" 2>/dev/null)" != "$2" ] || exit 0; exit 45'
)
_HELD = 45
_RELEASE = 'rm -f -- "$1/by"; [ ! -d "$1" ] || rmdir -- "$1"'

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Note:
    """Enough to find a run's nodes again; the parts are for when the shared dir cannot be read."""

    run: str
    cluster: str
    hostfile: str
    run_dir: str  # empty for containers that nobody has started a launcher in
    parts: tuple[Part, ...] = ()

    @property
    def box(self) -> bool:
        """Whether these are containers of `open`."""
        return not self.run_dir


@dataclass(frozen=True, slots=True)
class Entry:
    """The contents of run.json."""

    job: dict[str, Any]  # the whole job as it was understood: every path is absolute, every default is there
    plan: dict[str, Any]  # LaunchPlan.to_dict() of the newest start
    parts: tuple[Part, ...]  # of the gang as it is now
    state: str  # running, or how it ended: ok, stopped, failed
    began: float
    ended: float | None = None
    verdict: dict[str, Any] | None = None
    preflight: bool = True
    code: str | None = None  # digest of a script's folder
    job_digest: str = ""
    controller: str = ""  # who started it, and where
    clusterft: str = __version__

    @property
    def run(self) -> str:
        """The id."""
        return str(self.plan["run"])

    @property
    def cluster(self) -> str:
        """By its name."""
        return str(self.plan["cluster"])

    @property
    def run_dir(self) -> PurePosixPath:
        """In the shared dir."""
        return PurePosixPath(self.plan["run_dir"])

    @property
    def prep(self) -> Prep | None:
        """What it prepares; None for a run that trains."""
        return Prep.from_plan(self.plan)

    @property
    def image(self) -> str | None:
        """What its containers were made from; None without containers."""
        box = self.plan["nodes"][0]["container"]
        return str(box["request"]["Image"]) if box else None

    def to_json(self) -> str:
        """As it is written."""
        parts = [part.to_dict() for part in self.parts]
        fields = {name: getattr(self, name) for name in self.__slots__} | {"parts": parts}
        head = {"schema": SCHEMA, "run": self.run, "cluster": self.cluster}
        return json.dumps(head | fields, indent=2) + "\n"


def parse(text: str, where: str = "run.json") -> Entry:
    """The reverse of to_json; ClusterftError says what does not fit."""
    try:
        body = json.loads(text)
        if body["schema"] != SCHEMA:
            raise ValueError(f"schema {body['schema']}, this version reads {SCHEMA}")
        known = {name: body[name] for name in Entry.__slots__}
        return Entry(**known | {"parts": tuple(Part.from_dict(part) for part in body["parts"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ClusterftError(f"not a record of a run: {error}", where=where) from None


def begin(planned: LaunchPlan, fleet: Fleet, job: JobSpec, job_text: str, code: str | None = None) -> Entry:
    """Write the note, job.yaml and run.json, before the first process starts."""
    entry = Entry(
        job=job.model_dump(mode="json"),
        plan=planned.to_dict(),
        parts=planned.parts,
        state="running",
        began=time.time(),
        preflight=planned.head.assignment.preflight,
        code=code,
        job_digest=hashlib.sha256(job_text.encode()).hexdigest(),
        controller=whoever(),
    )
    write_anywhere(fleet, entry.run_dir / "job.yaml", job_text)
    _save(entry, fleet)
    return entry


def again(entry: Entry, planned: LaunchPlan, fleet: Fleet, job: JobSpec, code: str | None) -> Entry:
    """The same run goes on, planned anew: the record of its new start. What it came to before no longer holds."""
    fresh = replace(
        entry,
        job=job.model_dump(mode="json"),
        code=code,
        plan=planned.to_dict(),
        parts=planned.parts,
        state="running",
        ended=None,
        verdict=None,
        preflight=planned.head.assignment.preflight,
        controller=whoever(),
        clusterft=__version__,
    )
    stale = [str(fresh.run_dir / name) for name in ("outcome.json", "report.html")]
    _first(fleet, lambda remote: _removed(remote, stale))
    _save(fresh, fleet)
    return fresh


def regrouped(entry: Entry, parts: tuple[Part, ...], fleet: Fleet) -> Entry:
    """The gang has other nodes now."""
    fresh = replace(entry, parts=parts)
    _save(fresh, fleet)
    return fresh


def end(entry: Entry, fleet: Fleet, verdict: Verdict) -> str | None:
    """Write down what the run came to; why that was not possible, if it was not.

    A share that fills up or hangs must not hide what the run came to.
    """
    over = replace(entry, state=verdict.end, ended=time.time(), verdict=verdict.to_dict())
    try:
        now = read(fleet, entry.run_dir)
        if now is not None and _first_attempt(now) > _first_attempt(entry):
            return f"run.json tells of a later start of {entry.run}, by {now.controller}: left as it is"
        write_anywhere(fleet, over.run_dir / "run.json", over.to_json())
    except ClusterftError as error:
        return f"run.json still says that the run goes on: {error.what}"
    return None


def _first_attempt(entry: Entry) -> int:
    return int(entry.plan.get("first_attempt") or 0)


def read_file(fleet: Fleet, path: PurePosixPath) -> str | None:
    """A file of the shared dir, from the first node that gives it; None where no node has it.

    ClusterftError when no node could say so.
    """
    problem: ClusterftError | None = None
    lacking = False
    for remote in list(fleet.remotes.values()):
        try:
            done = remote.run(("sh", "-c", _CAT, "sh", str(path)), seconds=_READ_SECONDS)
        except ClusterftError as error:
            problem = error
            continue
        if done.code == 0:
            return done.out
        if done.code == _NOT_THERE:
            lacking = True  # or its share is not mounted, and another one's is
            continue
        problem = ClusterftError(f"{path} cannot be read: {done.err.strip() or f'exit code {done.code}'}")
    if problem is None and lacking:
        return None
    raise problem or ClusterftError(f"{path} cannot be read: no node is reachable")


def read(fleet: Fleet, run_dir: PurePosixPath) -> Entry | None:
    """The record in a run's directory; None where there is none."""
    path = run_dir / "run.json"
    text = read_file(fleet, path)
    return None if text is None else parse(text, str(path))


def whoever() -> str:
    """Who types here, and where: for the one who finds the nodes in use."""
    try:
        person = getpass.getuser()
    except (KeyError, OSError):
        person = "somebody"
    return f"{person}@{socket.gethostname()}"


def write_anywhere(fleet: Fleet, path: PurePosixPath, text: str) -> None:
    """Over any node: the shared dir is the same on all, and the head may be gone."""
    _first(fleet, lambda remote: files.write(remote, path, text))


def claim(fleet: Fleet, run_dir: PurePosixPath, what: str) -> bool:
    """Whether it is this controller that does it: of several that watch, the first to ask.

    ClusterftError when that could not be found out.
    """
    path, me = str(run_dir / "claims" / what), f"{whoever()} ({uuid.uuid4().hex[:8]})"

    def one(remote: Remote) -> bool:
        done = remote.run(("sh", "-c", _CLAIM, "sh", path, me), seconds=_READ_SECONDS)
        if done.code not in (0, _HELD):
            raise ClusterftError(f"{path} cannot be made: {done.err.strip() or f'exit code {done.code}'}")
        return done.code == 0

    return _first(fleet, one)


def holder(fleet: Fleet, run_dir: PurePosixPath, what: str) -> str:
    """Who has claimed it, as far as that can be read."""
    try:
        return (read_file(fleet, run_dir / "claims" / what / "by") or "").strip() or "another controller"
    except ClusterftError:
        return "another controller"


def release(fleet: Fleet, run_dir: PurePosixPath, what: str) -> str | None:
    """It is done, or was given up: whoever comes next may claim it. Why that was not possible, if it was not."""
    path = str(run_dir / "claims" / what)

    def one(remote: Remote) -> None:
        done = remote.run(("sh", "-c", _RELEASE, "sh", path), seconds=_READ_SECONDS)
        if done.code != 0:
            raise ClusterftError(done.err.strip() or f"exit code {done.code}")

    try:
        _first(fleet, one)
    except ClusterftError as error:
        return f"{path} is left behind, and must be removed by hand: {error.what}"
    return None


def _first(fleet: Fleet, work: Callable[[Remote], T]) -> T:
    """On the first node that can do it; the last one's reason where none can."""
    problem = ClusterftError("no node is reachable")
    for remote in list(fleet.remotes.values()):
        try:
            return work(remote)
        except ClusterftError as error:
            problem = error
    raise problem


def _removed(remote: Remote, paths: list[str]) -> None:
    done = remote.run(("rm", "-f", "--", *paths), seconds=_READ_SECONDS)
    if done.code != 0:
        raise ClusterftError(f"{paths[0]} of the run's earlier end cannot be removed: {done.err.strip()}")


def _save(entry: Entry, fleet: Fleet) -> None:
    """run.json, and the note by which this controller finds it again."""
    save_note(Note(entry.run, entry.cluster, _hostfile(fleet.cluster), str(entry.run_dir), entry.parts))
    write_anywhere(fleet, entry.run_dir / "run.json", entry.to_json())


# -- notes -------------------------------------------------------------------------------


def save_box(run: str, cluster: Cluster) -> None:
    """The note of containers that nobody has started a launcher in; kept before the first of them is made."""
    save_note(Note(run, cluster.name, _hostfile(cluster), ""))


def forget(run: str) -> None:
    """Nothing of it was left."""
    (_notes() / f"{run}.json").unlink(missing_ok=True)


def forget_boxes(cluster: str) -> None:
    """`down` has taken these containers away; runs keep their notes."""
    for note in notes():
        if note.cluster == cluster and note.box:
            forget(note.run)


def save_note(note: Note) -> None:
    """Keep it for the commands to come."""
    body = {"schema": SCHEMA, **asdict(note), "parts": [part.to_dict() for part in note.parts]}
    private.write(_notes() / f"{note.run}.json", json.dumps(body).encode("utf-8"))


def find(run: str) -> Note | None:
    """The note of a run, if this controller has one."""
    return next((note for note in notes() if note.run == run), None)


def notes() -> tuple[Note, ...]:
    """All of this controller's, the newest first; those that another version wrote are passed over."""
    found = sorted(_notes().glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return tuple(note for note in map(_note, found) if note)


def _note(path: Path) -> Note | None:
    body = json.loads(path.read_text(encoding="utf-8"))
    if body.pop("schema", None) != SCHEMA:
        return None
    return Note(**body | {"parts": tuple(Part.from_dict(part) for part in body["parts"])})


def _notes() -> Path:
    return places.controller_home() / ".runs"  # no cluster's name begins with a dot


def _hostfile(cluster: Cluster) -> str:
    return str(cluster.path.absolute())
