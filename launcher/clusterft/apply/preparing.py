"""What is prepared of a job's data, as the trainer on one node counts it: `prep --status` in the run's own image.

The count is against the sources as they were read last, and touches nothing; before training the sources are read
again, since pictures may have come, with the job's secrets, as a run reads them: they go through stdin or a file
of the container, never through an argv or a plan. Refuses to guess: where the trainer does not answer, its words
are the error, without the secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import requests

from clusterft.engine import Engine
from clusterft.fleet import Fleet
from clusterft.places import CONTAINER
from clusterft.plan import NodePlan
from clusterft.plan.container import ContainerPlan
from clusterft.remote import Remote
from clusterft.runtime import docker
from clusterft.runtime.docker import Placed
from clusterft.runtime.process import CannotStart

_SECONDS = 120  # a little more than half a minute is usual
_TIMED_OUT = 124  # coreutils' timeout
_CONFIG, _SECRETS = CONTAINER / "config.json", CONTAINER / "secrets.json"
_WORDS = 600  # characters of a complaint
_REFUSED = 2  # settings or data, told in two lines: what, and what mends it
_NO_SUCH_COMMAND = "python -m clusterft_trainer: error"  # an image of another version
# Settings and secrets lie in files of the moment; nothing in them is code.
_ASK = (
    'umask 077; at=$(mktemp -d) || exit; trap \'rm -rf -- "$at"\' EXIT; trap "exit 143" HUP INT TERM; '
    'IFS= read -r told || exit; printf "%s\\n" "$told" >"$at/secrets.json" || exit; '
    'cat >"$at/config.json" || exit; '
    "config=$1; secrets=$2; shift 2; for word; do shift; "
    '[ "$word" = "$config" ] && word=$at/config.json; [ "$word" = "$secrets" ] && word=$at/secrets.json; '
    'set -- "$@" "$word"; done; "$@"'
)
_WITH_SECRETS = (
    "import json, os, sys; os.environ.update(json.load(open(sys.argv[1]))); os.execvp(sys.argv[2], sys.argv[2:])"
)
_NODE = "CLUSTERFT_NODE"  # by which the trainer names the node in what it says
_MASK = "***"
_TELLING = 4  # letters of a secret that may be hidden without tearing other words
# Where nothing was ever read there is nothing to count. What is read again is not lost if that takes too long.
_AFRESH = (
    'index=$1; shift; [ -d "$index" ] || { echo "{\\"missing\\": null}"; exit 0; }; '
    '"$@" --only ingest >&2 && exec "$@" --status --json'
)


class Refused(CannotStart):
    """The trainer looked at the data and will not take it: a run would end by the same words."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far it is."""

    missing: int | None  # pieces of work; None: not even the sources have been read
    body: dict[str, Any]  # the trainer's own document


def look(node: NodePlan, shared: str, fleet: Fleet, secrets: Mapping[str, str] | None = None) -> Standing:
    """By the settings that a plan has for this node; with secrets, the sources are read again before."""
    config = next(file.text for file in node.files if file.path.name == "config.json")
    prep = (node.python, "-P", "-m", "clusterft_trainer", "prep", str(_CONFIG), "--shared", shared)
    asking: tuple[str, ...] = (*prep, "--status", "--json")
    if secrets is not None:
        asking = ("sh", "-c", _AFRESH, "sh", f"{shared}/.clusterft/index", *prep)
    if secrets:
        asking = (node.python, "-P", "-c", _WITH_SECRETS, str(_SECRETS), *asking)
    ours = {name for name in node.env if name.startswith("CLUSTERFT_")} - {_NODE}
    env = {name: value for name, value in node.env.items() if name not in ours}
    remote, hidden = fleet.remotes[node.node.name], dict(secrets or {})
    try:
        if node.container is None:
            said = _of_process(remote, asking, env, config, hidden)
        else:
            said = _of_container(remote, replace(node.container, command=asking), env, config, hidden)
        return _read(said, node.node.name)
    except CannotStart as error:
        raise type(error)(_masked(error.what, hidden), remedy=_masked(error.remedy, hidden)) from None


def _masked(words: str, secrets: Mapping[str, str]) -> str:
    for value in sorted(secrets.values(), key=len, reverse=True):
        if len(value) >= _TELLING:
            words = words.replace(value, _MASK)
    return words


def _of_process(
    remote: Remote, asking: tuple[str, ...], env: dict[str, str], config: str, secrets: dict[str, str]
) -> str:
    pairs = (f"{name}={value}" for name, value in env.items())
    limited = ("timeout", str(_SECONDS), *asking)
    argv = ("sh", "-c", _ASK, "sh", str(_CONFIG), str(_SECRETS), "env", "-i", *pairs, *limited)
    given = f"{json.dumps(secrets)}\n{config}"
    done = remote.run(argv, stdin=given.encode("utf-8"), seconds=_SECONDS + 30.0)
    if done.code == _TIMED_OUT:
        raise _too_long()
    if done.code != 0:
        raise _complaint(done.code, done.err or done.out)
    return done.out


def _of_container(
    remote: Remote, box: ContainerPlan, env: dict[str, str], config: str, secrets: dict[str, str]
) -> str:
    """In one that goes again; its name is its own, since the run's is a lock."""
    alone = replace(box, name=f"{box.name}-prepared", gpus=(), restart="no", env=box.env | env)
    files = [Placed(_CONFIG, config.encode("utf-8"), 0o600)]
    if secrets:
        files.append(Placed(_SECRETS, json.dumps(secrets).encode("utf-8"), 0o600))
    with Engine(remote, docker.command(remote)) as engine:
        identity = docker.create(engine, alone, files)
        try:
            docker.start(engine, identity)
            code = int(engine.api.wait(identity, timeout=_SECONDS)["StatusCode"])
            if code != 0:
                raise _complaint(code, engine.api.logs(identity, tail=10).decode(errors="replace"))
            out: bytes = engine.api.logs(identity, stdout=True, stderr=False)
            return out.decode(errors="replace")
        except requests.exceptions.RequestException:
            raise _too_long() from None
        finally:
            docker.remove(engine, identity)


def _too_long() -> CannotStart:
    return CannotStart(f"what is prepared could not be counted within {_SECONDS} s")


def _complaint(code: int, said: str) -> CannotStart:
    lines = said.strip().splitlines()
    if code == _REFUSED and len(lines) > 1 and not lines[-1].startswith(_NO_SUCH_COMMAND):
        return Refused(lines[-2][-_WORDS:], remedy=lines[-1][-_WORDS:])
    return CannotStart(f"what is prepared could not be counted: {said.strip()[-_WORDS:] or f'exit code {code}'}")


def _read(said: str, node: str) -> Standing:
    lines = said.strip().splitlines()
    try:
        body: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        missing = body["missing"]
        if missing is not None and not isinstance(missing, int):
            raise ValueError(f"missing: {missing!r}")
    except (ValueError, KeyError, TypeError) as error:
        words = f"{type(error).__name__}: {error}; it said: {said.strip()[-300:]}"
        raise CannotStart(f"the trainer on {node} does not say what is prepared: {words}") from None
    return Standing(missing, body)
