"""Checks of whether the shared directory is there, answers, and is one directory on all nodes. Pure.

What a node could do in it is judged by `shared_dir`; the lines that mount it come from `nfs`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import replace
from shlex import quote

from clusterft.checks.examination import Examination
from clusterft.checks.shares import misnamed, nfs
from clusterft.checks.shares.nfs import Origin
from clusterft.facts import Mount
from clusterft.facts.health.storage import Dialled
from clusterft.facts.mounted import Mounted
from clusterft.facts.share import Trial
from clusterft.findings import Finding

_REFUSALS = (errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO)
_STEPS = {
    "look": "ls and cd",
    "make": "making a directory",
    "write": "writing a small file",
    "see": "reading the others' files",
    "lock": "locking a file",
}


def hung(seen: Examination) -> Iterator[Finding]:
    """fs.hung: whoever touches it waits. It counts when a later try has hung as well, if there was one."""
    for node in seen.health:
        trial, looked = seen.trial(node), _state(seen, node) == "hung"
        stuck = bool(trial and trial.hung)
        if stuck or (looked and trial is None):
            yield _hung(seen, node, trial.hung if trial else "look")
        elif trial is None and seen.wanted.shared and seen.health[node].storage.look is None:
            yield Finding("fs.hung", "unknown", (node,), f"the node was too slow to look at {seen.wanted.shared}")


def _hung(seen: Examination, node: str, step: str) -> Finding:
    mount = nfs.mounted(seen, node)
    said = [f"{_STEPS.get(step, step)} in {seen.wanted.shared} did not come back within seconds"]
    said += [f"{mount.source} on {mount.target} type {mount.fstype} ({mount.options})"] if mount else []
    cause, fix = _server_away(seen, node, mount) if mount and nfs.is_nfs(mount) else _stuck(mount)
    dialled = _dialled(seen, node, mount)
    if dialled and dialled.outcome != "open":
        said.append(f"port 2049 of {dialled.server}: {dialled.words or 'no answer'}")
    return Finding(
        id="fs.hung",
        status="fail",
        nodes=(node,),
        summary=f"{seen.wanted.shared} does not answer: whatever touches it waits",
        evidence="\n".join(said),
        cause=cause,
        fix=fix,
        needs_root=True,
        blast_radius="all that uses this directory; what waits for it goes on, or ends if it is unmounted",
    )


def paths_hung(seen: Examination) -> Iterator[Finding]:
    """fs.hung: what the job names beside the shared directory, and touched twice; one finding for each mount."""
    for node, health in seen.health.items():
        stuck: dict[Mounted | None, list[str]] = {}
        for path, answer in health.storage.paths.items():
            if answer == "waits":
                under = health.storage.under.get(path)
                # A link leads away from a disk of the node's own: its mount is not the one that hangs.
                stuck.setdefault(under if under and not under.mount.own else None, []).append(path)
        for mounted, paths in stuck.items():
            yield _path_hung(seen, node, mounted, paths)


def _path_hung(seen: Examination, node: str, mounted: Mounted | None, paths: list[str]) -> Finding:
    first = paths[0]
    well = [
        other
        for other, health in seen.health.items()
        if health.storage.paths.get(first) == "there" != node != other
    ]
    said = [f"{', '.join(paths)} did not answer ls within seconds, twice"]
    said += [f"{first} answers on {' '.join(well)}"] if well else []
    said += [f"it lies on {mounted}"] if mounted else []
    cause, fix = _stuck(mounted.mount) if mounted else (
        "what it lies on does not answer",
        (f"on {node}: cat /proc/self/mountinfo   names the mount of {quote(first)}; bring its server back",),
    )  # fmt: skip
    return Finding(
        id="fs.hung",
        status="fail",
        nodes=(node,),
        summary=f"{', '.join(paths)}, which the job names, does not answer on {node}: whatever touches it waits",
        evidence="\n".join(said),
        cause=cause,
        fix=fix,
        needs_root=True,
        blast_radius="all that uses this directory; what waits for it goes on, or ends if it is unmounted",
    )


def _server_away(seen: Examination, node: str, mount: Mount) -> tuple[str, tuple[str, ...]]:
    """Why an NFS server is not heard, and what brings it back."""
    server, dialled = nfs.server_of(mount), _dialled(seen, node, mount)
    host = nfs.host_of(seen, server)
    known = seen.survey.facts.get(host)
    last = f"if {host or server} cannot come back, give the directory up: sudo umount -f -l {quote(mount.target)}"
    if host and known is None:
        return f"{host}, which serves it, does not answer either", (f"bring {host} back first", last)
    health = seen.health.get(host)
    served = health.storage.served if health else None
    stopped = (served is not None and served.threads == 0) or (
        known is not None and known.listening is not None and 2049 not in known.listening
    )
    if host and stopped:
        return f"the NFS server on {host} is stopped", (nfs.starting(seen, host), last)
    if dialled and dialled.outcome == "refused":
        return f"the NFS server on {server} is stopped", (
            f"on {server}: sudo systemctl enable --now nfs-server",
            last,
        )
    if dialled and dialled.outcome in ("silent", "failed"):
        if host:
            return f"a firewall keeps port 2049 of {host} closed", (
                *nfs.opening(seen, host, node),
                last,
            )
        return f"{server} is off, or a firewall keeps its port 2049 closed", (
            f"bring {server} back: ping {quote(server)}; on it: sudo systemctl status nfs-server",
            last,
        )
    return f"its server {server} does not answer", (
        f"on {host or server}: sudo systemctl restart nfs-server; sudo dmesg | tail",
        last,
    )


def _stuck(mount: Mount | None) -> tuple[str, tuple[str, ...]]:
    if mount and (mount.shared or mount.fstype.startswith("fuse")):
        fuse = mount.fstype.startswith("fuse")
        target = quote(mount.target)
        return (
            "the program that serves it hangs, or has lost its own server"
            if fuse
            else "its server does not answer",
            (
                f"bring its server back: {mount.source}; then see: ls {target}",
                f"or let go of it, and mount it again: sudo umount -f -l {target}",
            ),
        )
    return "its disk, or what serves it, does not answer", ("sudo dmesg | tail -n 50   names the disk; mend it",)


def export(seen: Examination) -> Iterator[Finding]:
    """fs.export: the server, a node, does not lend it to one that has no mount of it, or a useless one."""
    of = nfs.origin(seen)
    if of is None or not of.host:
        return
    refused = tuple(
        node
        for node in seen.health
        if node != of.host and nfs.admitted(seen, node, of) is False and _useless(seen, node, of)
    )
    if not refused:
        return
    waiting = all(nfs.in_file(seen, node, of) for node in refused)
    health = seen.health[of.host].storage.served
    lent = health.loaded if health and health.loaded is not None else health.written if health else ()
    lines = [f"{one.path} {' '.join(f'{name}({options})' for name, options in one.clients)}" for one in lent]
    steps = [nfs.lending(seen, of, refused)]
    for node in refused:
        mount = nfs.mounted(seen, node)
        there = nfs.again(seen, node, mount) if mount and nfs.is_nfs(mount) else nfs.bringing(seen, node, of)
        steps += [f"on {node}: {line}" for line in there]
    yield Finding(
        id="fs.export",
        status="fail",
        nodes=refused,
        summary=f"{of.host}, which serves {of.exported}, does not lend it to {' '.join(refused)}",
        evidence="\n".join((f"{of.host} lends:", *lines)) if lines else f"{of.host} lends nothing",
        cause="/etc/exports has been changed and not read again" if waiting else "its exports do not name them",
        fix=tuple(dict.fromkeys(steps)),
        needs_root=True,
        blast_radius=f"who may mount {of.exported} from {of.host}",
    )


def stale(seen: Examination) -> Iterator[Finding]:
    """fs.stale: the node holds on to a directory that its server no longer knows."""
    for node in seen.health:
        mount = nfs.mounted(seen, node)
        if not _is_stale(seen, node) or mount is None:
            continue
        yield Finding(
            id="fs.stale",
            status="fail",
            nodes=(node,),
            summary=f"{seen.wanted.shared} is a stale handle: its server has another directory there by now",
            evidence=f"{_words(seen, node)}\n{mount.source} on {mount.target} type {mount.fstype}",
            cause="the exported directory was made anew, moved, or exported under another fsid",
            fix=nfs.again(seen, node, mount),
            needs_root=True,
            blast_radius=f"what uses {mount.target} on the node; containers that have it must be started again",
        )


def not_shared(seen: Examination) -> tuple[Finding, ...]:
    """fs.not-shared, by one look: the directory is not there, or not mounted where the others have it mounted."""
    return seen.once(_not_shared)


def _not_shared(seen: Examination) -> tuple[Finding, ...]:
    return tuple(_bare(seen))


def _bare(seen: Examination) -> Iterator[Finding]:
    if len(_machines(seen)) < 2:
        return
    of = nfs.origin(seen)
    having = [node for node in seen.health if _remote(seen, node)]
    missing = [node for node in seen.health if _state(seen, node) == "missing"]
    if len(missing) == len(seen.health) and not (of or having or any(_meant(seen, node) for node in missing)):
        yield _nowhere(seen, tuple(missing))
        return
    for node in seen.health:
        mount = nfs.mounted(seen, node)
        if node in missing and len(missing) == len(seen.health) and mount and mount.shared:
            continue  # below a share that all have, the first run makes it
        meant = _meant(seen, node)
        serves = (of is not None and of.host == node) or nfs.may_serve(seen, node, having)
        bare = bool(meant or having or _mounted_elsewhere(seen, node)) and mount is not None and mount.own
        if node in missing or (bare and not serves and not _met(seen, node)):
            yield _absent(seen, node, of, meant=meant)


def _meant(seen: Examination, node: str) -> bool:
    """Whether its fstab has a share for it, which is not mounted."""
    line, mount = nfs.in_fstab(seen, node), nfs.mounted(seen, node)
    return line is not None and _is_share(line.fstype) and not (mount and mount.target == line.target)


def _nowhere(seen: Examination, nodes: tuple[str, ...]) -> Finding:
    """Nobody has it, nor was to: its name is more likely wrong than all of them."""
    shared, job = seen.wanted.shared or "", seen.wanted.job
    disks = (disk for facts in seen.survey.facts.values() for disk in facts.disks)
    line = misnamed.advice(shared, job.where("shared") if job else "", disks)
    return Finding(
        id="fs.not-shared",
        status="fail",
        nodes=nodes,
        summary=misnamed.summary(shared),
        evidence="\n".join(f"{node}: {_words(seen, node)}" for node in nodes),
        cause=misnamed.NOWHERE,
        fix=(line, "if it is right, one node can lend it to the others:", *_recipe(seen, nodes)),
        needs_root=True,
        blast_radius="job.yaml; or what the nodes lend to each other",
    )


def _mounted_elsewhere(seen: Examination, node: str) -> bool:
    """Something is mounted right there on other nodes, and not here; only where the proof could have met it."""
    if seen.share is None or seen.wanted.shared is None:
        return False
    targets = {name: mount.target for name in seen.health if (mount := nfs.mounted(seen, name))}
    others = [name for name, target in targets.items() if target == seen.wanted.shared and name != node]
    return bool(others) and targets.get(node) != seen.wanted.shared


def _absent(seen: Examination, node: str, of: Origin | None, *, meant: bool) -> Finding:
    mount, line, shared = nfs.mounted(seen, node), nfs.in_fstab(seen, node), seen.wanted.shared
    there = _state(seen, node) != "missing"
    said = [_words(seen, node)] if not there else []
    said += (
        [f"here it lies on {mount.source}, {mount.fstype}, mounted on {mount.target}"] if mount and there else []
    )
    said += [f"/etc/fstab: {' '.join(line)}"] if meant and line else []
    said += [of.told] if of and not (of.told.startswith(f"{node},")) else []
    cause, first = _why_not(seen, node, of, meant=meant)
    return Finding(
        id="fs.not-shared",
        status="fail",
        nodes=(node,),
        summary=f"{shared} is not mounted" if there or meant else f"{shared} does not exist",
        evidence="\n".join(said),
        cause=cause,
        fix=first or (tuple(nfs.bringing(seen, node, of)) if of and of.host != node else _recipe(seen, (node,))),
        needs_root=True,
        blast_radius=f"what lies in {shared} on the node by now, which a mount hides",
    )


def _why_not(seen: Examination, node: str, of: Origin | None, *, meant: bool) -> tuple[str, tuple[str, ...]]:
    """What keeps a mount that is meant from being there, and what goes before the mount; both may be empty."""
    if of is None or not (meant or of):
        return "", ()
    if spoken := _wrong_version(seen, node, of):
        return spoken
    dialled = next((one for one in seen.health[node].storage.dialled if one.outcome != "open"), None)
    if dialled is None or not meant:
        return "it was not mounted here" if not meant else "it is in /etc/fstab, and was not mounted", ()
    mount = Mount(of.source, of.target, "nfs", "")
    cause, steps = _server_away(seen, node, mount)
    return cause, (steps[0], *nfs.bringing(seen, node, of))


def _wrong_version(seen: Examination, node: str, of: Origin) -> tuple[str, tuple[str, ...]] | None:
    """Its fstab asks for a version of NFS that the server, a node, does not speak."""
    line, offered = nfs.in_fstab(seen, node), nfs.offered(seen, of)
    words = line.options.split(",") if line else []
    asked = next((word.partition("=")[2] for word in words if "vers=" in word), "")
    if line is None or not re.fullmatch(r"[0-9.]+", asked) or not offered or _speaks(asked, offered):
        return None
    better, target = max(offered), quote(line.target)
    source = re.sub(r"[][*^$\\|]", r"\\\g<0>", nfs.field(line.source))
    script = f"\\|^{source}[[:space:]]|s/vers={asked}/vers={better}/"
    return f"/etc/fstab asks for NFS {asked}; {of.host} speaks {', '.join(sorted(offered))}", (
        f"sudo sed -i {quote(script)} /etc/fstab",
        f"sudo mkdir -p {target} && sudo mount {target}",
    )


def apart(seen: Examination) -> Iterator[Finding]:
    """fs.not-shared, by proof: what one node has written, another does not find."""
    share = seen.share
    if share is None:
        return
    bare = {node for one in not_shared(seen) for node in one.nodes}  # of which all is said
    able = [node for node, trial in share.trials.items() if trial.wanted and node not in bare]
    groups = _groups({node: share.trials[node] for node in able})
    if len(groups) < 2:
        return
    right = max(groups, key=lambda group: (_is_right(seen, group), len(group)))
    of = nfs.origin_of(seen, right) or nfs.origin(seen)
    clear = _is_right(seen, right) or sum(len(group) == len(right) for group in groups) == 1
    odd = [node for group in groups for node in group if group is not right] if clear else able
    lines = [f"{' '.join(group)}: {_lies_on(seen, group[0])}" for group in groups]
    told = {node: level for node in odd if clear and (level := _level(seen, node, right))}
    for node, (cause, steps) in told.items():
        yield replace(_elsewhere(seen, (node,), lines, steps, early=False), cause=cause)
    odd = [node for node in odd if node not in told]
    for node in odd if clear and of else ():
        inside = share.trials[node].mount
        early = share.trials[node].way == "image" and _remote(seen, node) and not (inside and inside.shared)
        yield _elsewhere(seen, (node,), lines, tuple(nfs.bringing(seen, node, of)) if of else (), early=early)
    if odd and not (clear and of):
        yield _elsewhere(seen, tuple(odd), lines, _recipe(seen, tuple(odd)), early=False)


def _level(seen: Examination, node: str, right: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """Another directory of what the others share already: what it is, and how theirs comes there. Else None."""
    mine = _place(seen, node)
    whose, theirs = next(((one, place) for one in right if (place := _place(seen, one))), ("", None))
    if mine is None or theirs is None or _directory(mine) == _directory(theirs):
        return None
    servers = nfs.is_nfs(mine.mount) and nfs.is_nfs(theirs.mount)
    if servers:
        if nfs.server_of(mine.mount) != nfs.server_of(theirs.mount):
            return None
    elif mine.mount.source != theirs.mount.source or not (theirs.mount.shared or _met(seen, whose)):
        return None
    shared = seen.wanted.shared or ""
    steps = [f"on {node}: sudo umount {quote(mine.mount.target)}"] if mine.mount.target == shared else []
    of = nfs.origin_of(seen, right) if servers else None
    if of:
        steps += [f"on {node}: {line}" for line in nfs.bringing(seen, node, of) if not line.startswith("ls -A ")]
    else:
        steps.append(
            f"where that is not enough, mount there what {whose} has: {_directory(theirs)}; and correct its line "
            f"in /etc/fstab on {node}"
        )
    return f"{node} has {_directory(mine)} there, and {' '.join(right)} {_directory(theirs)}", tuple(steps)


def _place(seen: Examination, node: str) -> Mounted | None:
    health = seen.health.get(node)
    return health.storage.place if health else None


def _directory(place: Mounted) -> str:
    """What is mounted: of a server its export, else a directory of the filesystem."""
    whole = place.root == "/"
    return place.mount.source if whole else f"directory {place.root} of {place.mount.source}"


def _elsewhere(
    seen: Examination, nodes: tuple[str, ...], lines: list[str], fix: tuple[str, ...], *, early: bool
) -> Finding:
    whole = len(nodes) == len(seen.nodes)
    who = "each node has a directory of its own" if whole else "this is another directory than the others'"
    return Finding(
        id="fs.not-shared",
        status="fail",
        nodes=nodes,
        summary=f"{seen.wanted.shared}: {who}",
        evidence="\n".join(("a file written there is seen by these nodes together:", *lines)),
        cause="a container does not see what was mounted after its engine started" if early else "",
        fix=("sudo systemctl restart docker   (ends what runs in containers there)",) if early else fix,
        needs_root=True,
        blast_radius=f"what lies in {seen.wanted.shared} on the node by now, which a mount hides",
    )


def _recipe(seen: Examination, odd: tuple[str, ...]) -> tuple[str, ...]:
    """Nobody has it from anywhere yet: the first node that is well, else the head, lends its own to the others."""
    shared = seen.wanted.shared or ""
    there = [node for node in seen.nodes if _state(seen, node) == "ok"]
    having = [node for node in there if node not in odd] or there
    host = next(iter(having), seen.nodes[0])
    right = next((mount for mount in (nfs.mounted(seen, node) for node in having) if mount and mount.shared), None)
    if right and not nfs.is_nfs(right):
        return (f"mount it as the others have it: {right.source} on {right.target}, type {right.fstype}",)
    others = tuple(node for node in odd if node != host)
    of = Origin(nfs.client(seen, host), shared, shared, (), "", host, shared)
    steps = [f"on {host}: sudo apt-get install -y nfs-kernel-server   (nfs-utils on other systems)"]
    steps += [f"on {host}: sudo mkdir -p {quote(shared)}"] if host not in having else []
    steps += [nfs.lending(seen, of, others)] if others else []
    for node in others:
        steps += [f"on {node}: {line}" for line in nfs.bringing(seen, node, of)]
    return tuple(steps)


def _groups(trials: dict[str, Trial]) -> list[tuple[str, ...]]:
    """Nodes that see each other's files, one way at least, directly or through others."""
    groups: list[set[str]] = [{node} for node in trials]
    for node, trial in trials.items():
        for other in trial.seen:
            mine = next(group for group in groups if node in group)
            theirs = next((group for group in groups if other in group), mine)
            if theirs is not mine:
                groups.remove(theirs)
                mine |= theirs
    return [tuple(node for node in trials if node in group) for group in groups]


