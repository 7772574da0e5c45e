"""Whether the Python that a job names can load what its ranks will: what is asked of a node, and the answer. Pure.

torch is really imported, as only that shows a library that is cut short or of another machine; of the others it is
enough to know that they are there, and in which version: each takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SECONDS = 45.0  # torch from a cold disk, on a machine that has other things to do
_LIMIT = 40
_TIMED_OUT = (124, 137)
_NO_PYTHON = (126, 127)
_DISTRIBUTIONS = {"PIL": "pillow", "clusterft_trainer": "clusterft"}
_SCRIPT = """
import json, sys
sys.path[:] = [one for one in sys.path if one]
from importlib import metadata, util
names, distributions, load = json.loads(sys.argv[1])
absent = [name for name in names if util.find_spec(name) is None]
versions = {}
for name in names:
    try:
        versions[name] = metadata.version(distributions.get(name, name))
    except metadata.PackageNotFoundError:
        pass
error = ""
noexec = ""
if "torch" not in absent:
    import os
    where = os.path.dirname(util.find_spec("torch").origin or "")
    if where and os.statvfs(where).f_flag & os.ST_NOEXEC:
        noexec = where
if load and "torch" not in absent:
    try:
        import torch
        versions["torch"] = str(torch.__version__)
    except BaseException as found:
        error = type(found).__name__ + ": " + str(found).strip()
python = ".".join(map(str, sys.version_info[:3]))
said = {"python": python, "absent": absent, "versions": versions, "error": error, "noexec": noexec}
print(json.dumps(said), flush=True)
import os
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Imports:
    """What one node's Python said; of one that died, its last words alone."""

    command: str  # the interpreter, as the job names it
    python: str = ""  # its version
    absent: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    error: str = ""  # why torch cannot be imported, or why Python itself does not run
    late: bool = False  # it was not done in time
    noexec: str = ""  # where torch lies, if no program may be run from that mount


def argv(python: str, names: Sequence[str], env: Mapping[str, str], *, load: bool = True) -> tuple[str, ...]:
    """The command for one node; `env` is what decides where Python and its libraries are found."""
    given = tuple(f"{name}={value}" for name, value in env.items())
    asked = json.dumps([list(names), _DISTRIBUTIONS, load])
    return ("timeout", "-k", "1", str(_LIMIT), "env", *given, python, "-c", _SCRIPT, asked)


def parse(command: str, code: int, out: str, err: str) -> Imports:
    """Its answer, whatever a login or a library has printed before."""
    for line in reversed(out.splitlines()):
        if line.startswith('{"python"'):
            try:
                body = json.loads(line)
            except ValueError:
                continue
            versions = tuple(sorted((str(k), str(v)) for k, v in body["versions"].items()))
            absent = tuple(str(name) for name in body["absent"])
            error, noexec = str(body["error"]), str(body.get("noexec", ""))
            return Imports(command, str(body["python"]), absent, versions, error, noexec=noexec)
    last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")
    if code in _TIMED_OUT:
        return Imports(command, error=last, late=True)
    said = last or "it said nothing"
    return Imports(command, error=said if code in _NO_PYTHON else f"exit {code}: {said}")
