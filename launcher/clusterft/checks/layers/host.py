"""The checks of the host layer: what each node's system is, has left, and does by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

from clusterft.checks import host, run_room
from clusterft.checks.check import Check
from clusterft.checks.examination import Examination, Thing
from clusterft.checks.run_room import RunRoom
from clusterft.checks.system import confined, kernel, processors, rooms, upkeep
from clusterft.facts import Disk, NodeFacts
from clusterft.facts.health.host import SCRATCH, SHARED, TMP, Clock, HostHealth
from clusterft.findings import Finding

_BOTH: tuple[Thing, ...] = ("facts", "health")
_UNREAD = "the clock could not be read"


def clock(seen: Examination) -> Iterator[Finding]:
    """os.clock: against the controller, whose own clock is the wrong one if all nodes agree with each other."""
    clocks = {name: one.host.clock for name, one in seen.health.items()}
    known = {name: one for name, one in clocks.items() if one}
    for name in clocks.keys() - known.keys():
        yield Finding("os.clock", "unknown", (name,), _UNREAD)
    wrong = {name: one for name, one in known.items() if _off(one) >= host.CLOCK_WARN}
    middle = median(one.offset for one in known.values()) if known else 0.0
    together = all(abs(one.offset - middle) - one.error < host.CLOCK_WARN for one in known.values())
    if len(known) > 1 and len(wrong) == len(known) and together:
        yield _controllers_clock(known, middle)
        return
    for name, one in wrong.items():
        yield _nodes_clock(name, one, seen.health[name].host)


def _off(one: Clock) -> float:
    """How far it is off at least, however the round trip was shared between the two ways."""
    return abs(one.offset) - one.error


def _controllers_clock(known: dict[str, Clock], middle: float) -> Finding:
    side = "behind" if middle > 0 else "ahead of"
    return Finding(
        id="os.clock",
        status="warn",
        nodes=tuple(known),
        summary=f"this machine's clock is {abs(middle):.1f} s {side} those of all nodes, which agree",
        evidence="\n".join(
            f"{name}: offset {one.offset:+.3f} s (± {one.error:.3f})" for name, one in known.items()
        ),
        cause="this machine does not set its clock by a time server",
        fix=("on this machine: sudo timedatectl set-ntp true",),
        needs_root=True,
        blast_radius="this machine's clock",
    )


def _nodes_clock(name: str, one: Clock, health: HostHealth) -> Finding:
    side = "ahead of" if one.offset > 0 else "behind"
    ntp = health.ntp or {}
    said = "; ".join(f"{key}={value}" for key, value in ntp.items() if value)
    daemons = ntp.get("daemons", "").split()
    if "chronyd" in daemons:
        fix: tuple[str, ...] = ("sudo chronyc makestep", "chronyc sources   shows whether a time server answers")
    elif ntp.get("NTP") == "yes":
        fix = (
            "sudo systemctl restart systemd-timesyncd",
            "timedatectl timesync-status   shows whether a time server answers",
        )
    elif ntp.get("CanNTP") == "no":  # there is nothing that timedatectl could switch on
        fix = (
            "sudo apt-get install chrony   (or: sudo dnf install chrony && sudo systemctl enable --now chronyd)",
        )
    else:
        fix = ("sudo timedatectl set-ntp true",)
    return Finding(
        id="os.clock",
        status="fail" if _off(one) >= host.CLOCK_FAIL else "warn",
        nodes=(name,),
        summary=f"the clock is {abs(one.offset):.1f} s {side} the controller's",
        evidence=f"offset {one.offset:+.3f} s (± {one.error:.3f})" + (f"; {said}" if said else ""),
        cause="file times mislead, and certificates seem not yet or no longer valid",
        fix=fix,
        needs_root=True,
        blast_radius="the node's clock",
    )


def users(seen: Examination) -> Iterator[Finding]:
    """os.uid: one UID:GID on all nodes, unless the job names the one that counts."""
    return iter(()) if seen.wanted.job and seen.wanted.job.user else host.users(seen.survey)


def disk_full(seen: Examination) -> Iterator[Finding]:
    """os.disk-full of all directories of a run; those that did not answer are unknown."""
    for name, facts, health in _each(seen):
        for key, directory in (("home", facts.home), (SHARED, seen.wanted.shared)):
            if not directory or health.volume(key) is not None:
                continue
            # A directory that the first run makes has the room of the one above it.
            above = next((disk for disk in facts.disks if disk.directory == directory), None)
            if above is None:
                yield Finding("os.disk-full", "unknown", (name,), f"the room for {directory} could not be read")
            elif key == SHARED:
                yield from _share_full(seen, name, above)
    run = _run(seen)
    for name, need in _needs(seen):
        if run and need.volume.directory == SHARED:
            free = run_room.Free(need.directory, need.volume.mounted_on, need.volume.free)
            yield from run_room.judged(name, free, run)
        else:
            yield from rooms.disk_full(name, need)


def _share_full(seen: Examination, name: str, above: Disk) -> Iterator[Finding]:
    if run := _run(seen):
        yield from run_room.judged(name, run_room.Free(above.directory, above.mounted_on, above.free_bytes), run)
        return
    found = host.room(name, above, seen.wanted.shared_bytes)
    yield from (one for one in found if one.id == "os.disk-full")


def _run(seen: Examination) -> RunRoom | None:
    """What the job's run will write into the shared dir, where the trainer is ours."""
    train = seen.wanted.job.train if seen.wanted.job else None
    slots = sum(node.slots for node in seen.survey.cluster.active)
    return run_room.of(train, slots, weights=seen.weights) if train else None


