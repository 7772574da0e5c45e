"""The command line: verbs -> calls. The one place where an error becomes text and an exit code.

Verbs import what they need when they are called, so that `clusterft --help` stays instant.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import traceback
from typing import Any

import typer

from clusterft import commands
from clusterft.errors import ClusterftError, Interrupted

BROKE, USAGE = 1, 2
# typer carries a click of its own in newer versions; this is the base of all its complaints in every version.
_UsageError: Any = typer.BadParameter.__base__


def run(arguments: list[str]) -> int:
    """Run one command; never raises, whatever happens."""
    from clusterft.cli.app import command

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a latin-1 terminal gets a ? for a tick, not a traceback
    debug, as_json = "--debug" in arguments, "--json" in arguments
    with commands.called(sys.argv[0], _noted):
        return _served(command(), arguments, debug=debug, as_json=as_json)


def _served(command: Any, arguments: list[str], *, debug: bool, as_json: bool) -> int:
    try:
        outcome = command.main(arguments, prog_name="clusterft", standalone_mode=False)
    except ClusterftError as error:
        return _report(error, debug=debug, as_json=as_json)
    except typer.Exit as error:
        return error.exit_code
    except _UsageError as error:
        return _usage(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _report(Interrupted("interrupted; nothing was left running"), debug=debug, as_json=as_json)
    except (BrokenPipeError, SystemExit):
        # The reader of our output went away (| head), which click tells by SystemExit: what is left to say has
        # nowhere to go, also at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception:  # noqa: BLE001 - the last line of defence: a bug becomes one message and a saved traceback
        return _bug(debug=debug, as_json=as_json)
    return outcome if isinstance(outcome, int) else 0


def _noted(run: str) -> bool:
    """Whether this controller finds the run's cluster by its id alone."""
    from clusterft.apply import record

    return record.find(run) is not None


def _report(error: ClusterftError, *, debug: bool, as_json: bool) -> int:
    if debug:
        traceback.print_exc()
    if as_json:
        _print_json(error)
        return error.exit_code
    from clusterft.ui import text

    for line in text.error(error):
        sys.stderr.write(line + "\n")
    return error.exit_code


def _print_json(error: ClusterftError) -> None:
    from clusterft.errors import Blocked, InvalidFile, RunFailed

    problems = error.problems if isinstance(error, InvalidFile) else (error,)
    body: dict[str, object] = {
        "schema": 1,
        "error": {
            "kind": error.kind,
            "failure": error.failure if isinstance(error, RunFailed) else None,
            "problems": [{"what": p.what, "where": p.where, "remedy": commands.shown(p.advice)} for p in problems],
        },
    }
    if isinstance(error, Blocked):
        body["checks"] = [finding.to_dict() for finding in error.findings]
    sys.stdout.write(json.dumps(body) + "\n")


def _usage(error: Any, *, as_json: bool) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # no arguments at all: the help is the answer
        sys.stderr.write(error.format_message() + "\n")
        return USAGE
    context = getattr(error, "ctx", None)
    remedy = f"{context.command_path} --help   tells more" if context else ""
    problem = ClusterftError(error.format_message(), remedy=remedy)
    problem.kind = "usage"
    _report(problem, debug=False, as_json=as_json)
    return USAGE


def _bug(*, debug: bool, as_json: bool) -> int:
    """Ours, not the user's: say so, and keep the traceback where it can be sent from."""
    trace = traceback.format_exc()
    with tempfile.NamedTemporaryFile("w", prefix="clusterft-bug-", suffix=".txt", delete=False) as file:
        file.write(trace)
    if debug:
        sys.stderr.write(trace)
    last = trace.strip().splitlines()[-1]
    problem = ClusterftError(f"clusterft broke: {last}", remedy=f"this is a bug; the traceback is in {file.name}")
    _report(problem, debug=False, as_json=as_json)
    return BROKE
