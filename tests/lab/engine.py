"""The Docker engine of this machine, which full nodes are containers of.

Owns finding the engine, and starting one where we are root on Debian and none
answers. Such an engine stays when the lab goes: starting one is slow, and images
that it holds are worth keeping. Refuses to touch an engine that answers already.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
from pathlib import Path

from . import packages
from .errors import LabError, LabUnavailable
from .proc import ProcessId, environment, run, until, which

# The label on everything the lab makes in an engine; its value is the lab's id.
LABEL = "clusterft-lab"


def cache_dir() -> Path:
    """Where images and logs live between labs."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(home) / "clusterft-lab"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def docker(*words: str, timeout: float = 60, check: bool = True, stdin: str | None = None) -> str:
    """What a docker command prints."""
    return run(["docker", *words], timeout=timeout, check=check, stdin=stdin).stdout.strip()


def answers() -> bool:
    """Whether an engine answers now."""
    if which("docker") is None:
        return False
    try:
        done = run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=10, check=False)
    except LabError:
        return False
    return done.returncode == 0


def engine_available() -> LabUnavailable | None:
    """Why there is no engine to be had here, or None."""
    startable = packages.may_change_networks() and not packages.lacking(["docker", "dockerd"])
    if answers() or startable:
        return None
    return LabUnavailable("no Docker engine answers here", "start one, or join the docker group, or run as root")


def ensure_engine() -> None:
    """Make sure that an engine answers; start one if that is possible."""
    if answers():
        return
    if why := engine_available():
        raise why
    packages.ensure(["docker", "dockerd", "iptables"])
    with (cache_dir() / "dockerd.lock").open("w") as turn:
        # Two labs that come up at once must not start two engines on one directory.
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not answers():
            _start()


def stop_engine() -> bool:
    """Stop the engine that a lab started, if one did and it still runs."""
    note = cache_dir() / "dockerd.pid"
    if not note.exists():
        return False
    pid, start = note.read_text().split()
    engine = ProcessId(int(pid), int(start))
    runs = engine.alive()
    if runs and (busy := docker("ps", "--format", "{{.Names}}").split()):
        raise LabError(f"the engine still runs {', '.join(busy)}: take them down first")
    engine.end(grace=30)
    note.unlink()
    return runs


def _start() -> None:
    log = cache_dir() / "dockerd.log"
    with log.open("ab") as out:
        # Its own session: neither a Ctrl-C here nor the end of this terminal reaches it.
        child = subprocess.Popen(
            [which("dockerd") or "dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment(),
            start_new_session=True,
            cwd="/",
        )
    try:
        until(lambda: answers() or child.poll() is not None, 60, "dockerd to answer")
    except LabError:
        child.terminate()
        raise
    engine = ProcessId.of(child.pid)
    if child.poll() is not None or engine is None:
        raise LabError(f"dockerd ended: {log.read_text(errors='replace')[-1500:]}")
    (cache_dir() / "dockerd.pid").write_text(f"{engine.pid} {engine.start}\n")
    logging.getLogger("lab").warning(
        "no Docker engine answered, so the lab started one; it stays (its log: %s) until "
        "`python tests/lab down --engine`",
        log,
    )
