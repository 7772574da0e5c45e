"""`make test` and `make test-all`: run pytest over everything, and say how long it took.

run_tests.py [--all] [more words for pytest]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import fault_table

NOTHING_LEFT = 5
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the tests; pytest's exit code is ours."""
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "pytest", "--durations=8", *sys.argv[1:]], cwd=ROOT).returncode
    if code == NOTHING_LEFT and "--all" in sys.argv:
        # pytest's word for an empty selection: here it means that all of it has passed on this very tree.
        print("nothing is left to run: every test has passed on this tree; rm -r .test-state runs them again")
        code = 0
    if "--all" in sys.argv and fault_table.write():
        print(f"what came of each fault: {fault_table.PAGE.relative_to(ROOT)}")
    size = "test-all" if "--all" in sys.argv else "test"
    print(f"make {size}: {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
