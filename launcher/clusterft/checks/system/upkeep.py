"""Checks of what a node does by itself while a run is under way: sleep, save power, upgrade, clear up."""

from __future__ import annotations

from collections.abc import Iterator

from clusterft.facts import UNLIMITED, NodeFacts
from clusterft.facts.health.host import HostHealth
from clusterft.facts.health.host_settings import Governor
from clusterft.findings import Finding

_SLEEPS = frozenset("suspend hibernate hybrid-sleep suspend-then-hibernate sleep poweroff halt".split())
_MASK = "sudo systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target"
# With these drivers powersave follows the load; with all others it is the lowest clock for ever.
# Source: Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst of the kernel.
PERFORMANCE = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_CLEVER_DRIVERS = frozenset(("intel_pstate", "amd-pstate-epp", "amd_pstate_epp"))
_LAST_SYSTEM_UID = 999  # logind leaves the files of those alone
_SOON = 3600  # seconds; a run that is shorter gets done in time
_ENOUGH_LOCKED = 2**30  # bytes that RDMA may pin; NCCL asks for some hundred MiB a card


def suspend(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.suspend: it goes to sleep when nobody types, and training does not count as typing."""
    sleep, logind = health.sleep, health.logind
    if sleep is None or sleep.masked:
        return
    action = logind.idle_action if logind else None
    if action in _SLEEPS and logind:
        yield _suspend(node, f"IdleAction={action} in {logind.where['IdleAction']}", _MASK)
    kind, after = sleep.desktop or ("", None)
    if kind in _SLEEPS and after:
        words = f"the desktop: sleep-inactive-ac-type {kind}, sleep-inactive-ac-timeout {after} s"
        off = "gsettings set org.gnome.settings-daemon.plugins.power sleep-inactive-ac-type nothing"
        yield _suspend(node, words, _MASK, f"or {off}")


def shutdown(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.shutdown: somebody, or a maintenance job, has told it when it is to go down."""
    ends = health.logind.ends if health.logind else None
    if ends is None:
        return
    mode, seconds = ends
    yield Finding(
        id="os.shutdown",
        status="fail" if seconds < _SOON else "warn",
        nodes=(node,),
        summary=f"goes down ({mode}) in {_span(seconds)}, whatever runs there then",
        evidence=f"/run/systemd/shutdown/scheduled: MODE={mode}, in {seconds} s",
        cause="shutdown -r or -h with a time: by a person, an upgrade or a maintenance job",
        fix=(
            "shutdown --show   tells when",
            "sudo shutdown -c   calls it off, if nobody else needs it; or train when it is over",
        ),
        needs_root=True,
        blast_radius="the node stays up",
    )


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{max(0, seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _suspend(node: str, evidence: str, *fix: str) -> Finding:
    return Finding(
        id="os.suspend",
        status="warn",
        nodes=(node,),
        summary="goes to sleep when nobody types, in the middle of a run",
        evidence=evidence,
        cause="the system is set to suspend when idle",
        fix=fix,
        needs_root=True,
        blast_radius="the machine stays on",
    )


def held_low(seen: Governor) -> bool:
    """Whether processors stay at their lowest clock; some drivers call the mode so in which they choose it."""
    if seen.driver in _CLEVER_DRIVERS or not seen.names.get("powersave"):
        return False
    return (seen.lowest or 0) < (seen.highest or 0) and seen.lowest is not None


def governor(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.governor: processors held at their lowest clock."""
    seen = health.governor
    if seen is None or not held_low(seen):
        return
    yield Finding(
        id="os.governor",
        status="warn",
        nodes=(node,),
        summary="processors are held at their lowest clock, and cards will wait for them",
        evidence=f"scaling_governor powersave on {seen.names['powersave']} processors, driver {seen.driver}: "
        f"{(seen.lowest or 0) / 1e6:.1f} of {(seen.highest or 0) / 1e6:.1f} GHz",
        cause="the powersave governor of this driver never raises the clock",
        fix=(PERFORMANCE,),
        needs_root=True,
        blast_radius="power and heat of the node, until it reboots",
    )


def auto_upgrade(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.auto-upgrade: the driver's libraries are replaced overnight, and no longer fit the loaded module."""
    apt = health.apt
    if apt is None or not apt.upgrades:
        return
    free = [one for one in apt.drivers if one in apt.from_security and one not in apt.held]
    free = [one for one in free if not any(one.startswith(word.rstrip("$.*")) for word in apt.blacklist)]
    if free:
        yield Finding(
            id="os.auto-upgrade",
            status="warn",
            nodes=(node,),
            summary="upgrades the NVIDIA driver by itself, which ends runs until the next reboot",
            evidence=f'APT::Periodic::Unattended-Upgrade "1"; not held: {", ".join(free[:6])}',
            cause="unattended-upgrades takes the driver from the distribution's security updates",
            fix=(f"sudo apt-mark hold {' '.join(free)}   (before an upgrade of your own: apt-mark unhold)",),
            needs_root=True,
            blast_radius="the driver's upgrades wait for you",
        )


def remove_ipc(
    node: str, health: HostHealth, owner: tuple[int, int] | None, *, contained: bool
) -> Iterator[Finding]:
    """os.removeipc: what a run shares in memory is removed when its user logs out of the node.

    Processes outside containers count as the login itself, so theirs stays. A system that leaves this at its
    default is not told of, as most of Debian and Ubuntu do: it costs a run that begins at that very moment.
    """
    logind = health.logind
    if logind is None or not logind.remove_ipc or logind.lingers or owner is None or not contained:
        return
    if owner[0] > _LAST_SYSTEM_UID:
        yield Finding(
            id="os.removeipc",
            status="warn",
            nodes=(node,),
            summary="removes what a run shares in memory as soon as its user logs out",
            evidence=f"RemoveIPC=yes in {logind.where['RemoveIPC']}; the run's UID is {owner[0]}",
            cause="logind clears /dev/shm of users who have left, and a container does not count as a login",
            fix=(
                "sudo mkdir -p /etc/systemd/logind.conf.d && printf '[Login]\\nRemoveIPC=no\\n' | "
                "sudo tee /etc/systemd/logind.conf.d/zz-clusterft.conf && sudo systemctl restart systemd-logind",
            ),
            needs_root=True,
            blast_radius="shared memory of users who have logged out stays until a reboot",
        )


def limits(node: str, facts: NodeFacts) -> Iterator[Finding]:
    """os.memlock and os.stack of a login, for runs outside containers, whose processes inherit them."""
    seen = facts.limits
    if seen is None:
        return
    if facts.infiniband and seen.memlock is not None and seen.memlock < _ENOUGH_LOCKED:
        yield Finding(
            id="os.memlock",
            status="fail",
            nodes=(node,),
            summary="processes may lock too little memory for InfiniBand",
            evidence=f"ulimit -l: {seen.memlock // 1024} KiB",
            cause="RDMA pins the memory that it reads and writes",
            fix=(limit(facts, "- memlock unlimited"),),
            needs_root=True,
            blast_radius="logins from then on",
        )
    if seen.stack == UNLIMITED:
        yield Finding(
            id="os.stack",
            status="warn",
            nodes=(node,),
            summary="processes have no limit of the stack, so threads get 2 MiB, which NCCL's may overflow",
            evidence="ulimit -s: unlimited",
            cause="the C library sizes threads by this limit, and has a default of its own where there is none",
            fix=(
                limit(facts, "soft stack 8192"),
                "or remove `ulimit -s unlimited` from the shell's startup files",
            ),
            needs_root=True,
            blast_radius="logins from then on",
        )


def limit(facts: NodeFacts, words: str) -> str:
    """Of one user, as a star does not mean root."""
    place = f"/etc/security/limits.d/90-clusterft-{words.split()[1]}.conf"
    return f"echo '{facts.user or 'root'} {words}' | sudo tee {place}   (counts from the next login)"
