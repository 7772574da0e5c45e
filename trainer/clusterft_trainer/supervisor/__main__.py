"""`python -m clusterft_trainer.supervisor run|start|follow|stop DIR`, where DIR holds assignment.json."""

from __future__ import annotations

import sys
from pathlib import Path

from clusterft_trainer import assignment
from clusterft_trainer.supervisor import detached
from clusterft_trainer.supervisor.watch import Watch


def run(directory: Path) -> int:
    """In the foreground, saying everything on stdout: PID 1 of a container."""
    told = assignment.parse((directory / "assignment.json").read_text(encoding="utf-8"))
    return Watch(told, directory, echo=True).run()


def main() -> int:
    """Dispatch; the launcher is the only caller, so the usage line is all the help there is."""
    verbs = {"run": run, "start": detached.start, "follow": detached.follow, "stop": detached.stop}
    if len(sys.argv) != 3 or sys.argv[1] not in verbs:
        sys.stderr.write("usage: python -m clusterft_trainer.supervisor run|start|follow|stop DIR\n")
        return 2
    return verbs[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
