"""The lab's command line: up, status, fault, down.

Owns the arguments and the words that a person reads. Refuses to do anything that
the library cannot do: each verb is one call.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

from .access import Access
from .base import Lab
from .engine import stop_engine
from .errors import LabError, LabUnavailable
from .full import FullLab, full_available
from .full_node import HOMES
from .journal import Journal, undo_orphans
from .light import LightLab, light_available
from .node_image import ENGINES
from .sshd import PATIENT
from .vm import VmLab, vm_available

_WEIGHTS = {lab.weight: lab for lab in (LightLab, FullLab, VmLab)}
_AVAILABLE = {"light": light_available, "full": full_available, "vm": vm_available}
# The fault as typed: the method of a node, what it takes, what it does.
_FAULTS: dict[str, tuple[str, str | None, str]] = {
    "block-port": ("block_port", "PORT", "keep others from a port (add: drop, reject)"),
    "unblock-ports": ("unblock_ports", None, "open every port again"),
    "cut": ("cut_link", None, "pull the network cable"),
    "restore": ("restore_link", None, "plug it in again"),
    "throttle": ("throttle", "RATE", "limit the link, for instance to 10mbit"),
    "unthrottle": ("unthrottle", None, "full rate again"),
    "pause": ("pause", None, "freeze all processes"),
    "resume": ("resume", None, "thaw them"),
    "kill": ("kill", None, "power off without a word"),
    "start": ("start", None, "power on again"),
    "reboot": ("reboot", None, "new boot id, processes gone, files kept"),
    "fill-disk": ("fill_disk", None, "no space left in the home"),
    "free-disk": ("free_disk", None, "space again"),
    "behind-nat": ("behind_nat", None, "let others see connections from another address"),
    "leave-nat": ("leave_nat", None, "let them see its own again"),
    "stop-engine": ("stop_engine", None, "no Docker engine answers (full nodes)"),
    "start-engine": ("start_engine", None, "it answers again"),
    "remove-docker": ("remove_docker", None, "no docker program (full nodes)"),
    "install-docker": ("install_docker", None, "it is back"),
    "snap-docker": ("snap_docker", None, "docker leads into /snap (full nodes)"),
    "engine-disk": ("engine_disk", "MIB", "an empty disk of that size for the engine (full nodes)"),
    "freeze-shared": ("freeze_shared", None, "the shared directory hangs (full nodes of a lab with --hangs)"),
    "thaw-shared": ("thaw_shared", None, "it answers again"),
    "slow": ("slow", "CPUS", "so much processor time, for instance 0.2 (full nodes)"),
    "full-speed": ("full_speed", None, "all of it again"),
    "swap-host-key": ("swap_host_key", None, "present another key than the pinned one"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status is 0, 2 for wrong usage, or 3 when it cannot be had."""
    try:
        chosen = _parser().parse_args(argv)
        verb: Callable[[argparse.Namespace], None] = chosen.verb
        verb(chosen)
    except LabUnavailable as why:
        return _complain(f"not on this machine: {why.reason}\n  {why.remedy}", 3)
    except LabError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:
        # Whoever read our words has read enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _complain("interrupted; nothing of that lab is left", 130)
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lab", description="Real nodes on this machine.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    up = verbs.add_parser("up", help="bring a lab up and leave it running")
    weight = up.add_mutually_exclusive_group(required=True)
    weight.add_argument("--light", type=int, metavar="N", help="namespaces with an sshd")
    weight.add_argument("--full", type=int, metavar="N", help="containers with a Docker engine")
    weight.add_argument("--vm", type=int, metavar="N", help="virtual machines with kernel NFS")
    about = f"of full nodes, or several for nodes in turn: {', '.join(ENGINES)} (c: with the containerd store)"
    up.add_argument("--engine", metavar="ENGINE[,...]", help=about)
    up.add_argument("--homes", choices=HOMES, default="own", help="where full nodes' /home/worker is")
    up.add_argument(
        "--nat", default="", metavar="NODE[,...]", help="full nodes that others see by another address"
    )
    up.add_argument("--bastion", action="store_true", help="only n1 is reached directly (light and full)")
    up.add_argument("--max-startups", default=PATIENT, metavar="N:PERCENT:N", help="of sshd (light and full)")
    up.add_argument("--mount", action="append", default=[], metavar="PATH", help="shown by all full nodes too")
    up.add_argument("--hangs", action="store_true", help="the shared directory of full nodes can be frozen")
    up.add_argument("--shared-mib", type=int, metavar="MIB", help="size of the shared directory of full nodes")
    up.set_defaults(verb=_up)

    verbs.add_parser("status", help="what is up, and what could be").set_defaults(verb=_status)

    down = verbs.add_parser("down", help="take labs down; without a name, all that were kept")
    down.add_argument("lab", nargs="*", metavar="LAB")
    down.add_argument("--all", action="store_true", help="also labs whose owners are dead")
    down.add_argument("--engine", action="store_true", help="also the engine that a lab started")
    down.set_defaults(verb=_down)

    words = "\n".join(f"  {name:14} {about}" for name, (_, _, about) in _FAULTS.items())
    fault = verbs.add_parser(
        "fault",
        help="let something befall a node",
        epilog=f"faults:\n{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fault.add_argument("node")
    fault.add_argument("fault", choices=sorted(_FAULTS), metavar="FAULT")
    fault.add_argument("value", nargs="*", metavar="VALUE")
    fault.add_argument("--lab", help="which lab, if several are up")
    fault.set_defaults(verb=_fault)
    return top


def _up(chosen: argparse.Namespace) -> None:
    lab: Lab[Any]
    full = (chosen.engine, chosen.nat, chosen.homes != "own", chosen.mount, chosen.hangs, chosen.shared_mib)
    if not chosen.full and any(full):
        raise LabError("--engine, --homes, --nat, --mount, --hangs and --shared-mib are for --full nodes")
    gate = {"bastion": chosen.bastion, "max_startups": chosen.max_startups}
    if chosen.light is not None:
        lab = LightLab.up(chosen.light, **gate)
    elif chosen.full is not None:
        engines = (chosen.engine or "20.10").split(",")
        lab = FullLab.up(
            chosen.full,
            engines,
            homes=chosen.homes,
            nat=list(filter(None, chosen.nat.split(","))),
            mounts=chosen.mount,
            hangs=chosen.hangs,
            shared_mib=chosen.shared_mib,
            **gate,
        )
    else:
        lab = VmLab.up(chosen.vm)
    lab.keep()
    _say(f"lab {lab.id}: {len(lab.nodes)} {lab.weight} nodes")
    _say(f"  hostfile    {lab.hostfile}")
    _say(f"  ssh config  {lab.ssh_config}")
    _say(f"  shared dir  {lab.shared} (the same on all nodes)")
    _say(f"\nTry:\n  ssh -F {lab.ssh_config} {lab.nodes[0].name} hostname")
    if lab.weight == "light":  # the others have no trainer of their own yet
        _say(f"  install -D -m 600 {lab.known_hosts} ~/.clusterft/{lab.hostfile.stem}/known_hosts")
        _say("  mkdir -p demo-out")  # which the nodes see, too
        _say(f"  .venv/bin/clusterft train examples/demo.yaml --hosts {lab.hostfile}")
    _say(f"  .venv/bin/python tests/lab fault --lab {lab.id} {lab.nodes[-1].name} pause")
    _say(f"  .venv/bin/python tests/lab down {lab.id}")


def _status(chosen: argparse.Namespace) -> None:
    for journal in Journal.every():
        facts = journal.described()
        owner = "kept" if facts.get("owner") is None else f"owned by process {facts['owner'][0]}"
        if journal.orphaned():
            owner = "its owner is dead: down --all removes it"
        _say(f"{journal.id}  {facts.get('weight', '?'):6} {owner}")
        hostfile = Access(journal.state).hostfile
        if hostfile.exists():
            for line in hostfile.read_text().splitlines():
                _say(f"    {line}")
    for weight, available in _AVAILABLE.items():
        why = available()
        _say(f"{weight}: " + ("can be had" if why is None else f"{why.reason}; {why.remedy}"))


def _down(chosen: argparse.Namespace) -> None:
    known = {journal.id for journal in Journal.every()}
    if unknown := set(chosen.lab) - known:
        raise LabError(f"no lab {', '.join(sorted(unknown))}; up are: {', '.join(known) or 'none'}")
    for name in undo_orphans() if chosen.all else []:
        _say(f"lab {name}: its owner was dead; removed")
    for journal in Journal.every():
        kept = journal.described().get("owner") is None and not journal.orphaned()
        if journal.id in chosen.lab or (not chosen.lab and kept):
            journal.undo()
            _say(f"lab {journal.id}: removed")
    if chosen.engine and stop_engine():
        _say("the engine that a lab started: stopped")


def _fault(chosen: argparse.Namespace) -> None:
    method, value, _ = _FAULTS[chosen.fault]
    most = 2 if chosen.fault == "block-port" else int(value is not None)
    if len(chosen.value) > most or (value is not None and not chosen.value):
        raise LabError(f"{chosen.fault} takes {value or 'no value'}")
    node = _attached(chosen.lab).node(chosen.node)
    if not hasattr(node, method):
        raise LabError(f"{chosen.fault}: not for a {type(node).__name__}")
    methodcaller(method, *chosen.value)(node)
    _say(f"{chosen.node}: {chosen.fault} {' '.join(chosen.value)}".rstrip())


def _attached(name: str | None) -> Lab[Any]:
    """The lab of that name, or the only one."""
    found = [one for one in Journal.every() if name in (None, one.id) and not one.orphaned()]
    if len(found) != 1:
        names = ", ".join(one.id for one in found) or "none"
        raise LabError(f"which lab? up are: {names}; choose with --lab")
    return _WEIGHTS[found[0].described()["weight"]].attach(found[0])


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")


def _complain(words: str, status: int) -> int:
    sys.stderr.write(f"lab: {words}\n")
    return status
