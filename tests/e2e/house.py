"""A wheelhouse for the real CPU image: everything that the trainer needs, fetched once with this machine's pip."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from clusterft.image import recipe, wheel
from clusterft.spec import ImageSpec
from lab.engine import cache_dir, ensure_engine
from lab.node_image import base_image

CA = Path("/etc/ssl/certs/ca-certificates.crt")
EXTRA = "iniconfig"  # as image.pip in the test: small, pinned, and no library of the trainer
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def cpu_image() -> ImageSpec:
    """The CPU variant built without any package index; skips where its wheels cannot be had."""
    if not metadata.version("torch").endswith("+cpu"):
        pytest.skip(
            "the torch here is no CPU build: its wheels would be gigabytes; pip install a CPU build of torch"
        )
    if sys.version_info[:2] != (3, 11):
        pytest.skip("wheels fetched here must fit the Python of debian:bookworm; run the tests with Python 3.11")
    ensure_engine()
    base_image("bookworm")
    return ImageSpec(variant="cpu", base="debian:bookworm-slim", wheelhouse=_filled(cache_dir() / "wheelhouse"))


def _filled(house: Path) -> Path:
    house.mkdir(exist_ok=True)
    stamp, wanted = (
        house / ".stamp",
        CONSTRAINTS.read_text() + " ".join([*wheel.requirements(), EXTRA, recipe.VOCABULARY]),
    )
    with (house / ".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            for old in house.glob("*[lz]"):  # wheels and .tar.gz
                old.unlink()
            pip = [sys.executable, "-m", "pip", "download", "-q", "--dest", str(house), "-c", str(CONSTRAINTS)]
            subprocess.run([*pip, *wheel.requirements(), *recipe.BUILD, EXTRA], check=True, timeout=900)
            alone = [sys.executable, "-m", "pip", "download", "-q", "--dest", str(house), "--no-deps"]
            subprocess.run([*alone, recipe.VOCABULARY], check=True, timeout=300)
            stamp.write_text(wanted)
    return house
