"""The trainer as a wheel of its own, from the files that are installed here: what the image's last layer holds.

Owns the wheel's layout and that equal files give equal bytes: times are fixed, names sorted. Refuses anything but
the trainer's Python: an image holds no launcher.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import clusterft
from clusterft.errors import ClusterftError

# Zip knows no time before 1980; any fixed one will do.
_TIME = (1980, 1, 1, 0, 0, 0)
_PACKAGE = "clusterft_trainer"
# What the trainer needs beside its extra: the base requirements are the launcher's, but for these.
_SHARED = ("pydantic",)


@dataclass(frozen=True, slots=True)
class Wheel:
    """The trainer at one version: its name, and its files as they lie in site-packages."""

    version: str
    files: tuple[tuple[str, bytes], ...]

    @property
    def name(self) -> str:
        """The file name that pip demands."""
        return f"{_PACKAGE}-{self.version}-py3-none-any.whl"

    def pack(self) -> bytes:
        """The wheel file; the same bytes for the same files."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files:
                entry = zipfile.ZipInfo(name, _TIME)
                entry.external_attr = 0o100644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
        return packed.getvalue()


def build() -> Wheel:
    """The trainer that stands beside this launcher, installed or editable."""
    root = _root()
    code = [path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files = [(f"{_PACKAGE}/{path.relative_to(root).as_posix()}", path.read_bytes()) for path in code]
    return make(clusterft.__version__, files, requirements())


def make(version: str, files: list[tuple[str, bytes]], needs: tuple[str, ...]) -> Wheel:
    """A wheel of these files. Pure."""
    info = f"{_PACKAGE}-{version}.dist-info"
    about = ["Metadata-Version: 2.1", "Name: clusterft-trainer", f"Version: {version}", "Requires-Python: >=3.11"]
    about += [f"Requires-Dist: {need}" for need in needs]
    tags = ["Wheel-Version: 1.0", "Generator: clusterft", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    whole = sorted(files)
    whole += [(f"{info}/METADATA", _lines(about)), (f"{info}/WHEEL", _lines(tags))]
    record = f"{info}/RECORD"
    listing = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in whole]
    whole.append((record, _lines([*listing, f"{record},,"])))
    return Wheel(version, tuple(whole))


def requirements() -> tuple[str, ...]:
    """What the trainer needs, as `clusterft[trainer]` says it."""
    listed = metadata.requires("clusterft") or []
    chosen = []
    for line in listed:
        need, _, marker = (part.strip() for part in line.partition(";"))
        if 'extra == "trainer"' in marker.replace("'", '"') or (not marker and need.startswith(_SHARED)):
            chosen.append(need)
    if not chosen:
        raise ClusterftError("this installation of clusterft does not say what its trainer needs")
    return tuple(sorted(chosen))


def _root() -> Path:
    # Found, not imported: a spec costs nothing and runs nothing.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ClusterftError(f"this installation of clusterft has no {_PACKAGE}")
    return Path(spec.origin).parent


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
