"""The process runtime: a detached supervisor on the node itself, no Docker engine needed.

Takes the same plan as a container would; the run's directory on the node stands for /run/clusterft.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from clusterft.errors import ClusterftError
from clusterft.places import NodePlaces
from clusterft.plan import NodePlan, Part
from clusterft.remote import Lines, Remote, Unreachable
from clusterft.remote.files import NewFile, create
from clusterft.runtime.carrier import Harvest

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
# The pid in the note still names the process that wrote it: it began at the same tick.
_ALIVE = (
    'note=$(cat -- "$1/supervisor.json" 2>/dev/null) || exit 1; '
    'pid=$(printf %s "$note" | sed -n \'s/.*"pid": *\\([0-9]*\\).*/\\1/p\'); '
    'start=$(printf %s "$note" | sed -n \'s/.*"start": *\\([0-9]*\\).*/\\1/p\'); '
    'stat=$(sed "s/.*) //" "/proc/$pid/stat" 2>/dev/null); case $stat in [ZX]*) exit 1;; esac; '
    '[ -n "$start" ] && [ "$(printf %s "$stat" | cut -d" " -f20)" = "$start" ]'
)
# Never under a supervisor that is at work; and each earlier start keeps its own, however often that was.
_ASIDE = (
    f'if ( {_ALIVE} ); then echo "a supervisor is at work there" >&2; exit 1; fi; [ -e "$1" ] || exit 0; '
    'n=0; to=$1.before-$2; while [ -e "$to" ]; do n=$((n + 1)); to=$1.before-$2.$n; done; mv -T -- "$1" "$to"'
)


_HOLDER = (
    'run=$(head -n 1 -- "$1/active.lock" 2>/dev/null); [ -n "$run" ] || exit 0; set -- "$1/runs/$run" "$run"; '
    f'if ( {_ALIVE} ); then printf "%s\\n" "$2"; fi'
)


class CannotStart(ClusterftError):
    """A node's part could not be started."""

    exit_code = 3
    kind = "cannot-start"


class Processes:
    """The parts of a run without containers."""

    def __init__(self) -> None:
        self._made: set[str] = set()  # nodes whose directory this very start has made

    def put(self, node: NodePlan, remote: Remote, secrets: dict[str, str]) -> None:
        """Write the run's files on the node; secrets join them here, and are nowhere before."""
        files = [NewFile(str(f.path.relative_to(node.directory)), f.text, f.mode) for f in node.files]
        if secrets:
            files.append(NewFile("secrets.json", json.dumps(secrets), 0o600))
        self._set_aside(node, remote)
        self._made.add(node.node.name)
        create(remote, node.directory, files)

    def _set_aside(self, node: NodePlan, remote: Remote) -> None:
        """What an earlier start of the same run has left: a resumed part begins with an empty directory."""
        aside = (str(node.directory), str(node.assignment.first_attempt))
        done = remote.run(("sh", "-c", _ASIDE, "sh", *aside), seconds=_START_SECONDS)
        if done.code != 0:
            raise CannotStart(f"{node.node.name}: {node.directory} is in the way: {done.err.strip()}")

    def start(self, part: Part, remote: Remote) -> None:
        """Start the supervisor; CannotStart names the run that is in the way, or what the node said."""
        done = remote.run(part.supervisor("start"), seconds=_START_SECONDS)
        said = answer(done.out)
        if "pid" in said:
            return
        if "busy" in said:
            raise CannotStart(
                f"{part.node} is in use by run {said['busy']}",
                remedy=f"wait for it, or end it: clusterft stop {said['busy']}",
            )
        words = str(said.get("error") or done.err).strip()[-600:]
        if "No module named" in words or done.code in (126, 127):
            raise CannotStart(
                f"{part.node} has no clusterft[trainer] at {part.python}: {words.rpartition(chr(10))[2]}",
                remedy="install it there, or set python: in job.yaml to an interpreter that has it",
            )
        raise CannotStart(f"{part.node} could not start its supervisor: {words}")

    def discard(self, part: Part, remote: Remote) -> None:
        """After a start that failed: stop what may still come up, and leave no secrets behind.

        Where this start has made nothing, what is there is another one's.
        """
        if part.node not in self._made:
            return
        secrets = PurePosixPath(part.directory) / "secrets.json"
        try:
            _end(part, remote)
        finally:
            remote.run(("rm", "-f", "--", str(secrets)), seconds=_STOP_SECONDS)

    def follow(self, part: Part, remote: Remote, skip: int) -> Lines:
        """What the supervisor says from that line on."""
        return remote.lines(part.supervisor("follow", str(skip)))

    def stop(self, part: Part, remote: Remote, *, now: bool) -> bool:
        """Ask the supervisor to stop; with `now`, it does not wait for its ranks."""
        return told(remote, part.supervisor("stop", "2" if now else "1"))

    def alive(self, part: Part, remote: Remote) -> bool:
        """Whether the process that the part's note names is there."""
        return remote.run(("sh", "-c", _ALIVE, "sh", part.directory), seconds=_STOP_SECONDS).code == 0

    def revive(self, part: Part, remote: Remote) -> bool:
        """A process that ended without a last word was ended by somebody, and holds nothing any more."""
        return False

    def read(self, part: Part, remote: Remote, name: str) -> str:
        """A small file of the part's directory; empty where there is none."""
        path = str(PurePosixPath(part.directory) / name)
        return remote.run(("sh", "-c", '[ ! -e "$1" ] || cat -- "$1"', "sh", path), seconds=_STOP_SECONDS).out

    def harvest(self, part: Part, remote: Remote, keep: str, *, kill: bool) -> Harvest:
        """End a supervisor that nobody can tell that the run is over: it would hold the node for its patience.

        The files of a run stay: they are a few, and the node's own copy of the logs.
        """
        if not kill or not self.alive(part, remote):
            return Harvest(removed=False)
        _end(part, remote)
        return Harvest(removed=True)


def _end(part: Part, remote: Remote) -> None:
    """Without a word; one that says its last words is waited for."""
    done = remote.run(part.supervisor("end"), seconds=_STOP_SECONDS)
    if "ended" not in answer(done.out):
        words = (done.err or done.out).strip()[-300:]
        raise Unreachable("run.unreadable", f"what is left of the run there cannot be ended: {words}")


def holder(remote: Remote, places: NodePlaces) -> str:
    """The run whose supervisor is at work on the node; empty where there is none."""
    done = remote.run(("sh", "-c", _HOLDER, "sh", str(places.base)), seconds=_START_SECONDS)
    return (done.out.splitlines() or [""])[-1].strip()


def told(remote: Remote, argv: tuple[str, ...]) -> bool:
    """Whether a supervisor was there to be told; Unreachable when it gave no answer."""
    done = remote.run(argv, seconds=_STOP_SECONDS)
    said = answer(done.out)
    if done.code != 0 or "told" not in said:
        words = (done.err or done.out).strip()[-300:]
        raise Unreachable("run.unreadable", f"it gave no answer (exit code {done.code}): {words}")
    return bool(said["told"])


def answer(out: str) -> dict[str, object]:
    """The JSON in the last line of what a supervisor verb printed; a login shell may have printed before it."""
    lines = out.strip().splitlines()
    try:
        body = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
