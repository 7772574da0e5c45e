"""The checks of the storage layer: is the shared directory one directory, and does it do what a run asks of it."""

from __future__ import annotations

from clusterft.checks.check import Check
from clusterft.checks.examination import Thing
from clusterft.checks.shares import shared_dir, sharing

_BOTH: tuple[Thing, ...] = ("facts", "health")
_PROOF: tuple[Thing, ...] = ("facts", "health", "share")
# What does not answer, or is not there, gets no second name.
_GONE = ("fs.hung", "fs.export", "fs.stale", "fs.not-shared")
_STOPPED = (*_GONE, "fs.squash", "fs.not-writable")
_UNTRIED = ("fs.lock", "fs.slow", "fs.attrcache", "fs.squash", "fs.not-writable", "fs.not-shared")

CHECKS: tuple[Check, ...] = (
    Check(("fs.hung",), sharing.hung, reads=_BOTH),
    Check(("fs.export",), sharing.export, reads=_BOTH, after=("fs.hung",)),
    Check(("fs.stale",), sharing.stale, reads=_BOTH, after=("fs.hung", "fs.export")),
    Check(("fs.not-shared",), sharing.not_shared, reads=_BOTH, after=("fs.hung", "fs.export", "fs.stale")),
    Check(("fs.not-shared",), sharing.apart, reads=_PROOF, after=_GONE),
    Check(("fs.type",), shared_dir.kind, reads=_BOTH, after=_GONE),
    Check(("fs.squash",), shared_dir.squash, reads=_BOTH, after=_GONE),
    Check(("fs.squash",), shared_dir.closed, reads=_PROOF, after=_GONE),
    Check(("fs.squash",), shared_dir.taken_for, reads=_PROOF, after=_GONE),
    Check(("fs.not-writable",), shared_dir.not_writable, reads=_PROOF, after=_GONE),
    Check(("os.disk-full",), shared_dir.quota, reads=("facts",), after=_GONE),
    Check(("fs.attrcache",), shared_dir.attrcache, reads=_PROOF, after=_GONE),
    Check(("fs.attrcache",), shared_dir.cached_long, reads=_BOTH, after=_GONE),
    Check(("fs.file-size",), shared_dir.file_size, reads=_PROOF, after=_STOPPED),
    Check(("fs.lock",), shared_dir.lock, reads=_PROOF, after=_GONE),
    Check(("fs.slow",), shared_dir.slow, reads=_PROOF, after=_GONE),
    Check(("fs.retrans",), shared_dir.retrans, reads=_BOTH, after=_GONE),
    Check(_UNTRIED, shared_dir.untried, reads=_PROOF, after=_STOPPED),
    Check(("fs.hung",), sharing.paths_hung, reads=_BOTH),  # the last: of the shared directory it says nothing
)