def _is_right(seen: Examination, group: tuple[str, ...]) -> bool:
    of = nfs.origin(seen)
    return any(_remote(seen, node) for node in group) or (of is not None and of.host in group)


def _lies_on(seen: Examination, node: str) -> str:
    inside = seen.share.trials[node].mount if seen.share and node in seen.share.trials else None
    mount, place = inside or nfs.mounted(seen, node), _place(seen, node)
    if mount is None:
        return "of what filesystem is not told"
    part = f", its directory {place.root}" if place and place.root != "/" else ""
    return f"{mount.fstype} {mount.source}{part}, mounted on {mount.target}"


def _useless(seen: Examination, node: str, of: Origin) -> bool:
    """Whether the directory is of no use on a node, by what the server may have refused."""
    trial, state = seen.trial(node), _state(seen, node)
    if trial and trial.trouble and trial.trouble.errno in _REFUSALS:
        return True
    return state in ("stale", "denied", "broken", "missing") or not _remote(seen, node)


def _is_stale(seen: Examination, node: str) -> bool:
    trial = seen.trial(node)
    tried = trial is not None and trial.trouble is not None and trial.trouble.errno == errno.ESTALE
    return tried or (_state(seen, node) == "stale" and trial is None)


def _met(seen: Examination, node: str) -> bool:
    """Whether it and another machine have seen each other's files: it is one directory, whatever it lies on."""
    trials = seen.share.trials if seen.share else {}
    pairs = ((one, other) for one, trial in trials.items() for other in trial.seen)
    boots = {name: facts.boot_id or name for name, facts in seen.survey.facts.items()}
    return any(node in pair and boots.get(pair[0]) != boots.get(pair[1]) for pair in pairs)


