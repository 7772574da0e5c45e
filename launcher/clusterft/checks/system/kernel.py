"""Checks of what a node's kernel tells: memory that ran out, processes that hang, ports and connections."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from clusterft.checks import networks
from clusterft.checks.sizes import size
from clusterft.facts import NodeFacts
from clusterft.facts.health.host import HostHealth, KernelLine, Stuck
from clusterft.findings import Finding

_MIB, _GIB = 2**20, 2**30
_RECENT = 3600.0  # seconds; what the kernel did before that is history
_SKEW = 5.0
_NO_MEMORY, _NO_MEMORY_BYTES = 0.05, 2 * _GIB
_FULL = 0.95  # of the table of connections
_FEW_PORTS = 256  # an own figure: NCCL and gloo open some for each peer, and each closed one rests for a minute
_PORTS = "32768 60999"  # what kernels begin with
_OWN = frozenset("sh dash bash ash busybox df stat ls cat timeout sleep grep awk sed".split())  # of our own looks
_YOUNG = 20.0  # seconds; one of those that is younger may be of this very look
_ON_PURPOSE = ("refrigerator", "vfork", "freez", "ptrace_stop")  # paused, or waiting for a child
_REMOTE = re.compile(r"nfs|rpc_|fuse|request_wait|ceph|cifs|smb|lustre|ll_|gpfs|beegfs|9p|p9_|gluster")
# Where a process waits for a disk that is only slow: 5 s of that say nothing, the kernel's own 120 s do.
_FROZEN = re.compile(r"percpu_rwsem|sb_start")
_LONG = re.compile(f"{_REMOTE.pattern}|{_FROZEN.pattern}")


def oom(node: str, facts: NodeFacts, health: HostHealth) -> Iterator[Finding]:
    """os.oom: the kernel has just killed something for want of memory, or hardly any is left now."""
    killed = [line for line in health.kernel or () if "Out of memory: Kill" in line.words and _recent(line)]
    reserve = health.reclaimable or 0
    left = None if facts.memory_available is None else facts.memory_available + reserve
    if killed:
        yield Finding(
            id="os.oom",
            status="warn",
            nodes=(node,),
            summary="ran out of memory within the last hour, and the kernel killed a process",
            evidence="\n".join(_shown(line) for line in killed[-3:]),
            cause="the processes of the node needed more than it has",
            fix=(
                "ps -eo rss,pid,user,args --sort=-rss | head   names who holds memory now",
                "lower train.data.workers, or leave out offload to the host's memory",
            ),
            blast_radius="job.yaml",
        )
    elif left is not None and facts.memory and left < min(facts.memory * _NO_MEMORY, _NO_MEMORY_BYTES):
        cache = f", and {size(reserve)} that ZFS would give back" if reserve else ""
        yield Finding(
            id="os.oom",
            status="warn",
            nodes=(node,),
            summary=f"hardly any memory is left: {size(left)}",
            evidence=f"MemAvailable {size(left - reserve)} of {size(facts.memory)}{cache}",
            cause="other programs hold it",
            fix=("ps -eo rss,pid,user,args --sort=-rss | head   names who holds it",),
            blast_radius="the programs that are ended",
        )
    elif health.kernel is None:
        yield Finding(
            id="os.oom",
            status="unknown",
            nodes=(node,),
            summary="the kernel's log cannot be read, and so not whether it has killed something",
            fix=("sudo dmesg | grep 'Out of memory'",),
            needs_root=True,
        )


def hung(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.hung-task: processes that wait in the kernel and did not run for as long as we looked."""
    told = [line for line in health.kernel or () if "blocked for more than" in line.words and _recent(line)]
    # Under load any lock or disk is waited for; only where a server or a freeze is the reason does a look suffice.
    stuck = [
        one for one in health.stuck or () if _counts(one) and (told or _LONG.search(one.place) or not one.place)
    ]
    if not stuck:
        return  # what the kernel has told of is over
    if not told and not any(one.place for one in stuck):
        yield _hidden(node, stuck)
        return
    places = {one.place for one in stuck if one.place}
    remote = any(_REMOTE.search(place) for place in places)
    frozen = any(_FROZEN.search(place) for place in places)
    named = "\n".join(f"pid {one.pid} {one.name} waits in {one.place or 'the kernel'}" for one in stuck[:8])
    yield Finding(
        id="os.hung-task",
        status="fail" if told else "warn",
        nodes=(node,),
        summary=f"{_many(len(stuck), 'process')} hung in the kernel, and cannot be killed until it lets go",
        evidence="\n".join((named, *(_shown(line) for line in told[-3:]))),
        cause="the server of a network filesystem does not answer"
        if remote
        else "a disk or a driver does not answer",
        fix=(
            "findmnt -t nfs,nfs4,cifs,ceph,fuse   names the shares; bring the server back, or: "
            "sudo umount -f -l DIRECTORY"
            if remote
            else "sudo dmesg | tail -n 50   names the disk or the driver; mend it, then reboot",
            *(("if a backup has frozen a filesystem: sudo fsfreeze -u DIRECTORY",) if frozen else ()),
        ),
        needs_root=True,
        blast_radius="the programs that use it",
    )


