"""The process that writes checkpoints, where others of its kind start at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterft_trainer import progress

NOBODY = 65534
# After setuid, the files below /proc/self are root's, unless the process says that it has no secrets.
START = """
import ctypes, encodings.ascii, os
from clusterft_trainer import scribe
os.setuid(%d)
ctypes.CDLL(None).prctl(4, 1)
scribe.step_aside()
print(open("/proc/self/autogroup").read().split()[-1], os.sched_getscheduler(0) == os.SCHED_IDLE)
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
def test_many_of_them_may_step_aside_at_once_without_being_root() -> None:
    """The kernel takes one such wish in a tenth of a second, of all users but root together."""
    pytest.importorskip("xxhash")
    env = {**os.environ, "PYTHONPATH": str(Path(progress.__file__).parents[1])}
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", START % NOBODY],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        for _ in range(6)
    ]
    said = [process.communicate(timeout=30) for process in begun]
    assert said == [("19 True\n", "")] * 6
