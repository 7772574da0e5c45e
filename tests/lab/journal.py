"""The lab's memory: what each lab has made, written down before it is made.

Owns the private directory of every lab, the journal in it, the claim on an address
range, and undoing. A journal alone is enough to undo a lab whose owner is long dead.
Refuses to touch anything that no journal names.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import LabError
from .proc import ProcessId, begun_by, in_namespace, run, until, which

_NETNS = Path("/run/netns")
# The range that the standards set aside for tests of network gear: nobody routes it.
_PATIENCE = 10.0  # seconds for what was begun to end by itself, as it is cleaner than half of it
_RANGE = ipaddress.ip_network("198.18.0.0/15")


def _root() -> Path:
    return Path(tempfile.gettempdir()).resolve() / f"clusterft-lab-{os.getuid()}"


def labs_root() -> Path:
    """The directory of all labs of this user; made if need be, and proven to be ours."""
    root = _root()
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise LabError(f"{root} is not a private directory of ours: remove it")
    return root


class Journal:
    """One lab's directory and the list of what it has made."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.id = state.name
        self._file = state / "journal.jsonl"
        self._lock = threading.Lock()

    @classmethod
    def create(cls, weight: str) -> Journal:
        """A new lab directory, owned by this process."""
        while True:
            state = labs_root() / secrets.token_hex(3)
            # Taken already, or the last lab of another process just removed the root.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                state.mkdir(mode=0o700)
                break
        journal = cls(state)
        journal.describe({"weight": weight})
        journal.own(os.getpid())
        return journal

    @classmethod
    def every(cls) -> list[Journal]:
        """All labs of this user, dead ones included."""
        return [cls(path) for path in sorted(_root().glob("[0-9a-f]" * 6)) if path.is_dir()]

    def note(self, kind: str, what: str, **more: Any) -> None:
        """Write down a thing that is about to be made."""
        assert kind in _UNDO, kind
        line = json.dumps({"kind": kind, "what": what, **more}) + "\n"
        with self._lock, self._file.open("a") as out:
            out.write(line)

    def note_process(self, process: ProcessId) -> None:
        """Write down a process that waits until this is done."""
        self.note("process", str(process.pid), start=process.start)

    def noted(self) -> Iterator[dict[str, Any]]:
        """What was written down, oldest first; a torn last line is not a thing made."""
        if not self._file.exists():
            return
        for line in self._file.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def describe(self, facts: dict[str, Any]) -> None:
        """Keep what is needed to use the lab from another process."""
        whole = {**self.described(), **facts}
        fresh = self.state / "lab.json.new"
        fresh.write_text(json.dumps(whole, indent=1))
        fresh.replace(self.state / "lab.json")

    def described(self) -> dict[str, Any]:
        """What `describe` kept; empty for a lab that died in its first instant."""
        try:
            found: dict[str, Any] = json.loads((self.state / "lab.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def own(self, pid: int | None) -> None:
        """Tie the lab to a process, or with None keep it until somebody takes it down."""
        owner = ProcessId.of(pid) if pid is not None else None
        self.describe({"owner": [owner.pid, owner.start] if owner else None})

    def orphaned(self) -> bool:
        """Whether the process it belonged to is dead."""
        facts = self.described()
        if "owner" not in facts:
            # Its maker is between two lines of create(), or died there: give it a while.
            return _age(self.state) > 60
        owner = facts["owner"]
        return owner is not None and not ProcessId(*owner).alive()

    def claim_subnet(self, taken: set[str]) -> ipaddress.IPv4Network:
        """Take a /24 that no lab and no interface of this machine uses."""
        assert isinstance(_RANGE, ipaddress.IPv4Network)
        used = [ipaddress.ip_network(text, strict=False) for text in taken]
        subnets = list(_RANGE.subnets(new_prefix=24))
        # Start at a random one, so that labs of different users seldom want the same.
        shift = secrets.randbelow(len(subnets))
        for subnet in subnets[shift:] + subnets[:shift]:
            if any(subnet.overlaps(other) for other in used):
                continue
            claim = labs_root() / f"claim-{subnet.network_address}"
            self.note("claim", str(claim), lab=self.id)
            with contextlib.suppress(FileExistsError):
                # A link to a name is made with its content in one step.
                claim.symlink_to(self.id)
                return subnet
        raise LabError(f"no free /24 is left in {_RANGE}")

    def undo(self) -> None:
        """Unmake everything, newest first, then forget the lab; what resists is named."""
        self._outlive()
        left = []
        for entry in reversed(list(self.noted())):
            try:
                _UNDO[entry["kind"]](entry)
            except (LabError, OSError) as error:
                left.append(f"{entry['kind']} {entry['what']}: {error}")
        if left:
            raise LabError(f"lab {self.id} left behind:\n" + "\n".join(left))
        # A name that no other process takes for a lab, while its files go one by one.
        gone = self.state.with_name(f".{self.id}")
        self.state.rename(gone)
        shutil.rmtree(gone)
        with contextlib.suppress(OSError):
            # Fails while another lab lives there.
            _root().rmdir()

    def _outlive(self) -> None:
        """A command that a killed owner had begun goes on: what it makes once we have looked for it would stay."""
        owner = self.described().get("owner")
        if owner is None or (dead := ProcessId(*owner)).alive():
            return
        with contextlib.suppress(LabError):
            until(lambda: not begun_by(dead), _PATIENCE, "the last commands of a dead owner")
        for command in begun_by(dead):
            command.end()


def undo_orphans() -> list[str]:
    """Unmake the labs whose owners died; returns their ids."""
    gone = []
    with _only_one():
        for journal in Journal.every():
            if journal.orphaned():
                journal.undo()
                gone.append(journal.id)
    return gone


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Keep two processes from clearing up after the same dead lab at once."""
    try:
        root = os.open(_root(), os.O_RDONLY)
    except FileNotFoundError:
        # There are no labs at all.
        yield
        return
    try:
        fcntl.flock(root, fcntl.LOCK_EX)
        yield
    finally:
        os.close(root)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _undo_process(entry: dict[str, Any]) -> None:
    ProcessId(int(entry["what"]), entry["start"]).end(grace=entry.get("grace", 0))


def _undo_netns(entry: dict[str, Any]) -> None:
    path = _NETNS / entry["what"]
    if not path.exists():
        return
    inode = path.stat().st_ino
    # Whatever runs in a namespace that we made was started by us or by a node of ours.
    for process in in_namespace("net", inode):
        process.end()
    run(["ip", "netns", "del", entry["what"]])


def _undo_link(entry: dict[str, Any]) -> None:
    if Path("/sys/class/net", entry["what"]).exists():
        run(["ip", "link", "del", entry["what"]], check=False)
        until(lambda: not Path("/sys/class/net", entry["what"]).exists(), 5, "a link to go")


def _undo_mount(entry: dict[str, Any]) -> None:
    if os.path.ismount(entry["what"]):
        run(["umount", "-l", entry["what"]])


def _undo_claim(entry: dict[str, Any]) -> None:
    claim = Path(entry["what"])
    if claim.is_symlink() and str(claim.readlink()) == entry["lab"]:
        claim.unlink()


def _undo_docker(*verb: str) -> Callable[[dict[str, Any]], None]:
    def undo(entry: dict[str, Any]) -> None:
        if which("docker") is None:
            return
        done = run(["docker", *verb, entry["what"]], timeout=180, check=False)
        if done.returncode != 0 and not _absent(done.stderr):
            raise LabError(done.stderr.strip())

    return undo


def _absent(words: str) -> bool:
    low = words.lower()
    return "no such" in low or "not found" in low


_UNDO: dict[str, Callable[[dict[str, Any]], None]] = {
    "process": _undo_process,
    "netns": _undo_netns,
    "link": _undo_link,
    "mount": _undo_mount,
    "claim": _undo_claim,
    "container": _undo_docker("rm", "--force", "--volumes"),
    "volume": _undo_docker("volume", "rm", "--force"),
    "network": _undo_docker("network", "rm"),
}
