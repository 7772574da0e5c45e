"""A file or a tree of this machine to the same place on every node, where there is no shared disk.

Owns what becomes a blob: large files as they are, small ones packed together by which nodes lack them. Refuses to
delete: what differs is replaced, once all of it is there and right; what is only on the node stays.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from clusterft.errors import UsageError
from clusterft.events import Progress
from clusterft.findings import Finding, Outcome
from clusterft.remote import Remote, Unreachable
from clusterft.ship import docks, layout, manifest, origin, scripts, tally, words
from clusterft.ship.carry import Carrier
from clusterft.ship.convoy import Convoy
from clusterft.ship.manifest import Entry
from clusterft.ship.route import Route
from clusterft.ship.tally import Tally

_BIG = 32 << 20  # bytes; from here on a file is a blob of its own, read where it lies
_PACK = 256 << 20
_STOW_SECONDS, _STOW_RATE = 120.0, 2 << 20


@dataclass(slots=True)
class Pushed:
    """What came of it."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    sent: int = 0  # bytes of blobs that left the controller
    files: int = 0
    size: int = 0  # bytes of the whole tree


@dataclass(slots=True)
class _Lack:
    """What one node needs."""

    travel: list[Entry]
    modes: list[Entry]

    def words(self, where: PurePosixPath) -> tuple[str, ...]:
        """As changes."""
        files = [entry for entry in self.travel if entry.kind != "d"]
        said = []
        if files:
            size = words.mib(sum(entry.size for entry in files))
            said.append(f"{len(files)} {'file' if len(files) == 1 else 'files'} put into {where}, {size}")
        if others := len(self.modes) + len(self.travel) - len(files):
            said.append(f"{others} directories made or modes set in {where}")
        return tuple(said)


