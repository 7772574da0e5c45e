"""Programs that doctor runs on nodes: one file each, the standard library alone, Python 3.8 and later.

They are shipped as text and written nowhere. Each speaks JSON lines, ends when its stdin does, and leaves nothing.
"""

from __future__ import annotations

from importlib import resources


def text(program: str) -> str:
    """The source of a program of this package."""
    return resources.files(__package__).joinpath(f"{program}.py").read_text(encoding="utf-8")