def _machines(seen: Examination) -> set[str]:
    known = ((name, facts.boot_id) for name, facts in seen.survey.facts.items())
    return {boot or name for name, boot in known}


def _remote(seen: Examination, node: str) -> bool:
    mount = nfs.mounted(seen, node)
    return mount is not None and mount.shared


def _is_share(fstype: str) -> bool:
    return Mount("", "", fstype, "").shared


def _speaks(asked: str, offered: frozenset[str]) -> bool:
    """4 asks for any of 4.x; 4.0 is what a server calls 4 where it has no minor versions."""
    return asked in offered or (asked == "4" and any(one.startswith("4") for one in offered)) or asked == "4.0"


def _state(seen: Examination, node: str) -> str:
    look = seen.health[node].storage.look if node in seen.health else None
    return look.state if look else ""


def _words(seen: Examination, node: str) -> str:
    trial, health = seen.trial(node), seen.health.get(node)
    if trial and trial.trouble:
        return trial.trouble.words
    return health.storage.look.words if health and health.storage.look else ""


def _dialled(seen: Examination, node: str, mount: Mount | None) -> Dialled | None:
    if mount is None or node not in seen.health:
        return None
    tried = seen.health[node].storage.dialled
    return next((one for one in tried if one.server == nfs.server_of(mount)), None)
