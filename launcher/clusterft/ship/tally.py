"""What of a tree a node has already, and putting there what it lacks. One round trip each; sh and findutils there.

Owns the two scripts and the reading of their answers. Names travel as bytes ended by NUL, in lists inside a tar on
stdin: no name is ever part of a shell text or of an argv that this side makes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from clusterft.remote import Remote, Unreachable
from clusterft.ship import layout, manifest, scripts
from clusterft.ship.manifest import Entry

_SILENCE = 600.0  # seconds; a slow disk reads its samples
_BEGIN = b"\0+ship tally\0"

# stdin: a tar of lists/all, lists/whole, lists/sampled. $1 session directory, $2 destination.
# find prints what it is given, if it is there: kind, mode, size, name, target. sha256sum -z escapes nothing.
TALLY = r"""
LC_ALL=C; export LC_ALL; umask 077
session=$1 top=$2
tar -xf - -C "$session" || exit 70
lists=$session/lists
at=$top
while [ ! -e "$at" ] && [ "$at" != / ]; do at=$(dirname -- "$at"); done
if [ -d "$at" ] && [ -w "$at" ] && [ -x "$at" ]; then may=yes; else may=no; fi
free=$(df -Pk -- "$at" | sed -n '$s/.* \([0-9][0-9]*\)  *[0-9][0-9]*% .*/\1/p')
printf '\0+ship tally\0%s\0%s\0' "$may" "$free"
if [ -L "$top" ] || { [ -e "$top" ] && [ ! -d "$top" ]; }; then printf 'blocked\0\0'; exit 0; fi
cd -- "$top" 2>/dev/null || { printf 'end\0\0'; exit 0; }
xargs -0 -r -a "$lists/all" sh -c 'find "$@" -maxdepth 0 -printf "is\0%y %m %s %T@ %p\0%l\0"' sh 2>/dev/null
printf 'end\0\0'
xargs -0 -r -a "$lists/whole" sha256sum -z -- 2>/dev/null
printf 'sampled\0'
xargs -0 -r -a "$lists/sampled" -n 2 sh -c '
    { for block in $1; do dd if="$2" bs=65536 skip="$block" count=1 2>/dev/null; done; tail -c 65536 -- "$2"; } |
        sha256sum | cut -c 1-64 | tr "\n" " "
    printf "%s\0" "$2"' sh 2>/dev/null
