"""What has changed since a checkpoint was written: refused where its meaning is lost, told otherwise. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clusterft_trainer.checkpoint.manifest import Found, Identity
from clusterft_trainer.errors import RunError

_MEANING = {
    "seed": "seed decides the order of the pictures and the noise",
    "data": "the pictures, their captions or how they are chosen",
    "trained": "which weights are trained",
    "objective": "what the model learns to predict",
    "model": "the model itself, which holds what is not trained",
}


def refuse(found: Found, identity: Identity, left: Sequence[str] = ()) -> None:
    """Raise if the checkpoint belongs to another run than these settings tell; data that was `left` may differ."""
    wanted, had = asdict(identity), found.manifest.identity
    changed = [name for name in wanted if had.get(name) != wanted[name]]
    if others(found, identity, left):
        changed.remove("data")
    if changed:
        told = "; ".join(_MEANING[name] for name in changed)
        pictures = "" if changed != ["data"] else " Or take them as they are: clusterft resume RUN --new-data."
        raise RunError(
            "resume",
            f"{found.folder} belongs to other settings than these. Changed: {told}.",
            f"Restore them to continue, or begin a new run; an export can be its model:.{pictures}",
        )


def others(found: Found, identity: Identity, left: Sequence[str]) -> bool:
    """Whether a checkpoint was written with pictures that the run was asked to leave; `left` are their digests."""
    had = found.manifest.identity.get("data")
    return had != identity.data and str(had).partition(":")[0] in left


def told(found: Found, config: Mapping[str, Any]) -> list[str]:
    """Each setting that is another now, with both values."""
    before = dict(_leaves(found.manifest.config))
    now = dict(_leaves(config))
    missing = object()
    changed = [n for n in sorted(before | now) if before.get(n, missing) != now.get(n, missing)]
    return [f"{n} is {_shown(now.get(n))} now, {_shown(before.get(n))} before" for n in changed]


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


def _leaves(body: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(body, Mapping):
        for key, value in body.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, body
