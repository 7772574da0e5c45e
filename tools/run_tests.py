"""`make test` and `make test-all`: run pytest over everything, and say how long it took.

run_tests.py [--all] [more words for pytest]

Without any word, what needs the machine for itself (labs, engines, whole commands) comes first and alone; the rest
runs in two lanes, as one of them computes where the other mostly waits.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import fault_table

NOTHING_LEFT = 5  # pytest's word for an empty selection
ROOT = Path(__file__).resolve().parent.parent
LANES = (("trainer",), ("launcher", "supervisor"))


def main() -> int:
    """Run the tests; pytest's exit code is ours."""
    began = time.monotonic()
    code = _end(_pytest(*sys.argv[1:])) if sys.argv[1:] else _by_lanes()
    if code == NOTHING_LEFT and "--all" in sys.argv:
        # Here it means that all of it has passed on this very tree.
        print("nothing is left to run: every test has passed on this tree; rm -r .test-state runs them again")
        code = 0
    if "--all" in sys.argv and fault_table.write():
        print(f"what came of each fault: {fault_table.PAGE.relative_to(ROOT)}")
    size = "test-all" if "--all" in sys.argv else "test"
    print(f"make {size}: {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return code


def _by_lanes() -> int:
    """The lanes begin when all else has ended; what the second says follows what the first said."""
    beside = [folder for lane in LANES for folder in lane]
    alone = sorted({path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - set(beside))
    codes = [_end(_pytest(*_without(beside)))]
    with tempfile.TemporaryFile() as said:
        first, second = (
            _pytest(*_without([*alone, *(name for name in beside if name not in lane)]), out=out)
            for lane, out in zip(LANES, (None, said), strict=True)
        )
        codes += [_end(first), _end(second)]
        said.seek(0)
        sys.stdout.buffer.write(said.read())
    return next((code for code in codes if code), 0)


def _without(folders: list[str]) -> list[str]:
    # Not by naming the others: whoever names a folder also means its long tests.
    return [f"--ignore=tests/{name}" for name in folders]


def _pytest(*words: str, out: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pytest", "--durations=20", *words], cwd=ROOT, stdout=out)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; a Ctrl-C has reached it too, and it takes its labs away before we go."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main())
