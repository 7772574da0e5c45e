"""`python -m clusterft_trainer.supervisor run|start|end DIR`, `follow DIR [SKIP]` or `stop DIR [TIMES]`.

DIR is the directory of a part; it holds assignment.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clusterft_trainer import assignment
from clusterft_trainer.supervisor import detached
from clusterft_trainer.supervisor.part import Part


def run(directory: Path) -> int:
    """In the foreground, saying everything on stdout: PID 1 of a container."""
    told = assignment.parse((directory / "assignment.json").read_text(encoding="utf-8"))
    part = Part(told, directory, echo=True)
    detached.note_process(directory)
    return part.run()


def main() -> int:
    """Dispatch; the launcher is the only caller, so the usage line is all the help there is."""
    verbs = {"run": run, "start": detached.start, "end": detached.end}
    match sys.argv[1:]:
        case ["follow", directory, *skip] if len(skip) < 2 and all(word.isdigit() for word in skip):
            return detached.follow(Path(directory), int(skip[0]) if skip else 0)
        case ["stop", directory, *times] if len(times) < 2 and all(word.isdigit() for word in times):
            return detached.stop(Path(directory), int(times[0]) if times else 1)
        case [verb, directory] if verb in verbs:
            return verbs[verb](Path(directory))
    sys.stderr.write(
        "usage: python -m clusterft_trainer.supervisor run|start|end DIR, follow DIR [SKIP], stop DIR [TIMES]\n"
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
