"""`<shared>/.clusterft/code/`: what lies there, and the two scripts that look at it and add to it. POSIX sh there.

Owns the layout: `blobs/<sha256>` (`.x` behind it where it may be executed), `<digest>/` with the files as hard
links to them, or as copies where there can be no links, `<digest>.json` with the manifest. All of it is read-only,
folders too: a run cannot change the code of another. A tree gets its name when all files in it have been hashed
there. Two writers at once come to the same; what one of them has finished, the other one takes. Refuses a tree
that was changed since: nobody knows which program that is.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import tarfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from clusterft import places
from clusterft.errors import ClusterftError
from clusterft.remote import Remote, Stream, Unreachable
from clusterft.remote.files import CannotWrite
from clusterft.ship import scripts

PIECE = 1 << 18  # bytes
_SILENCE = 60.0  # seconds; the scripts say something every 2 s
_PATIENCE, _RATE = 300.0, 1 << 20  # seconds, bytes a second: a shared dir that is slower than this hangs
_TRIES = 2
_BLOCK = 512

_HEAD = (
    scripts.HEAD
    + """\
top=$1 digest=$2
clean() { :; }
( while sleep 2 >/dev/null 2>&1; do say busy; done ) & busy=$!  # before the traps: dash would hand them on
trap 'kill $busy 2>/dev/null; clean' EXIT
trap 'exit 1' HUP INT PIPE TERM
sums() { sed -n 's/^\\([0-9a-f]\\{64\\}\\)[.x]* /\\1  /p'; }
proven() {
    result=$(sha256sum -c 2>&1) && return 0
    bad=$(printf '%s\\n' "$result" | sed -n 's/: FAILED.*//p')
    if [ -n "$bad" ]; then
        printf '%s\\n' "$bad" | sed 's/^/+ship spoiled /'
    else
        say failed "$(printf '%s\\n' "$result" | tail -n 1)"
    fi
    return 1
}
"""
)

# stdin: the list, `BLOB PATH` a line. $1 the depot, $2 digest.
# Whoever may write everywhere may have changed a tree since it was made: it is hashed each time.
LOOK = (
    _HEAD
    + """\
if cd -- "$top/$digest" 2>/dev/null; then
    say there
    sums | proven
elif cd -- "$top/blobs" 2>/dev/null; then
    while read -r blob path; do [ -f "$blob" ] || say lacks "$blob"; done
else
    say empty
fi
say looked
"""
)

# stdin: a tar of `list`, `links` (path and target in turn), `folders`, `manifest`, the blobs that are missing, in
# `new/`, and `end`: a tar that is cut between two files looks whole to tar. $1 the depot, $2 digest, $3 a word.
# What an attempt of yesterday left behind goes. New folders are as open to others as the shared dir itself:
# several people may use it. The tree is made beside its place: a read-only folder cannot be moved to another one.
STOW = (
    _HEAD
    + """\
shared=${top%/.clusterft/code} mine=$top/.$2.$3 tree=$top/.$2.$3.tree
fail() {
    rest=$(free "$top")
    [ "${rest:-64}" -ge 64 ] || set -- "No space left on device"
    say failed "${1:-$(sed -n 1p "$mine/err" 2>/dev/null)}"
    exit 0
}
drop() { chmod -R u+w -- "$@" 2>/dev/null; rm -rf -- "$@"; }
clean() { drop "$mine" "$tree"; }
umask 022
case $(ls -ld -- "$shared/" 2>/dev/null) in d???????w*) umask 000 ;; d????w*) umask 002 ;; esac
said=$(mkdir -p -- "$top/blobs" 2>&1 && mkdir -- "$mine" "$tree" 2>&1) || fail "$said"
for old in "$top"/.[0-9a-f]*.*; do
    [ -z "$(find "$old" -prune -mtime +0 2>/dev/null)" ] || drop "$old" 2>/dev/null
