"""The documents around an image's layers, and what of it a node lacks. Pure: bytes and names in and out.

Owns one layout that every engine reads: classic ones by manifest.json, those with the containerd store by the OCI
index. Both name the layers as they are uncompressed, so that a layer's digest is its diff id everywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_OCI = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes known by what they are: the sha256 in hex, without the algorithm's name."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ImageParts:
    """An image taken apart; `layers` are in order, from the base up."""

    reference: str  # NAME:TAG that it shall have on every node
    config: bytes  # the very bytes: their digest is the image's identity
    layers: tuple[Blob, ...]
    source_id: str = field(default="", compare=False)  # the Id that the origin's engine gave it

    @property
    def config_digest(self) -> str:
        """The image's Id on a classic engine."""
        return "sha256:" + digest_of(self.config)

    @property
    def manifest_digest(self) -> str:
        """The image's Id on an engine with the containerd store, for the manifest is ours."""
        return "sha256:" + digest_of(self._manifest())

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """RootFS.Layers."""
        return tuple(f"sha256:{layer.digest}" for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For a file: the next shipment of the same image then need not read it again."""
        layers = [[layer.digest, layer.size] for layer in self.layers]
        config = self.config.decode("utf-8")  # JSON is UTF-8; the very bytes come back
        return {"reference": self.reference, "config": config, "layers": layers, "source_id": self.source_id}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> ImageParts:
        """What to_dict gave; KeyError, TypeError or ValueError for anything else."""
        layers = tuple(Blob(str(digest), int(size)) for digest, size in kept["layers"])
        return cls(str(kept["reference"]), str(kept["config"]).encode(), layers, str(kept["source_id"]))

    def documents(self, name: str) -> dict[str, bytes]:
        """Everything but the layers, for an image that is to be loaded as NAME:TAG."""
        manifest = self._manifest()
        repository, _, tag = name.rpartition(":")
        path = repository if "/" in repository else f"library/{repository}"
        entry = {
            **_descriptor("manifest.v1+json", digest_of(manifest), len(manifest)),
            "annotations": {
                "io.containerd.image.name": f"docker.io/{path}:{tag}",
                "org.opencontainers.image.ref.name": tag,
            },
        }
        index = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": [entry]}
        old = {
            "Config": _path(digest_of(self.config)),
            "RepoTags": [name],
            "Layers": [_path(layer.digest) for layer in self.layers],
        }
        return {
            "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
            "index.json": _json(index),
            "manifest.json": _json([old]),
            _path(digest_of(self.config)): self.config,
            _path(digest_of(manifest)): manifest,
        }

    def _manifest(self) -> bytes:
        layers = [_descriptor("layer.v1.tar", layer.digest, layer.size) for layer in self.layers]
        config = _descriptor("config.v1+json", digest_of(self.config), len(self.config))
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": config,
                "layers": layers,
            }
        )


def packed(documents: dict[str, bytes]) -> bytes:
    """A tar of them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in documents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def lacking(wanted: tuple[str, ...], present: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The diff ids that must travel. A layer counts as there only on top of the very layers that it lies on in the
    wanted image: engines keep layers by their chain."""
    longest = 0
    for chain in present:
        common = 0
        for ours, theirs in zip(wanted, chain, strict=False):
            if ours != theirs:
                break
            common += 1
        longest = max(longest, common)
    return wanted[longest:]


def digest_of(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": size}


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _json(value: object) -> bytes:
    # The digest of these bytes is an identity: the same value must give the same bytes on any controller.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