def _hidden(node: str, stuck: list[Stuck]) -> Finding:
    """A disk that is only slow, or a hang: where others' processes wait is for root to see."""
    return Finding(
        id="os.hung-task",
        status="unknown",
        nodes=(node,),
        summary="a process of another user waits in the kernel; whether it hangs cannot be seen",
        evidence="\n".join(f"pid {one.pid} {one.name}" for one in stuck[:8]),
        fix=tuple(f"sudo cat /proc/{one.pid}/stack" for one in stuck[:2]),
        needs_root=True,
    )


def shm(node: str, facts: NodeFacts, health: HostHealth, *, cuda: bool) -> Iterator[Finding]:
    """os.shm: /dev/shm too small for loaders and NCCL, or filled with what ended runs have left."""
    if facts.shm is None:
        return
    least = _GIB if cuda else 128 * _MIB
    left, free = _left_behind(facts, health), facts.shm_free
    bytes_left = sum(left.values())
    if left and (bytes_left >= facts.shm / 100 or (free is not None and free < least)):
        names = sorted(left, key=lambda name: -left[name])
        yield Finding(
            id="os.shm",
            status="warn",
            nodes=(node,),
            summary=f"ended runs have left {size(bytes_left)} in /dev/shm",
            evidence="\n".join(f"/dev/shm/{name} {size(left[name])}, no process has it" for name in names[:5]),
            cause="ranks that were killed do not clear up",
            fix=("while nothing trains there: rm /dev/shm/nccl-*",),
            needs_root=facts.uid != 0,
            blast_radius="shared memory of runs that have ended",
        )
    elif facts.shm < least or (free is not None and free < least / 4):
        small = facts.shm < least
        yield Finding(
            id="os.shm",
            status="warn",
            nodes=(node,),
            summary=f"/dev/shm {'is small' if small else 'is nearly full'}: training may end in `Bus error`",
            evidence=f"{size(facts.shm)}, {size(free or 0)} of it free",
            cause="loaders and NCCL hand over data there; containers of a run share the host's",
            fix=(
                ("sudo mount -o remount,size=50% /dev/shm",)
                if small
                else ("ls -lS /dev/shm | head   names what fills it",)
            ),
            needs_root=small,
            blast_radius="memory that programs of the node may share",
        )


def port_range(node: str, health: HostHealth, port: int) -> Iterator[Finding]:
    """os.portrange: any connection of the node may be given the rendezvous port as its own."""
    if health.port_range is None or health.reserved_ports is None:
        return
    low, high = health.port_range
    if high - low < _FEW_PORTS:
        yield _few_ports(node, low, high)
    reserved = any(first <= port <= last for first, last in health.reserved_ports)
    if not low <= port <= high or reserved:
        return
    spared = ",".join(f"{a}-{b}" if a != b else str(a) for a, b in (*health.reserved_ports, (port, port)))
    yield Finding(
        id="os.portrange",
        status="warn",
        nodes=(node,),
        summary=f"any outgoing connection may take port {port}, which the rendezvous needs",
        evidence=f"net.ipv4.ip_local_port_range = {low} {high}; reserved: "
        f"{','.join(f'{a}-{b}' for a, b in health.reserved_ports) or 'none'}",
        cause="the port lies in the range that the kernel gives to connections",
        fix=(
            kept("ports", f"net.ipv4.ip_local_reserved_ports={spared}"),
            f"or choose a port below {low}: port: in job.yaml" if low > 1024 else "or a smaller range",
        ),
        needs_root=True,
        blast_radius="which ports outgoing connections get",
    )


def _few_ports(node: str, low: int, high: int) -> Finding:
    return Finding(
        id="os.portrange",
        status="warn",
        nodes=(node,),
        summary=f"it has {high - low + 1} ports for connections of its own: ranks that open many run out of them",
        evidence=f"net.ipv4.ip_local_port_range = {low} {high}",
        cause="a range that was made narrow for a firewall, or by a mistake",
        fix=(kept("port-range", f"net.ipv4.ip_local_port_range={_PORTS}"),),
        needs_root=True,
        blast_radius="which ports outgoing connections get",
    )


