"""The identity of an image that an engine has. What an identity is, and how two differ, is for `facts.image`."""

from __future__ import annotations

from typing import Any

from docker import APIClient

from clusterft.facts.image import Identity, differences, from_inspect

__all__ = ["Identity", "differences", "from_inspect", "identify"]


def identify(api: APIClient, name: str) -> Identity:
    """The identity of an image that this engine has; docker's ImageNotFound if it has none."""
    body: dict[str, Any] = api.inspect_image(name)  # type: ignore[no-untyped-call]
    return from_inspect(body)
