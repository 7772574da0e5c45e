"""Compressing what travels, where that is faster: zstd of the controller and of every node that takes the layer.

Owns the decision (pure: sizes and measured rates in, yes or no out) and the press. A compressed layer is a blob
like any other on its way; each node makes the layer of it, and believes its digest only. No zstd, no compression.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

from clusterft.errors import ClusterftError
from clusterft.remote import Remote, Stream
from clusterft.remote.local import LocalRemote
from clusterft.ship import scripts
from clusterft.ship.origin import SPOOL, Spool

_ZSTD = ("zstd", "-q", "-3", "-T0", "-c")
_LEAST = 16 << 20  # bytes; below it nothing is gained that anybody notices
_SAMPLES, _SAMPLE = 3, 4 << 20
_PROBE = 1 << 20
_CHUNK = 1 << 18
_WORTH = 0.8  # of the plain time: a gain of less is noise
_RELEASE_RATE = 400e6  # bytes a second at which a node unpacks and hashes; 350e6 was measured on a busy machine
_SECONDS = 120.0

# $1 session directory, $2 owner word, then pairs: compressed digest, digest.
RELEASE = (
    scripts.HEAD
    + """\
session=$1 owner=$2; shift 2
holds "$session/owner" "$owner" || { say failed usurped; exit 0; }
( while :; do sleep 2; say busy; done ) & busy=$!
trap 'kill $busy 2>/dev/null' EXIT
cd -- "$session/blobs/sha256" || exit 0
while [ $# -gt 1 ]; do
    zstd -qdc <"$1" >"$2.plain" 2>"$session/err" || {
        rm -f "$2.plain"
        if grep -q 'No space left' "$session/err"; then say full; else say failed "zstd: $2"; fi; exit 0
    }
    sum=$(sha256sum <"$2.plain")
    [ "${sum%% *}" = "$2" ] || { rm -f "$2.plain"; say failed "sha256 ${sum%% *} for $2"; exit 0; }
    mv -f "$2.plain" "$2"
    shift 2
done
say released
"""
)


def pays(size: int, ratio: float, press_rate: float, link_rate: float) -> bool:
    """Whether compressing, sending less and unpacking takes clearly less time than sending all; bytes a second."""
    plain = size / link_rate
    squeezed = size / press_rate + size * ratio / link_rate + size / _RELEASE_RATE
    return squeezed < _WORTH * plain


class Press:
    """Compresses blobs of a spool when that pays on the way to the first node."""

    def __init__(self, spool: Spool, first: Remote) -> None:
        self._spool, self._first = spool, first
        self._local = LocalRemote()
        self._link: float | None = None
        self._able = self._local.run((*_ZSTD[:1], "-q", "--version")).code == 0

    def squeezed(self, digest: str) -> str | None:
        """The digest of the compressed blob, now in the spool; None when it shall travel as it is."""
        size = self._spool.sizes[digest]
        if not self._able or size < _LEAST:
            return None
        ratio, rate = self._sample(digest, size)
        if ratio > _WORTH:
            return None
        if self._link is None:
            self._link = link_rate(self._first)
        return self._press(digest, size) if pays(size, ratio, rate, self._link) else None

    def _sample(self, digest: str, size: int) -> tuple[float, float]:
        """(compressed size over plain, plain bytes a second) of three pieces."""
        starts = [(size - _SAMPLE) * index // (_SAMPLES - 1) for index in range(_SAMPLES)]
        pieces = [self._spool.read(digest, start, _SAMPLE) for start in starts]
        began = time.monotonic()
        squeezed = sum(len(chunk) for chunk in self._run(iter(pieces)))
        plain = sum(map(len, pieces))
        return squeezed / plain, plain / max(time.monotonic() - began, 1e-3)

    def _press(self, digest: str, size: int) -> str:
        chunks = (self._spool.read(digest, offset, _CHUNK) for offset in range(0, size, _CHUNK))
        hashed = hashlib.sha256()
        kept = tempfile.TemporaryFile(dir=SPOOL, prefix="clusterft-ship-")
        for chunk in self._run(chunks):
            hashed.update(chunk)
            kept.write(chunk)
        self._spool.put(hashed.hexdigest(), kept)
        return hashed.hexdigest()

    def _run(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._local.stream(_ZSTD) as stream:
            stream.settimeout(_SECONDS)
            feeder = threading.Thread(target=_feed, args=(stream, chunks), daemon=True)
            feeder.start()
            while chunk := stream.recv(_CHUNK):
                yield chunk
            feeder.join()
            if stream.code(_SECONDS) != 0:
                raise ClusterftError(f"zstd failed on the controller: {stream.complaint().strip()}")


def link_rate(remote: Remote) -> float:
    """Bytes a second to a node, measured with a few that are thrown away there."""
    noise = hashlib.shake_256(b"clusterft").digest(_PROBE)
    remote.run(("sh", "-c", "cat >/dev/null"), stdin=noise[: _PROBE // 8], seconds=_SECONDS)  # the window opens
    began = time.monotonic()
    remote.run(("sh", "-c", "cat >/dev/null"), stdin=noise, seconds=_SECONDS)
    return _PROBE / max(time.monotonic() - began, 1e-3)


def _feed(stream: Stream, chunks: Iterator[bytes]) -> None:
    try:
        for chunk in chunks:
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        return  # zstd ended: its exit code says why
