"""The storage proof on one node: what this user can do in a directory, and see of what the other nodes did there.

Owns one word of files in DIRECTORY/.clusterft/doctor-WORD/ and takes them away at the end, also when its stdin
ends. Every step is a child with a deadline: one that sleeps in the kernel is left behind and said to hang. What an
earlier doctor left is cleared away after a day. Refuses to judge.

    share DIRECTORY WORD NAME [UID GID]    then a JSON line a step, an answer each; UID GID is whom root becomes
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    Body = dict[str, Any]
_STALE = 86400.0  # seconds after which an earlier doctor's files are litter
_LITTER = 64  # directories of them at most, at one time
_PIECES = 2  # the better of two says how fast the disk is, as others use it too
_OTHERS = 1.5  # seconds that the other nodes have to take their files away before the directory itself goes
_PLAIN = 1.5  # seconds that a file may take to be seen without listing its directory


class Proof:
    """One node's part."""

    def __init__(self, directory: str, word: str, name: str) -> None:
        self.directory = directory
        self.name = name
        self._word = word
        self.place = ""
        self.made = False  # .clusterft itself
        self.holder: tuple[int, int] | None = None  # the child with the locks, and the pipe that ends it

    def steps(self) -> dict[str, Callable[[Body], Body]]:
        """What can be asked for, by name."""
        return {"make": self.make, "write": self.write, "see": self.see, "try": self.attempt, "end": self.clear}

    def make(self, asked: Body) -> Body:
        """The directory of this proof, and a look for names that nobody has written yet."""
        own = os.path.join(self.directory, ".clusterft")
        tried = (own, os.path.join(own, "doctor-" + self._word))
        closed: list[object] = []
        try:
            made = [_made(path) for path in tried]
            self.place = tried[1]
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM) or not os.access(self.directory, os.W_OK):
                raise
            self.place = os.path.join(self.directory, ".clusterft-doctor-" + self._word)
            made = [False, _made(self.place)]
            kept = os.stat(own)
            closed = [kept.st_uid, kept.st_gid, stat.filemode(kept.st_mode)]
        _sweep(own, self.place)
        for other in asked["names"]:
            os.path.exists(os.path.join(self.place, other))
        os.listdir(self.place)
        room = os.statvfs(self.place)
        return {"place": self.place, "made": made[0], "closed": closed, "free": room.f_bavail * room.f_frsize}

    def write(self, asked: Body) -> Body:
        """A nonce under a name of its own, by a rename; in a second round over what is there."""
        target = os.path.join(self.place, self.name)
        fresh = target + ".new"
        syncs = []
        with open(fresh, "w", encoding="ascii") as file:
            file.write(asked["nonce"])
            file.flush()
            syncs.append(_took(lambda: os.fsync(file.fileno())))
        os.replace(fresh, target)
        kept = os.stat(target)
        answer: Body = {"owner": [kept.st_uid, kept.st_gid]}
        if asked.get("large"):
            answer["too_large"] = self._refused(int(asked["large"]))
        if asked.get("bytes"):
            rates = []
            for _ in range(_PIECES):
                seconds, sync = self._fill(int(asked["bytes"]) // _PIECES)
                rates.append(int(asked["bytes"]) // _PIECES / max(seconds, 1e-4))
                syncs.append(sync)
            answer["rate"] = max(rates)
        answer["fsync"] = min(syncs)
        return answer

    def _fill(self, count: int) -> tuple[float, float]:
        """Write that many bytes and sync them, then the time that a small change takes."""
        path = os.path.join(self.place, self.name + ".fill")
        block = os.urandom(1 << 16)  # what cannot be squeezed
        began = time.monotonic()
        with open(path, "wb") as file:
            for _ in range(max(1, count >> 16)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.monotonic() - began
            file.write(b"\n")
            file.flush()
            sync = _took(lambda: os.fsync(file.fileno()))
        os.unlink(path)
        return seconds, sync

    def _refused(self, count: int) -> bool:
        """Whether no file of that many bytes may be; one without a byte in it takes no room."""
        path = os.path.join(self.place, self.name + ".large")
        with open(path, "wb") as file:
            try:
                os.ftruncate(file.fileno(), count)
            except OSError as error:  # that there is no room for it, or that holes are not to be had, is not it
                return error.errno == errno.EFBIG
            finally:
                os.unlink(path)
        return False

    def see(self, asked: Body) -> Body:
        """How long until each other's nonce is read; after a while, the directory is listed before each try."""
        began = time.monotonic()
        wanted: dict[str, str] = dict(asked["wanted"])
        seen: dict[str, Any] = {}
        listed = False
        while True:
            for name in [one for one in wanted if one not in seen]:
                if self._read(name) == wanted[name]:
                    seen[name] = [time.monotonic() - began, listed]
            left = began + float(asked["within"]) - time.monotonic()
            if len(seen) == len(wanted) or left <= 0:
                return {"seen": seen}
            time.sleep(min(left, 0.005 if not listed else 0.1))
            if time.monotonic() - began > _PLAIN:
                listed = True
                os.listdir(self.place)

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self.place, name), encoding="ascii", errors="replace") as file:
                return file.read(256)
        except FileNotFoundError:
            return ""

    def attempt(self, asked: Body) -> Body:
        """Try for the locks that another node holds; none may be had."""
        found = {}
        for kind in ("fcntl", "flock"):
            with open(os.path.join(self.place, asked["holder"] + "." + kind), "r+") as file:
                found[kind] = _lock(kind, file.fileno())
        return {"locks": found}

    def hold(self) -> Body:
        """In a child that stays: both locks, each on a file of its own."""
        files = {kind: open(os.path.join(self.place, self.name + "." + kind), "w") for kind in ("fcntl", "flock")}
        found = {kind: _lock(kind, file.fileno()) for kind, file in files.items()}
        self._kept = files
        return {"locks": found}

    def clear(self, asked: Body) -> Body:
        """Take away what is ours; the last one takes the directory."""
        if not self.place:
            return {}
        for name in os.listdir(self.place):
            if name.split(".")[0] == self.name:
                _gone(os.path.join(self.place, name), os.unlink)
        until = time.monotonic() + (_OTHERS if self.made else 0.0)
        while not _gone(self.place, os.rmdir) and time.monotonic() < until:
            time.sleep(0.05)
        if self.made:
            _gone(os.path.dirname(self.place), os.rmdir)  # only if it is empty
        return {}


def _made(path: str) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


def _sweep(own: str, place: str) -> None:
    """What a doctor that was killed has left, of a day ago or older; others' files may not be ours to remove.

    How old is told by the server's clock alone, which has just dated the place of this proof: a node's own may be
    days off.
    """
    now = os.stat(place).st_mtime
    old = [name for name in os.listdir(own) if name.startswith("doctor-")] if os.path.isdir(own) else []
    paths = [os.path.join(own, name) for name in old]
    for path in [one for one in paths if one != place][:_LITTER]:
        try:
            if now - os.stat(path).st_mtime > _STALE:
                for file in os.listdir(path):
                    _gone(os.path.join(path, file), os.unlink)
                _gone(path, os.rmdir)
        except OSError:
            continue


def _gone(path: str, remove: Callable[[str], None]) -> bool:
    """Whether it is; if not, others still have files there, or the share has become unwritable."""
    try:
        remove(path)
    except FileNotFoundError:
        return True  # another node was faster
    except OSError:
        return False
    return True


def _took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _lock(kind: str, descriptor: int) -> str:
    """had, or refused, or the words of an error."""
    take = fcntl.lockf if kind == "fcntl" else fcntl.flock
    try:
        take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return "refused"
        return f"{error.errno or 0} {error.strerror}"
    return "had"


def _said(work: Callable[[], Body]) -> Body:
    try:
        return work()
    except OSError as error:
        return {"errno": error.errno, "words": f"{error.strerror}: {error.filename or ''}"}
    except Exception as error:  # noqa: BLE001 - told to the controller, which knows what to make of it
        return {"errno": None, "words": f"{type(error).__name__}: {error}"}


def _child(work: Callable[[], Body], stay: int | None = None) -> tuple[int, int]:
    """Start work in a process of its own: its id, and where its answer comes. `stay`: it ends with that pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(reader)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # one that hangs must not keep the session's pipes open
            os.dup2(null, descriptor)
        os.write(writer, json.dumps(_said(work)).encode())
        os.close(writer)
        if stay is not None:
            os.read(stay, 1)
    finally:
        os._exit(0)


def _answer(reader: int, seconds: float) -> Body | None:
    """What a child has said; None if it did not in time."""
    deadline = time.monotonic() + seconds
    said = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            os.close(reader)
            return None
        data = os.read(reader, 1 << 16)
        if not data:
            os.close(reader)
            return json.loads(said) if said else {"errno": None, "words": "it ended without a word"}
        said += data


def _step(work: Callable[[], Body], seconds: float) -> Body:
    child, reader = _child(work)
    said = _answer(reader, seconds)
    if said is None:
        os.kill(
            child, signal.SIGKILL
        )  # not waited for: it may sleep in the kernel for as long as the server is away
        os.waitpid(child, os.WNOHANG)
        return {"hung": seconds}
    os.waitpid(child, 0)
    return said


def _hold(proof: Proof, seconds: float) -> Body:
    ends, keeps = os.pipe()

    def work() -> Body:
        os.close(keeps)
        return proof.hold()

    child, reader = _child(work, stay=ends)
    os.close(ends)
    proof.holder = (child, keeps)
    said = _answer(reader, seconds)
    if said is None:
        os.kill(child, signal.SIGKILL)
        return {"hung": seconds}
    return said


def _release(proof: Proof) -> Body:
    if proof.holder:
        os.close(proof.holder[1])
        os.kill(proof.holder[0], signal.SIGKILL)  # a step that hangs may have kept a copy of the pipe
        proof.holder = None
    return {}


def _covering(directory: str) -> list[str]:
    """The lines of mountinfo whose target the directory lies on; nothing is touched to know them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\n") for line in file]
    # As the kernel writes a path in there.
    written = "".join(f"\\{ord(one):03o}" if one in " \t\n\\" else one for one in directory)
    return [line for line in lines if (written + "/").startswith(line.split(" ")[4].rstrip("/") + "/")]


def _become(user: int, group: int) -> None:
    if os.geteuid() == 0 and user != 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)


def _tell(body: Body) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


def _converse(proof: Proof) -> bool:
    """A line asked, a line answered, until there are no more; whether all was taken away in the end."""
    ended = False
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        seconds, do = float(asked["seconds"]), asked["do"]
        if do == "hold":
            said = _hold(proof, seconds)
        elif do == "release":
            said = _release(proof)
        else:
            said = _step(lambda do=do, asked=asked: proof.steps()[do](asked), seconds)  # type: ignore[misc]
            proof.place, proof.made = said.get("place", proof.place), said.get("made", proof.made)
        ended = do == "end"
        _tell(said)
    return ended


def main(directory: str, word: str, name: str, *owner: str) -> None:
    """Answer until stdin ends."""
    if owner:
        _become(int(owner[0]), int(owner[1]))
    proof = Proof(directory, word, name)
    _tell({"uid": os.geteuid(), "gid": os.getegid(), "mounts": _covering(directory)})
    try:
        ended = _converse(proof)
    except BrokenPipeError:  # nobody listens any more, and what was written still has to go
        ended = False
    _release(proof)
    if not ended:  # doctor was interrupted
        _step(lambda: proof.clear({}), 3.0)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[3:])  # behind the program's length and name
