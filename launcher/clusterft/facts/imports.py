"""Whether the Python that a job names can load what its ranks will: what is asked of a node, and the answer. Pure.

torch is really imported, as only that shows a library that is cut short or of another machine; of the others it is
enough to know that they are there, and in which version: each takes seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

SECONDS = 45.0  # torch from a cold disk, on a machine that has other things to do
_LIMIT = 40
_TIMED_OUT = (124, 137)
NO_PYTHON = (126, 127)  # of `env`: it could not be run at all
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

# Where the way ends on which an interpreter's links lead, and whether an environment lies around it.
_WHERE = r"""
p=$1 n=0
case $p in */*) ;; *) p=$(command -v -- "$p") || { echo "state unknown"; exit; } ;; esac
q=$p
while [ -L "$q" ] && [ $n -lt 20 ]; do
  t=$(readlink -- "$q"); n=$((n + 1))
  case $t in /*) q=$t ;; *) q=$(dirname -- "$q")/$t ;; esac
done
d=$(dirname -- "$q")
while [ ! -d "$d" ] && [ "$d" != / ] && [ "$d" != . ]; do d=$(dirname -- "$d"); done
if [ -f "$q" ]; then [ -x "$q" ] && s=program || s=closed
elif [ -d "$q" ]; then s=directory
elif [ ! -x "$d" ]; then s=hidden
elif [ $n -gt 0 ]; then s=dangling
else s=absent; fi
echo "state $s"; echo "path $p"; echo "end $q"; echo "above $d"
[ "$s" = program ] && head -c 200 "$q" | sed -n '1s/^#! *\([^ ]*\).*/begins \1/p'
e=$(dirname -- "$(dirname -- "$p")")
[ -f "$e/pyvenv.cfg" ] && echo "venv $e" && sed -n 's/^version\(_info\)\{0,1\} *= */made /p' "$e/pyvenv.cfg"
[ -d "$e/conda-meta" ] && echo "conda $e"
:
"""
_LOOK_SECONDS = 4

# program: it is there and may be run, so what it needs is not; hidden: a directory on the way may not be entered;
# unknown: a name that no directory of PATH has.
State = Literal["program", "closed", "directory", "hidden", "dangling", "absent", "unknown"]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What lies where a Python should, that does not run."""

    state: State
    path: str = ""
    end: str = ""  # of its links
    above: str = ""  # the nearest directory above that is there
    begins: str = ""  # the program that a script is for
    venv: str = ""  # the environment that it is in
    made: str = ""  # of which version of Python
    conda: str = ""


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
    place: Interpreter | None = None  # of one that does not run


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
    return Imports(command, error=said if code in NO_PYTHON else f"exit {code}: {said}")


def where(python: str) -> tuple[str, ...]:
    """The command that looks for an interpreter that could not be run."""
    return ("timeout", "-k", "1", str(_LOOK_SECONDS), "sh", "-c", _WHERE, "sh", python)


def place(out: str) -> Interpreter | None:
    """Its answer."""
    said = dict(re.findall(r"^(state|path|end|above|begins|venv|made|conda) (.+)$", out, re.MULTILINE))
    if said.get("state") not in get_args(State):
        return None
    return Interpreter(**said)
