"""Bytes as a person reads them. Pure."""

from __future__ import annotations

_MIB, _GIB = 2**20, 2**30
_MB, _GB = 10**6, 10**9


def size(count: int) -> str:
    """In the unit that fits."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"


def about(count: int) -> str:
    """As files and disks are sold and named: in decimal units, no more exact than an estimate is."""
    if count >= 10 * _GB:
        return f"{count / _GB:.0f} GB"
    return f"{count / _GB:.1f} GB" if count >= _GB else f"{count / _MB:.0f} MB"
