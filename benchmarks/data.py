"""The data path against what it cannot beat: ingest, cache, verify, pack and loader, each in a file beside this.

Makes its own sets in BENCH_DIR (about 8 GB; the temporary directory if not set) and removes them. Baselines run in
the same call, alternating with ours.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import _data_cache
import _data_ingest
import _data_loader
import _data_verify
from _figures import Figure, main


def measure(quick: bool) -> tuple[list[Figure], dict[str, object]]:
    """One part after the other; ONLY names some of them."""
    parts = {
        "ingest": lambda folder: _data_ingest.pairs(quick, folder),
        "kohya": lambda folder: _data_ingest.kohya(quick, folder),
        "process": lambda folder: _data_ingest.process(quick, folder),
        "cache": lambda folder: _data_cache.figures(quick),
        "catalogue": lambda folder: _data_cache.catalogue(folder, 100_000 if quick else 1_000_000),
        "verify": lambda folder: _data_verify.figures(quick),
        "loader": lambda folder: _data_loader.measure(folder, quick),
    }
    wanted = os.environ.get("ONLY", ",".join(parts)).split(",")
    found: list[Figure] = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix=f"clusterft-{name}-", dir=os.environ.get("BENCH_DIR")) as folder:
            found += parts[name](Path(folder))
    return found, {"parts": wanted}


if __name__ == "__main__":
    sys.exit(main("data", measure))
