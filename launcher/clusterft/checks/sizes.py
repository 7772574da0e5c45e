"""Bytes as a person reads them. Pure."""

from __future__ import annotations

_MIB, _GIB = 2**20, 2**30


def size(count: int) -> str:
    """In the unit that fits."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"
