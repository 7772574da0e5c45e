"""What an image is, whatever it is called: the digest of its configuration and of each of its layers. Pure.

An image's Id will not do: engines that keep images in containerd give the same image another Id. So the
configuration is compared by what it says, and layers by their diff ids, which are the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

# What a container gets from an image besides its files, as `inspect` says it on every engine.
_MEANING = (
    "Cmd Entrypoint Env ExposedPorts Healthcheck Labels OnBuild Shell StopSignal User Volumes WorkingDir".split()
)


@dataclass(frozen=True, slots=True)
class Identity:
    """An image as it is compared between nodes."""

    config_digest: str
    layers: tuple[str, ...]  # diff ids, lowest first
    arch: str
    os: str
    created: str
    size: int  # bytes as this engine counts them; not compared, since engines count differently

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def from_inspect(body: dict[str, Any]) -> Identity:
    """`docker image inspect` -> Identity."""
    config = body.get("Config") or {}
    layers = tuple(body.get("RootFS", {}).get("Layers") or ())
    arch, system = str(body["Architecture"]), str(body["Os"])
    # An empty list, an empty word and an absent key mean the same, and engines write either.
    meaning = {key: config[key] for key in _MEANING if config.get(key)}
    created = str(body.get("Created") or "")
    whole = json.dumps([meaning, layers, arch, system], sort_keys=True)
    return Identity(
        config_digest="sha256:" + hashlib.sha256(whole.encode()).hexdigest(),
        layers=layers,
        arch=arch,
        os=system,
        created=created,
        size=int(body.get("Size") or 0),
    )


def differences(expected: Identity, found: Identity) -> tuple[str, ...]:
    """In what an image is another one; nothing if it is the same."""
    told = []
    if (expected.os, expected.arch) != (found.os, found.arch):
        told.append(f"it is for {found.os}/{found.arch}, not {expected.os}/{expected.arch}")
    if expected.layers != found.layers:
        same = 0
        while same < min(len(expected.layers), len(found.layers)) and expected.layers[same] == found.layers[same]:
            same += 1
        told.append(f"layer {same + 1} of {len(expected.layers)} differs")
    elif expected.config_digest != found.config_digest:
        told.append("the layers are equal, the configuration (environment, command, labels, user) differs")
    return tuple(told)
