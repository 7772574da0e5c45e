"""docs/doctor.md: every id of the catalogue, how it is found and what mends it, from the code itself."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.checks import catalogue
from clusterft.checks.check import LAYERS

INTRO = """\
# clusterft doctor

Written by `tools/write_docs.py` from the code; do not edit.

    clusterft doctor --hosts hostfile        what is wrong, on which node, why, and the command that mends it
    clusterft doctor --job job.yaml          the same for what this job asks: shared dir, data, Python, ports, room
    clusterft doctor --quick                 one look at each node: nothing is tried
    clusterft doctor --deep                  links and cards put to work as well; takes minutes
    clusterft doctor --run RUN               a run that failed: which rank failed first, where, why
    clusterft doctor --log FILE --log FILE   the same from log files of any training run
    clusterft doctor --explain net.mtu       more of one id
    clusterft doctor --fix                   show, ask, then mend what is safe to mend, and look again

It changes nothing on any node unless `--fix` is given and agreed to, leaves nothing running, and may be used
beside a training run. It needs SSH, and a POSIX shell on the nodes. Ports and the shared dir are tried in
containers of the run's image once `up` has brought it, with the node's own Python before that, with less detail
where there is neither.

What it says of an id on a node: `✗ fail` blocks training; `! warn` costs speed or will hurt later; `✓ ok`;
`? unknown` could not be read, which is not an ok; `· skipped` was not asked, or something more basic failed there
first: `skipped (ssh.timeout)`. The verdict is computed from these alone.

Exit codes: 0 nothing blocks · 1 a check of doctor itself broke · 2 wrong usage, hostfile or job · 3 something
blocks · 4 warnings, or not known whether it is ready, only under `--strict` · 5 with `--run` and `--log`: the run
failed, and this is why · 130 interrupted.
`--json` prints one document, described in [formats.md](formats.md).

In the tables, *found by* means: **look** a look at each node, which tries nothing; **probe** programs on the nodes
that talk with each other; **deep** only with `--deep`; **log** from the logs of a run; **up**, **train** by those
commands, which stop at it.
"""

_NAMES = {"facts": "look"}


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO, *_layers(), *_never(), ""])


def _layers() -> Iterator[str]:
    for layer in LAYERS:
        known = [one for one in catalogue.ALL if one.layer == layer and "never" not in one.found]
        if not known:
            continue
        yield f"## {layer}\n"
        yield "| id | what is wrong | seen as | how it is found | what mends it |"
        yield "|-|-|-|-|-|"
        for one in known:
            found = ", ".join(_NAMES.get(way, way) for way in one.found)
            mends = "<br>".join(_cell(step) for step in one.mends)
            cells = (f"`{one.id}`", _cell(one.title), _cell(one.symptom), f"{found}: {_cell(one.how)}", mends)
            yield f"| {' | '.join(cells)} |"
        yield ""


def _never() -> Iterator[str]:
    never = [one for one in catalogue.ALL if "never" in one.found]
    if never:
        yield "## Not found by doctor\n"
        yield "| id | what is wrong | why not |"
        yield "|-|-|-|"
        yield from (f"| `{one.id}` | {_cell(one.title)} | {_cell(one.why_not)} |" for one in never)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
