"""`python -m clusterft_trainer.report RUN_DIR [-o FILE]`: the page about a run, written as one file.

Owns the command line, and what must come from outside: the clock, the versions of libraries, the disk. Exit code
0 when the page is there, however little of the run could be read; 2 for a directory that is none; 5 if it cannot
be written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from clusterft_trainer.report import page, pictures, reading, words
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.sections.samples import prompts

_USAGE, _UNWRITTEN = 2, 5
_LIBRARIES = ("clusterft", "torch", "accelerate", "deepspeed", "diffusers", "transformers", "bitsandbytes")


def main(argv: list[str]) -> int:
    """Make the page; say where it lies, how large it is and how long it took."""
    arguments = _parser().parse_args(argv)
    folder: Path = arguments.run_dir
    target: Path = arguments.output or folder / "report.html"
    began = time.monotonic()
    if not folder.is_dir():
        sys.stderr.write(f"{folder} is no directory.\nGive the directory of a run: <shared>/<run>.\n")
        return _USAGE
    text = make(folder)
    try:
        size = write(target, text)
    except OSError as error:
        sys.stderr.write(
            f"{target} cannot be written: {error.strerror or error}.\nGive another place with -o FILE.\n"
        )
        return _UNWRITTEN
    seconds = time.monotonic() - began
    sys.stdout.write(f"{target}: {words.size(size)}, made in {seconds:.1f} s\n")
    return 0


def make(folder: Path) -> str:
    """The page of a run directory, as text."""
    judged = Judged(reading.read(folder.resolve()))
    gallery = pictures.gather(folder / "samples", judged.account.samples, len(prompts(judged)))
    return page.render(judged, gallery, _libraries(), time.time())


def write(target: Path, text: str) -> int:
    """Under its name only when it is whole; how many bytes it has."""
    data = text.encode("utf-8")
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
    return len(data)


def _libraries() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clusterft_trainer.report", description="One page about a run."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="<shared>/<run>")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: RUN_DIR/report.html")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
