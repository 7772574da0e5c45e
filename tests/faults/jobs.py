"""The job that every fault befalls, and what it needs of an image.

The nodes' containers run this checkout's own interpreter and libraries, which the lab shows to them: the image is
small, and what is tested is the code as it lies here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from e2e.upping import DOCKERFILE as SMALL

ROOT = Path(__file__).resolve().parents[2]
WITNESS = ROOT / "tests" / "faults" / "witness"
NOTES = "/var/witness"
SHARED = "/shared"
IMAGES = 24
# What of this checkout's interpreter an image lacks, and the way to it where it lies in the home of root.
DOCKERFILE = SMALL.replace("python3 ", "python3 libgomp1 ") + "RUN chmod 711 /root\n"
MOUNTS = (str(ROOT), sys.base_prefix)
PAUSE = 0.4  # seconds of a step: a fault must find its moment


def job(**changes: Any) -> dict[str, Any]:
    """A run of three ranks and three epochs with a checkpoint every fourth step; changes go one level deep."""
    base: dict[str, Any] = {
        "name": "tiny",
        "shared": SHARED,
        "python": str(ROOT / ".venv" / "bin" / "python"),
        "resources": {"device": "cpu", "threads": 1},
        "image": {"dockerfile": "image/Dockerfile"},
        "mounts": [*(f"{path}:ro" for path in MOUNTS), NOTES],
        "env": {"PYTHONPATH": str(WITNESS), "WITNESS": NOTES, "WITNESS_PAUSE": str(PAUSE)},
        "restarts": 3,
        "hang_after": "6min",
        "train": {
            "model": "builtin:tiny",
            "output": {"name": "tiny"},
            "data": {"sources": [{"builtin": "shapes", "images": IMAGES}], "resolution": 64},
            "learn": {"unet": {"rate": 1e-3}},
            "precision": "fp32",
            "engine": {"kind": "zero", "stage": 2},
            "checkpoints": {"every_steps": 4, "keep": 2},
            "epochs": 3,
            "seed": 5,
        },
    }
    for key, value in changes.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base
