"""Whether a piece of a log may hold anything that is known: most of it is steps, which are only counted. Pure."""

from __future__ import annotations

# Every signature, traceback, end and event has one of these in it; a test holds them against each other.
_STEMS = tuple(
    word.encode()
    for word in (
        "rror", "xception", "Interrupt", "Exit", "ailed", "ailure", "FAILED", "illed", "ignal", "SIG",
        "imed out", "imeout", "TIMEOUT", "efused", "oute to host", " found", "onnect", "family 0", "Duplicate",
        "same GPU", "/dev/shm", "unlink", "vendor err", "async fatal", "mixed local", "retrieved",
        "clients joined", "resolve", "atchdog", "return code", "kernel image", "compatible",
        "not yet initialized", "mismatch", "Mismatch", "NVRM", "not responding", " OK", "read-only",
        "Read-only", "not reachable", "unpack", "latest file", "not installed", "CUDA_HOME", "on port", "kex_",
        "Not allowed", "could not select", "unsatisfied", "libnvidia", "toomany", "not supported", "denied",
        "tale file", "No locks", "torchvision", "negative dimension", "No space left", "quota", "memory",
        "hostfile", "batch related", "world size", "world_size", "nranks", "rank_mapping", "spawned",
        "terminate called", "Fatal Python", "fault", "Abort", "Terminated", "Hangup", "blocked for", "closed",
        "roken", "in use", "EADDRINUSE", "Traceback", "aborted", "NaN", "nan", "no socket interface",
        '"attempt', '"rank-died"', '"ended"', '"decided"', '"hang"', '"failed"', '"done"', '"found"',
        "exitcode", "  time ", "  rank ", "Root Cause", "Failures:", "not known", "in name resolution",
        "got 0 bytes", "monitoredBarrier", "inline_container", "errno", "Detected", "ssh exited", "lost",
        "reset by",
    )
)  # fmt: skip


def calm(piece: bytes) -> bool:
    """Whether nothing in it can be of use."""
    return not any(stem in piece for stem in _STEMS)