def inodes(seen: Examination) -> Iterator[Finding]:
    """os.inodes of all directories of a run."""
    for name, need in _needs(seen):
        yield from rooms.inodes(name, need)


def read_only(seen: Examination) -> Iterator[Finding]:
    """os.ro-fs of all directories of a run."""
    for name, facts, health in _each(seen):
        wanted: dict[str, str] = {}
        words = {"home": "the home directory", SCRATCH: SCRATCH, TMP: TMP, SHARED: "the shared dir"}
        for key, purpose in words.items():
            if volume := health.volume(key):
                wanted.setdefault(volume.mounted_on, f"{purpose} lies there")
        if seen.wanted.contained and facts.docker and facts.docker.mounted_on:
            wanted.setdefault(facts.docker.mounted_on, "Docker's data lies there")
        yield from rooms.read_only(name, facts, health, wanted)


def removeipc(seen: Examination) -> Iterator[Finding]:
    """os.removeipc, for the user of a run."""
    for name, one in seen.health.items():
        yield from upkeep.remove_ipc(name, one.host, seen.wanted.owner, contained=seen.wanted.contained)


def limits(seen: Examination) -> Iterator[Finding]:
    """os.memlock, os.stack: in a container the engine's own count, which the box tells."""
    if not seen.wanted.contained:
        for name, facts in seen.survey.facts.items():
            yield from upkeep.limits(name, facts)


def shm(seen: Examination) -> Iterator[Finding]:
    """os.shm."""
    for name, facts, health in _each(seen):
        yield from kernel.shm(name, facts, health, cuda=seen.wanted.device == "cuda")


def port_range(seen: Examination) -> Iterator[Finding]:
    """os.portrange."""
    for name, one in seen.health.items():
        yield from kernel.port_range(name, one.host, seen.wanted.port)


def _of_both(
    find: Callable[[str, NodeFacts, HostHealth], Iterator[Finding]],
) -> Callable[[Examination], Iterator[Finding]]:
    def every(seen: Examination) -> Iterator[Finding]:
        for name, facts, health in _each(seen):
            yield from find(name, facts, health)

    return every


def _of_health(find: Callable[[str, HostHealth], Iterator[Finding]]) -> Callable[[Examination], Iterator[Finding]]:
    def every(seen: Examination) -> Iterator[Finding]:
        for name, one in seen.health.items():
            yield from find(name, one.host)

    return every


def _each(seen: Examination) -> Iterator[tuple[str, NodeFacts, HostHealth]]:
    for name, facts in seen.survey.facts.items():
        if name in seen.health:
            yield name, facts, seen.health[name].host


def _needs(seen: Examination) -> Iterator[tuple[str, rooms.Need]]:
    run = _run(seen)
    for name, facts, health in _each(seen):
        # Where the share is not mounted, what lies beneath it says nothing of the share's room.
        shared = None if _beneath(seen, health) else seen.wanted.shared
        for need in rooms.needs(facts, health, shared, seen.wanted.shared_bytes):
            of_run = run if need.volume.directory == SHARED else None
            yield name, replace(need, files=of_run.files) if of_run else need
        if seen.wanted.contained and (need_of_docker := rooms.docker(facts, health)):
            yield name, need_of_docker


def _beneath(seen: Examination, health: HostHealth) -> bool:
    """Whether other nodes have something mounted right at the shared dir, and this one has not."""
    places = [one.host.volume(SHARED) for one in seen.health.values()]
    mounted = any(one.mounted_on == seen.wanted.shared for one in places if one)
    own = health.volume(SHARED)
    return mounted and own is not None and own.mounted_on != seen.wanted.shared


CHECKS: tuple[Check, ...] = (
    Check(("os.clock",), clock, reads=_BOTH),
    Check(("os.uid",), users),
    Check(("os.ro-fs",), read_only, reads=_BOTH),
    Check(("os.disk-full",), disk_full, reads=_BOTH),
    Check(("os.inodes",), inodes, reads=_BOTH),
    Check(("os.oom",), _of_both(kernel.oom), reads=_BOTH),
    Check(("os.memory-limit",), confined.memory, reads=_BOTH),
    Check(("os.nproc",), confined.processes, reads=_BOTH),
    Check(("os.cpu-limit",), processors.few, reads=_BOTH),
    Check(("os.shm",), shm, reads=_BOTH),
    Check(("os.hung-task",), _of_health(kernel.hung), reads=_BOTH),
    Check(("os.memlock", "os.stack"), limits),
    Check(("os.removeipc",), removeipc, reads=_BOTH),
    Check(("os.portrange",), port_range, reads=_BOTH),
    Check(("os.conntrack",), _of_health(kernel.conntrack), reads=_BOTH),
    Check(("os.conntrack",), _of_health(kernel.forgets), reads=_BOTH),
    Check(("os.rp-filter",), _of_both(kernel.rp_filter), reads=_BOTH),
    Check(("os.suspend",), _of_health(upkeep.suspend), reads=_BOTH),
    Check(("os.shutdown",), _of_health(upkeep.shutdown), reads=_BOTH),
    Check(("os.governor",), _of_health(upkeep.governor), reads=_BOTH),
    Check(("os.auto-upgrade",), _of_health(upkeep.auto_upgrade), reads=_BOTH, cuda=True),
)