class _Hold:
    """Blobs of a push: packs in the spool, large files where they lie."""

    def __init__(self) -> None:
        self.spool = origin.Spool()
        self.sizes: dict[str, int] = {}
        self._large: dict[str, IO[bytes]] = {}

    def pack(self, root: Path, entries: Iterable[Entry]) -> str:
        """Files and links in one tar."""
        kept = tempfile.TemporaryFile(dir=origin.SPOOL, prefix="clusterft-ship-")
        with tarfile.open(fileobj=kept, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                _add(tar, root, entry)
        kept.seek(0)
        digest = hashlib.file_digest(kept, "sha256").hexdigest()
        self.spool.put(digest, kept)
        self.sizes[digest] = self.spool.sizes[digest]
        return digest

    def large(self, root: Path, entry: Entry) -> str:
        """A file that is read where it lies."""
        file = open(os.path.join(os.fsencode(root), entry.path), "rb")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._large.setdefault(digest, file)
        if self._large[digest] is not file:
            file.close()  # its bytes are those of another
        self.sizes[digest] = entry.size
        return digest

    def read(self, digest: str, offset: int, count: int) -> bytes:
        """Some bytes of a blob."""
        if digest in self._large:
            return os.pread(self._large[digest].fileno(), count, offset)
        return self.spool.read(digest, offset, count)

    def close(self) -> None:
        """Let go of everything."""
        self.spool.close()
        for file in self._large.values():
            file.close()


def push(convoy: Convoy, source: Path, to: PurePosixPath | None = None, *, full: bool = False) -> Pushed:
    """Make a file or a tree equal on all nodes of the convoy; `full` compares every byte instead of samples."""
    source = source.absolute()
    where = to or PurePosixPath(source)
    if not where.is_absolute() or ".." in where.parts or where == PurePosixPath("/"):
        raise UsageError(f"{where} is not an absolute path for the nodes")
    if source.is_dir():
        return _Pushing(convoy, source, where, manifest.scan(source), full).run()
    entry = manifest.one(source)
    if os.fsencode(where.name) != entry.path:
        raise UsageError(
            f"{source.name} cannot be renamed on the way", remedy=f"give {where.parent / source.name}"
        )
    return _Pushing(convoy, source.parent, where.parent, (entry,), full).run()


class _Pushing:
    def __init__(
        self, convoy: Convoy, root: Path, where: PurePosixPath, entries: tuple[Entry, ...], full: bool
    ) -> None:
        self._convoy, self._root, self._where, self._entries, self._full = convoy, root, where, entries, full
        self._session = layout.digest_of(b"push\0" + os.fsencode(str(where)))[:16]
        self._owner = secrets.token_hex(8)
        self._hashes: dict[bytes, str] = {}
        self._lacks: dict[str, _Lack] = {}
        self._done = Pushed(files=sum(e.kind != "d" for e in entries), size=sum(e.size for e in entries))

    def run(self) -> Pushed:
        asked = self._convoy.each(self._ask)
        for node, found in asked.items():
            self._judge(node, found)
        needy = [node for node in self._convoy.targets if node in self._lacks]
        hold = _Hold()
        try:
            packs, large = self._blobs(hold, needy)
            needs = {node: self._needs(node, packs, large) for node in needy}
            route = Route(hold.sizes, needs, cut=self._convoy.cut)
            sites = {node: self._convoy.site(node, self._session) for node in needy}
            finish = partial(self._stow, packs, large)
            carrier = Carrier(sites, route, hold, self._owner, finish, self._convoy.tell("push"))
            self._done.outcomes |= carrier.run()
            self._done.sent = carrier.sent
        finally:
            hold.close()
        done = [n for n in asked if not words.may_go_on(self._done.outcomes.get(n, ()))]
        self._convoy.close(done, self._session, self._owner)
        return self._done

    # -- looking ---------------------------------------------------------------------

    def _ask(self, node: str, remote: Remote) -> Tally | Finding:
        session = self._convoy.targets[node].scratch / self._session
        opened = docks.open_session(node, remote, str(session), self._owner)
        if isinstance(opened, Finding):
            return opened
        return tally.ask(remote, session, self._where, self._entries, self._full)

    def _judge(self, node: str, found: Tally | Finding | Unreachable) -> None:
        if isinstance(found, Unreachable):
            self._done.outcomes[node] = words.unreachable(node, found)
            return
        if isinstance(found, Finding):
            self._done.outcomes[node] = found
            return
        travel, modes, blocked = tally.differing(self._entries, found, self._hash)
        size = sum(entry.size for entry in travel)
        if found.blocked or blocked:
            named = manifest.names([entry.path for entry in blocked]) or str(self._where)
            self._done.outcomes[node] = words.in_the_way(node, str(self._where), named)
        elif not travel and not modes:
            self._done.outcomes[node] = ()
        elif not found.writable:
            self._done.outcomes[node] = words.not_writable(node, str(self._where))
        elif found.free is not None and found.free < size:
            self._done.outcomes[node] = words.no_room(node, str(self._where), found.free, size)
        else:
            self._lacks[node] = _Lack(travel, modes)

    def _hash(self, entry: Entry) -> str:
        if entry.path not in self._hashes:
            path = os.path.join(os.fsencode(self._root), entry.path)
            self._hashes[entry.path] = manifest.hash_of(path, entry.size, self._full)
        return self._hashes[entry.path]

    # -- blobs -------------------------------------------------------------------------

    def _blobs(self, hold: _Hold, needy: list[str]) -> tuple[dict[str, set[bytes]], dict[bytes, str]]:
        """(packs by digest with their paths, large files' digests by path); what the same nodes lack is packed."""
        self._convoy.report(Progress("", "push", "reading what has to travel"))
        lacked_by: dict[bytes, frozenset[str]] = {}
        for node in needy:
            for entry in self._lacks[node].travel:
                lacked_by[entry.path] = lacked_by.get(entry.path, frozenset()) | {node}
        groups: dict[frozenset[str], list[Entry]] = {}
        large: dict[bytes, str] = {}
        for entry in self._entries:
            if entry.path not in lacked_by or entry.kind == "d":
                continue
            if entry.size >= _BIG:
                large[entry.path] = hold.large(self._root, entry)
            else:
                groups.setdefault(lacked_by[entry.path], []).append(entry)
        packs = {}
        for group in groups.values():
            for part in _parts(group):
                packs[hold.pack(self._root, part)] = {entry.path for entry in part}
        return packs, large

    def _needs(self, node: str, packs: Mapping[str, set[bytes]], large: Mapping[bytes, str]) -> set[str]:
        paths = {entry.path for entry in self._lacks[node].travel}
        wanted = {digest for digest, members in packs.items() if members & paths}
        return wanted | {large[path] for path in paths if path in large}

    # -- putting it there ----------------------------------------------------------------

    def _stow(self, packs: Mapping[str, set[bytes]], large: Mapping[bytes, str], node: str) -> Outcome:
        lack, target = self._lacks[node], self._convoy.targets[node]
        files = [entry for entry in lack.travel if entry.kind != "d"]
        folders = [entry for entry in lack.travel if entry.kind == "d"]
        lists = {
            "packs": [digest.encode() for digest in self._needs(node, packs, {})],
            "big": tally.large(files, large),
            "dirs": [tally.at(entry.path) for entry in folders],
            "files": [tally.at(entry.path) for entry in files],
            # From the deepest up: a directory that is to be closed is closed last.
            "modes": [
                item
                for entry in reversed([*folders, *lack.modes])
                for item in (f"{entry.mode:o}".encode(), tally.at(entry.path))
            ],
        }
        session = target.scratch / self._session
        argv = scripts.sh(tally.STOW, session, self._where, self._owner, node)
        seconds = _STOW_SECONDS + sum(entry.size for entry in files) / _STOW_RATE
        ran = self._convoy.fleet.remotes[node].run(argv, stdin=tally.packed(lists), seconds=seconds)
        word, rest = (list(scripts.said(ran.out.splitlines())) or [("failed", ran.err.strip())])[-1]
        if word == "stowed":
            return lack.words(self._where)
        if word == "usurped":
            return words.usurped(node)
        if "No space left" in rest or "quota" in rest:
            return words.full(node, f"while it was put into {self._where}")
        return words.not_stowed(node, str(self._where), rest)


def _parts(entries: list[Entry]) -> Iterable[list[Entry]]:
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + entry.size > _PACK:
            yield part
            part, size = [], 0
        part.append(entry)
        size += entry.size
    if part:
        yield part


def _add(tar: tarfile.TarFile, root: Path, entry: Entry) -> None:
    path = os.path.join(os.fsencode(root), entry.path)
    info = tarfile.TarInfo(os.fsdecode(entry.path))
    info.mode, info.mtime = entry.mode, entry.mtime
    if entry.kind == "l":
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(entry.target)
        tar.addfile(info)
        return
    info.size = entry.size
    with open(path, "rb") as file:
        data = io.BytesIO(file.read(entry.size + 1)) if entry.size < (1 << 20) else file
        try:
            tar.addfile(info, data)
        except OSError as error:
            raise UsageError(f"{manifest.shown(entry.path)} changed while it was read: {error}") from None