done
exec 2>"$mine/err"
cd -- "$mine" && mkdir new && tar -xof - && [ -f end ] || fail
for blob in new/*; do
    [ -f "$blob" ] || continue
    case $blob in *.x) chmod 555 "$blob" ;; *) chmod 444 "$blob" ;; esac && mv -f -- "$blob" "$top/blobs/" || fail
done
while IFS= read -r folder; do mkdir -p -- "$tree/$folder" || fail; done <folders
while IFS= read -r line; do
    blob=$top/blobs/${line%% *} file=$tree/${line#* }
    ln -- "$blob" "$file" 2>/dev/null || cp -- "$blob" "$file" || fail
done <list
while IFS= read -r path && IFS= read -r target; do ln -s -- "$target" "$tree/$path" || fail; done <links
( cd -- "$tree" && sums <"$mine/list" | proven ) || exit 0
find "$tree" -type d -exec chmod 555 {} + || fail
sync -f "$tree" 2>/dev/null || sync
chmod 444 manifest && mv -f -- manifest "$top/$digest.json" || fail
mv -T -- "$tree" "$top/$digest" || [ -d "$top/$digest" ] || fail
say stowed
"""
)


@dataclass(frozen=True, slots=True)
class Blob:
    """Content of a file. One that may be executed is another file: both would be one inode otherwise."""

    digest: str  # sha256 in hex
    executable: bool
    size: int

    @property
    def name(self) -> str:
        """Its name in the depot."""
        return self.digest + (".x" if self.executable else "")


@dataclass(frozen=True, slots=True)
class Order:
    """A tree that shall lie there."""

    digest: str
    manifest: str
    files: tuple[tuple[str, Blob], ...]  # by path
    links: tuple[tuple[str, str], ...]  # path and target

    @property
    def blobs(self) -> dict[str, Blob]:
        """By name; what occurs twice is one."""
        return {blob.name: blob for _, blob in self.files}

    @property
    def listed(self) -> str:
        """`list` of the scripts."""
        return "".join(f"{blob.name} {path}\n" for path, blob in self.files)

    def documents(self) -> dict[str, str]:
        """What the second script reads beside the blobs."""
        paths = [path for path, _ in (*self.files, *self.links)]
        folders = {str(PurePosixPath(path).parent) for path in paths} - {"."}
        return {
            "list": self.listed,
            "links": "".join(f"{path}\n{target}\n" for path, target in self.links),
            "folders": "".join(f"{folder}\n" for folder in sorted(folders)),
            "manifest": self.manifest,
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a tree lies now, and what had to travel for it."""

    path: PurePosixPath
    files: int
    bytes: int


class CodeChanged(ClusterftError):
    """A tree in the shared dir is no longer what its name says."""

    exit_code = 3
    kind = "code-changed"


@dataclass(slots=True)
class _Said:
    """A script's answer, by its words."""

    words: dict[str, list[str]] = field(default_factory=dict)

    def all(self, word: str) -> list[str]:
        return self.words.get(word, [])


Content = Callable[[str], Iterator[bytes]]  # a blob's name -> its bytes
Gone = Callable[[int], None]  # hears how many bytes of content have gone


def top(shared: PurePosixPath) -> PurePosixPath:
    """The depot of a shared dir."""
    return places.code(shared, "")


def put(remote: Remote, shared: PurePosixPath, order: Order, content: Content, gone: Gone) -> Sent:
    """Have the tree there, proven; Unreachable when the connection breaks on the way."""
    depot = top(shared)
    place = places.code(shared, order.digest)
    argv = scripts.sh(LOOK, depot, order.digest)
    found = _talk(remote, argv, iter([order.listed.encode()]), place, sum(b.size for b in order.blobs.values()))
    if found.all("there"):
        if spoiled := found.all("spoiled"):
            raise _changed(place, spoiled)
        return Sent(place, 0, 0)
    lacking = set(order.blobs) if found.all("empty") else set(found.all("lacks"))
    files = size = 0
    for _ in range(_TRIES):
        argv = scripts.sh(STOW, depot, order.digest, secrets.token_hex(4))
        volume = sum(blob.size for blob in order.blobs.values())
        done = _talk(remote, argv, _packed(order, lacking, content, gone), place, volume)
        files += len(lacking)
        size += sum(order.blobs[name].size for name in lacking)
        if done.all("stowed"):
            return Sent(place, files, size)
        # A blob that somebody changed since it came: it is sent again, and replaces the other.
        bad = set(done.all("spoiled"))
        lacking = {blob.name for path, blob in order.files if path in bad}
    raise CannotWrite(
        f"{place}: what arrives is not what was sent: {', '.join(sorted(bad)[:5])}",
        remedy="the disk or the memory of a machine on the way is at fault: dmesg, and the file server's log",
    )


def _packed(order: Order, lacking: Collection[str], content: Content, gone: Gone) -> Iterator[bytes]:
    """The tar, piece by piece."""
    for name, text in order.documents().items():
        data = text.encode()
        yield _header(name, len(data))
        yield data + b"\0" * (-len(data) % _BLOCK)
    count = 0
    for name in sorted(lacking):
        size = order.blobs[name].size
        yield _header(f"new/{name}", size)
        for piece in content(name):
            count += len(piece)
            yield piece
            gone(count)
        yield b"\0" * (-size % _BLOCK)
    yield _header("end", 0) + b"\0" * (2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, int(time.time())
    return info.tobuf(tarfile.PAX_FORMAT)


def _talk(
    remote: Remote, argv: tuple[str, ...], data: Iterator[bytes], place: PurePosixPath, volume: int
) -> _Said:
    """Send, then listen to the end; a refusal of the node is raised."""
    deadline = time.monotonic() + _PATIENCE + volume / _RATE
    with remote.stream(argv) as stream:
        stream.settimeout(_SILENCE)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and has said why
                for piece in data:
                    stream.sendall(piece)
            stream.shutdown(socket.SHUT_WR)
            said = _heard(stream, deadline)
        except ClusterftError:
            stream.shutdown(socket.SHUT_WR)  # it clears away what it has, and ends
            _heard(stream, time.monotonic() + _SILENCE)
            raise
        except TimeoutError:
            raise Unreachable("ssh.timeout", f"nothing was heard for {_SILENCE:g} s") from None
        if refused := said.all("failed"):
            raise CannotWrite(
                f"{place} cannot be written: {refused[0] or 'no reason was given'}",
                remedy="is the shared dir mounted, writable for this user, and not full? df -h, df -i, touch",
            )
        if not (said.all("looked") or said.all("stowed") or said.all("spoiled")):
            words = stream.complaint() or f"exit code {stream.code(_SILENCE)}"
            raise CannotWrite(f"{place} cannot be written: {words}", remedy="sh, tar and sha256sum must be there")
    return said


def _heard(stream: Stream, deadline: float) -> _Said:
    said, lines = _Said(), stream.makefile("rb")
    with lines:
        for line in lines:
            for word, rest in scripts.said([line.decode("utf-8", "backslashreplace").rstrip("\n")]):
                said.words.setdefault(word, []).append(rest)
            if time.monotonic() > deadline:
                raise Unreachable("ssh.timeout", "the shared dir takes nothing: a file server that hangs?")
    return said


def _changed(place: PurePosixPath, spoiled: list[str]) -> CodeChanged:
    named = ", ".join(spoiled[:5]) + (f" and {len(spoiled) - 5} more" if len(spoiled) > 5 else "")
    return CodeChanged(
        f"the code of an earlier run was changed in the shared dir: {named}",
        where=str(place),
        remedy=f"change your own folder instead; to have this one made anew: "
        f"chmod -R u+w {place} && rm -rf {place}",
    )