_PATIENCE = 1800  # seconds that a rank may be busy by itself: dist.PATIENCE of the trainer


def conntrack(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.conntrack: no new connections, once the table of those that are known is full."""
    dropped = [line for line in health.kernel or () if "table full" in line.words and _recent(line)]
    count, most = health.conntrack or (0, 0)
    if most and (count >= most * _FULL or dropped):
        yield Finding(
            id="os.conntrack",
            status="warn",
            nodes=(node,),
            summary=f"the table of tracked connections {'is' if count >= most * _FULL else 'was'} full: "
            "new connections fail at random",
            evidence="\n".join(
                (f"nf_conntrack_count {count}, nf_conntrack_max {most}", *map(_shown, dropped[-2:]))
            ),
            cause="more connections than the node's firewall may keep in mind",
            fix=(kept("conntrack", f"net.netfilter.nf_conntrack_max={max(most * 4, 262144)}"),),
            needs_root=True,
            blast_radius="memory of the kernel, some 300 bytes a connection",
        )


def forgets(node: str, health: HostHealth) -> Iterator[Finding]:
    """os.conntrack: ranks say nothing to each other for minutes, while one of them works alone."""
    if health.forgotten is None or health.forgotten >= _PATIENCE:
        return
    yield Finding(
        id="os.conntrack",
        status="warn",
        nodes=(node,),
        summary=f"connections that are idle for {health.forgotten} s are forgotten there",
        evidence=f"net.netfilter.nf_conntrack_tcp_timeout_established = {health.forgotten}",
        cause="a firewall that knows connections drops what comes over one that it has forgotten: ranks then "
        "wait for each other for good, after a checkpoint or a long step",
        fix=(kept("conntrack-idle", "net.netfilter.nf_conntrack_tcp_timeout_established=432000"),),
        needs_root=True,
        blast_radius="how long the kernel keeps idle connections in mind",
    )


def rp_filter(node: str, facts: NodeFacts, health: HostHealth) -> Iterator[Finding]:
    """os.rp-filter: two cards in one subnet, of which the kernel lets only one be spoken to."""
    modes, up = health.rp_filter, {link.name for link in facts.links or () if link.up}
    if not modes:
        return
    subnets: dict[str, dict[str, str]] = defaultdict(dict)
    for one in networks.real(facts):
        plain = one.network.version == 4 and one.prefix < 31 and one.interface != "lo"
        if plain and one.interface in up and max(modes.get("all", 0), modes.get(one.interface, 0)) == 1:
            subnets[str(one.network)].setdefault(one.interface, one.ip)
    for subnet, cards in subnets.items():
        if len(cards) > 1:
            first, second = list(cards)[:2]
            yield Finding(
                id="os.rp-filter",
                status="warn",
                nodes=(node,),
                summary=f"{' and '.join(cards)} lie in one subnet, and packets to one of them are dropped",
                evidence="\n".join(
                    (*(f"{card} {ip} in {subnet}" for card, ip in cards.items()), "rp_filter = 1 (strict)")
                ),
                cause="answers would leave by the other card, and the strict filter takes them for forged",
                fix=(
                    f"give {second} a subnet of its own, or no address",
                    "or: " + kept("rp-filter", *(f"net.ipv4.conf.{one}.rp_filter=2" for one in ("all", *cards))),
                ),
                needs_root=True,
                blast_radius="which packets the node takes",
            )


def _left_behind(facts: NodeFacts, health: HostHealth) -> dict[str, int]:
    """NCCL's files that no process has; of other users' files only root can say so."""
    if health.shm is None:
        return {}
    return {
        name: size
        for name, (uid, size) in health.shm.files.items()
        if name not in health.shm.held and (facts.uid == 0 or uid == facts.uid)
    }


def _counts(one: Stuck) -> bool:
    if any(word in one.place for word in _ON_PURPOSE):
        return False
    return one.age >= _YOUNG or one.name not in _OWN


def _recent(line: KernelLine) -> bool:
    # What comes from the future was told by another clock: a container may have an uptime of its own.
    return line.ago is not None and -_SKEW <= line.ago <= _RECENT


def _shown(line: KernelLine) -> str:
    return line.words if line.ago is None else f"{line.ago / 60:.0f} min ago: {line.words}"


def kept(name: str, *settings: str) -> str:
    """The command that sets kernel parameters now and at every boot."""
    path, lines = f"/etc/sysctl.d/90-clusterft-{name}.conf", " ".join(settings)
    return f"printf '%s\\n' {lines} | sudo tee {path} && sudo sysctl -p {path}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 'es'}"
