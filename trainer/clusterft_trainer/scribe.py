"""Puts a stretch of shared memory into a file, past the page cache, and reads it back: a process of its own.

A thread would share Python's interpreter lock with training, and hold it just when it has stepped aside for
training: both would wait. So a rank starts this beside itself, torch-free, at the lowest priority there is:

    python -m clusterft_trainer.scribe MEMORY

MEMORY is an open descriptor. It serves wishes, a line of JSON each on stdin with a size in bytes and a path, and
answers each with a line on stdout: size and checksum of what the disk gives back, or the error. Ignores the
signals that stop a run, since the checkpoint that they ask for is this one; ends when the rank is gone.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import xxhash

BLOCK = 8 << 20  # bytes written, hashed and read back at once
PAGE = 4096  # what writing past the page cache is counted in
_TRIES = 40


def put(memory: memoryview, size: int, path: str) -> str:
    """Write, flush, read back; the checksum. `memory` begins with a page and is filled up to whole ones.

    The page cache would cost more of the processor than everything else here, and is of no use: nobody reads the
    file soon, and what is read back shall come from the disk.
    """
    digest, parent = xxhash.xxh3_128(), os.getppid()
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
        for first in range(0, pages(size), BLOCK):
            _write(handle, memory[first : min(first + BLOCK, pages(size))])
            digest.update(memory[first : min(first + BLOCK, size)])
            if os.getppid() != parent:
                raise OSError(errno.EOWNERDEAD, "the rank that wanted this file is gone")
        os.ftruncate(handle, size)
        os.fsync(handle)
    found = digest.hexdigest()
    if (back := read_back(path)) != (size, found):
        raise OSError(errno.EIO, f"it reads back otherwise than it was written ({back[0]} of {size} bytes)")
    return found


def read_back(path: str) -> tuple[int, str]:
    """Size and checksum of what the disk itself gives."""
    room = mmap.mmap(-1, BLOCK)
    digest, size = xxhash.xxh3_128(), 0
    with opened(path, os.O_RDONLY) as handle:
        while got := os.readv(handle, [room]):
            digest.update(memoryview(room)[:got])
            size += got
    return size, digest.hexdigest()


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Past the page cache, where the file system can; some in memory or in user space cannot."""
    try:
        handle = os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A file may have been made before the flag was refused.
        handle = os.open(path, flags & ~os.O_EXCL, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def pages(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def _write(handle: int, block: memoryview) -> None:
    while block:
        block = block[os.write(handle, block) :]


def step_aside() -> None:
    """Take what training leaves of the processor; when training waits for this, the processor is idle anyway."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Linux may share the processor out between sessions first: every rank has one, and this process another.
    for _ in range(_TRIES):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:
                file.write("19")
        except BlockingIOError:
            # One such wish in 0.1 s for the whole machine, unless root has it: other ranks' writers ask too.
            time.sleep(random.uniform(0.05, 0.3))
        except (FileNotFoundError, PermissionError):  # no such sharing, or not for us to say
            return
        else:
            return


def main(memory: int) -> None:
    """Serve until nobody asks any more."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    step_aside()
    for line in sys.stdin:
        wish = json.loads(line)
        size = int(wish["size"])
        try:
            room = memoryview(mmap.mmap(memory, pages(size)))
            answer: dict[str, object] = {"size": size, "xxh3": put(room, size, wish["path"])}
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
