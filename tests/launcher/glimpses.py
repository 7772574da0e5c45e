"""Keys that are none, and what might have been seen on a node, for the tests of provisioning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clusterft.provision.seen import Seen


def key(name: str) -> str:
    """A public line that is another one for each name."""
    return f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{name.encode().hex()}"


def glimpse(own: str | None, *others: str, **changes: Any) -> Seen:
    """A node that sees these tokens."""
    bare = Seen("me", None, (), None, own, frozenset({*others, *filter(None, [own])}), (), None, "", (), False)
    return replace(bare, **changes)
