"""The folder of a training program, known by its content, and how it comes into the shared dir.

Owns the reading of the folder: what of it is meant, what each file is, the digest of the whole, which is the name
under which it lies there. Refuses what would not be the same elsewhere (links that lead out, sockets, names that
are no plain text), a folder that is more than code, and files that change while they are read. What happens in the
shared dir is `depot`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clusterft.errors import UsageError
from clusterft.remote import Remote
from clusterft.ship import depot, ignore, words
from clusterft.ship.depot import Blob, Sent
from clusterft.ship.manifest import shown

SCHEMA = 1
MOST_FILES = 50_000
MOST_BYTES = 2 << 30
_SHOWN = 5
_ENVIRONMENT = "pyvenv.cfg"  # a folder with this file is a virtual environment, whatever its name
_OWN = ".clusterftignore"


@dataclass(frozen=True, slots=True)
class Item:
    """One file or link; `path` is relative to the folder and uses slashes."""

    path: str
    executable: bool = False
    size: int = 0
    sha256: str = ""
    link: str = ""  # where a link points; then nothing but the path counts

    @property
    def blob(self) -> Blob:
        """Its content."""
        return Blob(self.sha256, self.executable, self.size)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is left out, and by which pattern."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class CodeTree:
    """A folder as it was read."""

    folder: Path
    items: tuple[Item, ...]  # by path
    skipped: tuple[Skipped, ...] = field(default=(), compare=False)  # the usual ones are not told

    @property
    def manifest(self) -> str:
        """The whole as text: equal for equal names, modes and content, whenever and wherever it was read."""
        lines = []
        for item in self.items:
            body: dict[str, object] = {"path": item.path}
            if item.link:
                body["link"] = item.link
            else:
                body |= {"executable": item.executable, "size": item.size, "sha256": item.sha256}
            lines.append("  " + json.dumps(body, ensure_ascii=False))
        return f'{{"schema": {SCHEMA}, "items": [\n' + ",\n".join(lines) + "\n]}\n"

    @property
    def digest(self) -> str:
        """sha256 of the manifest, in hex."""
        return hashlib.sha256(self.manifest.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)

    def require(self, path: PurePosixPath) -> None:
        """UsageError when this file would not come along, with the pattern that leaves it out."""
        wanted = str(path)
        if any(item.path == wanted for item in self.items):
            return
        above = {wanted, *map(str, path.parents)}
        for one in self.skipped:
            if one.path in above:
                why = f"{one.path} is left out by {one.why}"
                raise UsageError(
                    f"{wanted} is not shipped: {why}",
                    where=str(self.folder),
                    remedy=f"write !{one.path} into {_OWN} of that folder",
                )
        raise UsageError(f"{wanted} is not among what is shipped", where=str(self.folder))


def read(folder: Path) -> CodeTree:
    """Read a folder; everything in it that cannot be shipped is told at once."""
    walk = _Walk(folder.absolute())
    found = walk.run()
    items = [_item(walk.root, path, status) for path, status in found]
    return CodeTree(walk.root, tuple(sorted(items, key=lambda item: item.path)), tuple(walk.skipped))


def send(
    remote: Remote, tree: CodeTree, shared: PurePosixPath, gone: Callable[[int], None] = lambda count: None
) -> Sent:
    """Put a tree into the shared dir, over one node; only content that is not there yet travels.

    Unreachable when the connection breaks; then nothing half is left under the tree's name. `gone` hears how many
    bytes have left.
    """
    files = [item for item in tree.items if not item.link]
    sources = {item.blob.name: item for item in files}
    order = depot.Order(
        digest=tree.digest,
        manifest=tree.manifest,
        files=tuple((item.path, item.blob) for item in files),
        links=tuple((item.path, item.link) for item in tree.items if item.link),
    )
    return depot.put(remote, shared, order, lambda name: _content(tree.folder, sources[name]), gone)


class _Walk:
    """From a folder to its files; ends early where it is plainly more than code."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[Skipped] = []
        self._rules = list(ignore.rules(ignore.USUAL))
        self._git = next((above for above in (root, *root.parents) if (above / ".git").exists()), None)
        self._own = self._patterns(root / _OWN)
        self._refused: list[str] = []

    def run(self) -> list[tuple[str, os.stat_result]]:
        """(path, status) of everything that is meant."""
        if not self.root.is_dir():
            raise UsageError("there is no such folder", where=str(self.root))
        if self._git:
            for above in reversed(self.root.parents):
                if above.is_relative_to(self._git):
                    lead = self.root.relative_to(above).as_posix() + "/"
                    self._rules += self._patterns(above / ".gitignore", outer=lead)
        found = []
        for path, status in self._below(""):
            found.append((path, status))
            if len(found) > MOST_FILES:
                break
        if self._refused:
            more = f"; and {len(self._refused) - _SHOWN} more" if len(self._refused) > _SHOWN else ""
            raise UsageError(
                "; ".join(self._refused[:_SHOWN]) + more,
                where=str(self.root),
                remedy=f"name them in {_OWN} of that folder, if the program does not need them",
            )
        if not found:
            raise UsageError("there is nothing in it that would be shipped", where=str(self.root))
        self._limit(found)
        return found

    def _below(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Depth first, by name."""
        lead = f"{folder}/" if folder else ""
        if self._git:
            self._rules += self._patterns(self.root / folder / ".gitignore", lead=lead)
        try:
            with os.scandir(self.root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self._refused.append(f"{shown(os.fsencode(folder or '.'))}: {error.strerror}")
            return
        for entry in entries:
            path = lead + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if self._left_out(path, is_folder):
                continue
            if is_folder:
                yield from self._below(path)
                continue
            status = entry.stat(follow_symlinks=False)
            if problem := self._problem(path, status):
                self._refused.append(problem)
            else:
                yield path, status

    def _left_out(self, path: str, is_folder: bool) -> bool:
        rule = ignore.decides([*self._rules, *self._own], path, is_folder)
        if rule is not None:
            if rule.source:
                self.skipped.append(Skipped(path, f"{rule.pattern} in {rule.source}"))
            return True
        if is_folder and (self.root / path / _ENVIRONMENT).exists():
            self.skipped.append(Skipped(path, "its pyvenv.cfg: a virtual environment"))
            return True
        return False

    def _patterns(self, file: Path, *, lead: str = "", outer: str = "") -> tuple[ignore.Rule, ...]:
        """A file of patterns, which need not be there."""
        try:
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise UsageError(f"it cannot be read: {error.strerror}", where=str(file)) from None
        return ignore.rules(text, str(file), lead=lead, outer=outer)

    def _problem(self, path: str, status: os.stat_result) -> str:
        """Why this cannot be shipped; empty when it can."""
        name = shown(os.fsencode(path))
        if _odd(path):
            return f"the name {name} is no plain text"
        if stat.S_ISREG(status.st_mode):
            return ""
        if not stat.S_ISLNK(status.st_mode):
            return f"{name} is neither a file nor a folder nor a link"
        target = os.readlink(self.root / path)
        if _odd(target):
            return f"the link {name} points to a name that is no plain text"
        try:
            inside = (self.root / path).resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):
            return f"the link {name} leads in a circle"
        if os.path.isabs(target) or not inside:
            return f"the link {name} leads out of the folder, to {target}"
        return ""

    def _limit(self, found: list[tuple[str, os.stat_result]]) -> None:
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for path, status in found:
            first = path.partition("/")[0] + ("/" if "/" in path else "")
            sizes[first] += status.st_size
            counts[first] += 1
        if len(found) > MOST_FILES:
            most = ", ".join(f"{name} {count} files" for name, count in counts.most_common(3))
            raise self._too_much(f"more than {MOST_FILES} files", most)
        if (size := sum(sizes.values())) > MOST_BYTES:
            most = ", ".join(f"{name} {words.mib(count)}" for name, count in sizes.most_common(3))
            raise self._too_much(words.mib(size), most)

    def _too_much(self, much: str, most: str) -> UsageError:
        return UsageError(
            f"the folder holds {much}, which is more than a program: most of it is {most}",
            where=str(self.root),
            remedy=f"name what is no code in {_OWN} of that folder (patterns as in .gitignore); "
            "data and models belong in the shared dir, or in mounts",
        )


def _item(root: Path, path: str, seen: os.stat_result) -> Item:
    if stat.S_ISLNK(seen.st_mode):
        return Item(path, link=os.readlink(root / path))
    try:
        with open(root / path, "rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", where=str(root)) from None
    if _version(before) != _version(after) or _version(after) != _version(seen):
        raise _changed(root / path)
    return Item(path, bool(after.st_mode & 0o111), after.st_size, digest)


def _odd(name: str) -> bool:
    """Control characters, bytes that are no UTF-8, and the backslash, which sha256sum writes in its own way."""
    return any(char < " " or char in "\\\x7f" or "\ud800" <= char <= "\udfff" for char in name)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _content(root: Path, item: Item) -> Iterator[bytes]:
    """The bytes that were promised, or a refusal."""
    hashed, left = hashlib.sha256(), item.size
    try:
        with open(root / item.path, "rb") as file:
            while piece := file.read(min(depot.PIECE, left)):
                hashed.update(piece)
                left -= len(piece)
                yield piece
    except OSError as error:
        raise UsageError(f"{item.path} cannot be read: {error.strerror}", where=str(root)) from None
    if left or hashed.hexdigest() != item.sha256:
        raise _changed(root / item.path)


def _changed(path: Path) -> UsageError:
    return UsageError("the file changed while it was read", where=str(path), remedy="let it be, and run again")
