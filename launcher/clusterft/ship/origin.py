"""Layers out of an engine: `docker save` read once as a stream, the wanted layers kept by their digest.

Owns the spool on the controller: files without a name, gone with the process whatever ends it. An entry of
the stream is known by the sha256 of what it holds, uncompressed: no version's way of naming its layers
matters. Refuses to go on when a layer is missing. Memory stays bounded whatever the image's size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from clusterft.errors import Blocked, ClusterftError
from clusterft.findings import Finding
from clusterft.remote import Remote

SPOOL = Path("/var/tmp")  # /tmp is memory on many machines
_CHUNK = 1 << 20
_DOCUMENT = 1 << 20  # bytes; no config or manifest is larger
_SAVE_SILENCE = 600.0  # seconds; engine 20.10 writes the whole image to its disk before the first byte comes
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_INSPECT = "{{.Id}} {{.Os}} {{.Architecture}} {{.Size}} {{json .RootFS.Layers}}"


class Seen(NamedTuple):
    """What the origin's engine says of the image."""

    id: str
    os: str
    architecture: str
    size: int
    diff_ids: tuple[str, ...]


class Unpacked(NamedTuple):
    """What a `docker save` held; sizes are those of uncompressed layers, by sha256 in hex."""

    config: bytes
    sizes: dict[str, int]


class Spool:
    """Whole blobs on the controller, read from any offset by any thread."""

    def __init__(self) -> None:
        self._files: dict[str, IO[bytes]] = {}
        self.sizes: dict[str, int] = {}

    def put(self, digest: str, file: IO[bytes]) -> None:
        """Take a file over; it has no name and goes when the spool is closed."""
        file.flush()
        self._files[digest], self.sizes[digest] = file, os.fstat(file.fileno()).st_size

    def read(self, digest: str, offset: int, count: int) -> bytes:
        """Some bytes of a blob; fewer at its end."""
        return os.pread(self._files[digest].fileno(), count, offset)

    def close(self) -> None:
        """Give the room back."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def look(remote: Remote, command: tuple[str, ...], reference: str) -> Seen:
    """Ask the engine what the image is."""
    done = remote.run((*command, "image", "inspect", "--format", _INSPECT, reference))
    for line in reversed(done.out.splitlines() if done.code == 0 else ()):
        words = line.split(" ", 4)
        if len(words) == 5 and words[3].isdecimal():
            return Seen(words[0], words[1], words[2], int(words[3]), tuple(json.loads(words[4])))
    said = done.err.strip() or done.out.strip() or f"exit code {done.code}"
    raise ClusterftError(f"the image {reference} cannot be read from its engine: {said}", remedy="build it again")


class Reader:
    """One reading of a `docker save` stream: the wanted layers go into the spool, all layers' sizes are noted."""

    def __init__(self, layers: Collection[str], wanted: Collection[str], *, sizes_known: bool) -> None:
        self.spool = Spool()
        self._layers, self._wanted = frozenset(layers), frozenset(wanted)
        self._enough = self._wanted if sizes_known else self._layers
        self._sizes: dict[str, int] = {}
        self._documents: dict[str, bytes] = {}

    def save(self, remote: Remote, command: tuple[str, ...], reference: str) -> Unpacked:
        """Out of the controller's own engine."""
        stream = remote.stream((*command, "save", reference))
        stream.settimeout(_SAVE_SILENCE)
        try:
            with stream.makefile("rb") as file:
                return self.read(file)
        except (tarfile.TarError, OSError) as error:
            self.spool.close()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room(shutil.disk_usage(SPOOL).free, sum(self.spool.sizes.values())) from None
            said = stream.complaint().strip() or str(error)
            raise ClusterftError(f"docker save {reference} broke off: {said}") from None
        except BaseException:
            self.spool.close()
            raise
        finally:
            stream.close()

    def read(self, file: IO[bytes]) -> Unpacked:
        """Read until everything is found."""
        with tarfile.open(fileobj=file, mode="r|", bufsize=_CHUNK) as tar:
            for entry in tar:
                if entry.isreg() and (source := tar.extractfile(entry)):
                    self._take(entry, source)
                config = self._config()
                if config is not None and self._enough <= self._sizes.keys():
                    return Unpacked(config, self._sizes)
        for digest in sorted(self._enough - self._sizes.keys()):
            raise ClusterftError(f"docker save held no layer sha256:{digest}", remedy="build the image again")
        raise ClusterftError("docker save held no manifest.json with the image's config")

    def _take(self, entry: tarfile.TarInfo, source: IO[bytes]) -> None:
        first = source.read(min(entry.size, _CHUNK))
        if entry.size <= _DOCUMENT:
            self._documents[entry.name] = first
        plain = not first.startswith((_GZIP, _ZSTD))
        digest = entry.name.rpartition("/")[2] if entry.name.startswith("blobs/sha256/") else ""
        if plain and digest and digest not in self._wanted - self.spool.sizes.keys():
            if digest in self._layers:  # its name is its digest: no need to read it
                self._sizes[digest] = entry.size
            return
        chunks = _uncompressed(first, _chunks(source), entry.name)
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(tempfile.TemporaryFile(dir=SPOOL, prefix="clusterft-ship-"))
            hashed, size = hashlib.sha256(), 0
            for chunk in chunks:
                hashed.update(chunk)
                kept.write(chunk)
                size += len(chunk)
            digest = hashed.hexdigest()
            if digest not in self._layers:
                return
            self._sizes[digest] = size
            if digest in self._wanted and digest not in self.spool.sizes:
                stack.pop_all()
                self.spool.put(digest, kept)

    def _config(self) -> bytes | None:
        if "manifest.json" not in self._documents:
            return None
        (manifest, *_) = json.loads(self._documents["manifest.json"])
        return self._documents.get(manifest["Config"])


def check_room(needed: int) -> None:
    """Refuse before the first byte when the spool's disk cannot hold the layers."""
    free = shutil.disk_usage(SPOOL).free
    if free < needed:
        raise no_room(free, needed)


def _uncompressed(first: bytes, rest: Iterator[bytes], name: str) -> Iterator[bytes]:
    whole = itertools.chain((first,), rest)
    if first.startswith(_ZSTD):
        raise ClusterftError(
            f"the layer {name} is compressed with zstd, which this controller cannot read",
            remedy="build the image with gzip or uncompressed layers",
        )
    if not first.startswith(_GZIP):
        yield from whole
        return
    unzip = zlib.decompressobj(wbits=31)
    for chunk in whole:
        left = chunk
        while left:
            yield unzip.decompress(left)
            left = unzip.unused_data
            if unzip.eof and left:  # several members in a row are one file
                unzip = zlib.decompressobj(wbits=31)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def no_room(free: int, needed: int) -> Blocked:
    """The controller's own disk is too full."""
    words = f"{free >> 20} MiB free in {SPOOL} on the controller, {needed >> 20} MiB needed for the layers to send"
    finding = Finding(
        id="os.disk-full",
        status="fail",
        nodes=(),
        summary="no room on the controller for the layers to send",
        evidence=words,
        fix=(f"make room in {SPOOL}", "docker image prune"),
    )
    return Blocked(words, (finding,))