printf 'over\0'
rm -rf "$lists"
"""

# stdin: a tar of the lists. $1 session directory, $2 destination, $3 owner word, $4 node: the destination may be
# shared. Everything is made beside its place and renamed into it: a reader sees the old or the new.
# lists/big: digest, link or copy, mode, mtime, name; a link keeps the blob for nodes that still take it from here.
STOW = r"""
LC_ALL=C; export LC_ALL; umask 022
session=$1 top=$2 owner=$3
say() { printf '\n+ship %s\n' "$*"; }
fail() { say failed "$(tail -n 1 "$session/err" 2>/dev/null)"; exit 0; }
[ "$(cat "$session/owner" 2>/dev/null)" = "$owner" ] || { say usurped; exit 0; }
tar -xf - -C "$session" 2>"$session/err" || fail
lists=$session/lists staging=$top/.clusterft-push-${session##*/}-$4
( while :; do sleep 2; say busy; done ) & busy=$!
trap 'kill $busy 2>/dev/null; rm -rf -- "$staging"' EXIT
trap 'exit 1' HUP INT PIPE TERM
{
    mkdir -p -- "$top" && rm -rf -- "$staging" && mkdir -m 700 -- "$staging" &&
    xargs -0 -r -a "$lists/packs" -n 1 sh -c 'tar -xpof "$1/blobs/sha256/$3" -C "$2"' sh "$session" "$staging" &&
    xargs -0 -r -a "$lists/big" -n 5 sh -c '
        set -e; session=$1 staging=$2; shift 2
        blob=$session/blobs/sha256/$1 file=$staging/$5
        mkdir -p -- "$(dirname -- "$file")"
        { [ "$2" = link ] && ln -- "$blob" "$file" 2>/dev/null; } || cp -- "$blob" "$file"
        chmod "$3" "$file"; touch -d "@$4" "$file"' sh "$session" "$staging" &&
    cd -- "$top" &&
    xargs -0 -r -a "$lists/dirs" mkdir -p -- &&
    xargs -0 -r -a "$lists/files" -n 200 sh -c '
        set -e; staging=$1; shift
        for name do mv -fT -- "$staging/$name" "$name"; done' sh "$staging" &&
    xargs -0 -r -a "$lists/modes" -n 2 sh -c 'chmod "$1" "$2"' sh
} 2>"$session/err" || fail
say stowed
"""


@dataclass(slots=True)
class Tally:
    """What is at the destination; hashes as the manifest makes them."""

    writable: bool
    free: int | None
    blocked: bool = False  # the destination itself is no directory
    there: dict[bytes, Entry] = field(default_factory=dict)
    hashes: dict[bytes, str] = field(default_factory=dict)


def ask(remote: Remote, session: PurePosixPath, top: PurePosixPath, entries: Sequence[Entry], full: bool) -> Tally:
    """Look at the destination on one node."""
    files = [entry for entry in entries if entry.kind == "f"]
    sampled = []
    for entry in files:
        if blocks := manifest.samples(entry.size, full):
            sampled += [" ".join(map(str, blocks)).encode(), at(entry.path)]
    whole = [at(entry.path) for entry in files if not manifest.samples(entry.size, full)]
    lists = {"all": [at(entry.path) for entry in entries], "whole": whole, "sampled": sampled}
    stream = remote.stream(scripts.sh(TALLY, session, top))
    stream.settimeout(_SILENCE)
    with stream, stream.makefile("rb") as file:
        stream.sendall(packed(lists))
        stream.shutdown(socket.SHUT_WR)
        said = file.read()
    return _read(said)


def packed(lists: dict[str, list[bytes]]) -> bytes:
    """Lists of names for a script."""
    return layout.packed(
        {f"lists/{name}": b"".join(item + b"\0" for item in items) for name, items in lists.items()}
    )


def large(files: Sequence[Entry], digests: Mapping[bytes, str]) -> list[bytes]:
    """lists/big: of files with the same content only one is the blob itself; each shall be a file of its own."""
    linked: set[str] = set()
    items = []
    for entry in files:
        if digest := digests.get(entry.path):
            how = b"copy" if digest in linked else b"link"
            linked.add(digest)
            mode, mtime = f"{entry.mode:o}".encode(), str(entry.mtime).encode()
            items += [digest.encode(), how, mode, mtime, at(entry.path)]
    return items


def at(path: bytes) -> bytes:
    """A name that no tool takes for an option."""
    return b"./" + path


def _read(said: bytes) -> Tally:
    _, found, rest = said.partition(_BEGIN)
    if not found:
        raise Unreachable("ssh.noisy-shell", f"the look at the destination broke off: {said[-200:]!r}")
    words = rest.split(b"\0")
    may, free = words[0], words[1]
    tally = Tally(may == b"yes", int(free) * 1024 if free.isdigit() else None)
    index = 2
    while words[index] == b"is":
        about, target = words[index + 1], words[index + 2]
        kind, mode, size, mtime, path = about.split(b" ", 4)
        entry = Entry(path[2:], kind.decode(), int(mode, 8) & 0o777, int(size), target, int(mtime.split(b".")[0]))
        tally.there[entry.path] = entry
        index += 3
    tally.blocked = words[index] == b"blocked"
    hashed = words[index + 2 :]
    if b"over" not in hashed and (tally.blocked or not tally.there):
        return tally
    split = hashed.index(b"sampled")
    for word in (*hashed[:split], *hashed[split + 1 : hashed.index(b"over")]):
        digest, _, path = word.partition(b" ")
        tally.hashes[path.partition(b"./")[2]] = digest.decode("ascii", "replace")
    return tally


def differing(
    entries: Sequence[Entry], tally: Tally, hash_of: Callable[[Entry], str]
) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """(what must travel, what only has another mode, what stands in the way because it is of another kind)."""
    travel, modes, blocked = [], [], []
    for entry in entries:
        found = tally.there.get(entry.path)
        if found is None:
            travel.append(entry)
        elif "d" in (found.kind, entry.kind) and found.kind != entry.kind:
            blocked.append(entry)
        elif found.kind != entry.kind or found.target != entry.target or not _same(entry, found, tally, hash_of):
            travel.append(entry)
        elif entry.kind != "l" and found.mode != entry.mode:
            modes.append(entry)
    return travel, modes, blocked


def _same(entry: Entry, found: Entry, tally: Tally, hash_of: Callable[[Entry], str]) -> bool:
    if entry.kind != "f":
        return True
    return found.size == entry.size and tally.hashes.get(entry.path) == hash_of(entry)
