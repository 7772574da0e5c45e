"""Checks of what the run's user can do in the shared directory on each node, and how fast. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from shlex import quote

from clusterft.checks import host
from clusterft.checks.examination import Examination
from clusterft.checks.shares import nfs
from clusterft.facts.health.storage import Look
from clusterft.facts.share import Share, Trial
from clusterft.findings import Finding

_DENIED = (errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# What is not known where a part of the proof was not tried.
_ASKED = {
    "write": ("fs.squash", "fs.not-writable"),
    "see": ("fs.not-shared", "fs.attrcache"),
    "renew": ("fs.attrcache",),
    "lock": ("fs.lock",),
    "speed": ("fs.slow",),
}
_FAT = ("vfat", "msdos", "fat")
_LATE = 2.0  # seconds until a file is seen, its directory listed
_SLOW_RATE, _SLOW_SYNC = 10e6, 1.0  # bytes and seconds; far below what any disk or link gives that is well
_ENOUGH_CALLS, _RESENT = 1000, 0.01  # over TCP a call is sent again after a minute, or a broken connection
_LONG_CACHE = 60  # seconds; what NFS takes without being told


def squash(seen: Examination) -> Iterator[Finding]:
    """fs.squash: the run's user may not write; by proof, else by what the SSH user's shell says."""
    for node in seen.health:
        trial = seen.trial(node)
        if trial is None:
            if seen.share is None and _unwritable(seen, node) and not _frozen(seen, node):
                yield _denied(seen, node, None)
        elif trial.trouble and trial.trouble.errno in _DENIED:
            yield _denied(seen, node, trial)


def _denied(seen: Examination, node: str, trial: Trial | None) -> Finding:
    shared, mount = seen.wanted.shared or "", nfs.mounted(seen, node)
    facts, health = seen.survey.facts[node], seen.health[node]
    look = health.storage.look
    user = trial.uid if trial and trial.uid is not None else facts.uid
    group = trial.gid if trial and trial.uid is not None else facts.gid
    said = [trial.trouble.words] if trial and trial.trouble else [f"test -w {shared}: no"]
    said += [f"{look.mode} {look.owner[0]}:{look.owner[1]} {shared}"] if look and look.owner else []
    said += [f"{mount.source} on {mount.target} type {mount.fstype}"] if mount else []
    remote = nfs.is_nfs(mount)
    others = trial is not None and seen.wanted.contained and trial.way != "image" and not _as_owner(seen, trial)
    shared_with = _group(look, group)
    if shared_with is not None and user != 0:
        cause, fix = _by_group(seen, node, f"{user}:{group}", shared_with)
    else:
        cause, fix = _owned(seen, node, user, group, squashed=remote and user == 0)
    return Finding(
        id="fs.squash",
        status="unknown" if others else "fail",
        nodes=(node,),
        summary=f"{shared} cannot be written by {user}:{group}, "
        + (
            "the SSH user; whether the run's user can, is tried once the image is there"
            if others
            else "the run's user"
        ),
        evidence="\n".join(said),
        cause=cause,
        fix=fix,
        needs_root=True,
        blast_radius=f"who owns {shared}, and as whom runs work",
    )


def closed(seen: Examination) -> Iterator[Finding]:
    """fs.squash, one level below: where all runs there keep index and caches is somebody else's."""
    shared, job = seen.wanted.shared or "", seen.wanted.job
    for node, trial in _trials(seen):
        if trial.closed is None:
            continue
        owner, group, mode = trial.closed
        user = seen.survey.facts[node].user or str(trial.uid)
        line = job.where("shared") if job else ""
        own = f"{shared.rstrip('/')}/{user}"
        yield Finding(
            id="fs.squash",
            status="fail",
            nodes=(node,),
            summary=f"{shared}/.clusterft cannot be written by {trial.uid}:{trial.gid}, the run's user",
            evidence=f"{mode} {owner}:{group} {shared}/.clusterft",
            cause="runs keep index and caches there, and it belongs to another user",
            fix=(
                f"mkdir -p {quote(own)}; then shared: {own}" + (f" at {line}" if line else " in the job"),
                f"or, if it is nobody else's, on any node: sudo chown -R {trial.uid}:{trial.gid} "
                f"{quote(shared + '/.clusterft')}",
            ),
            needs_root=False,
            blast_radius="job.yaml; or who owns that directory",
        )


def _group(look: Look | None, own: int | None) -> int | None:
    """The group that may write there, and that this user is not in; None where there is none."""
    if look is None or look.owner is None or look.owner[1] in (0, own):
        return None
    return look.owner[1] if look.mode[5:6] == "w" and look.mode[6:7] in ("x", "s") else None


def _by_group(seen: Examination, node: str, who: str, group: int) -> tuple[str, tuple[str, ...]]:
    """A directory of a group's: to join it takes nothing from the others, as a new owner would."""
    facts, path = seen.survey.facts[node], quote(seen.wanted.shared or "")
    uid = who.partition(":")[0]
    chown = f"or, which takes it from them, on any node: sudo chown {who} {path}"
    if seen.wanted.contained:
        cause = f"group {group} may write there; a run's container has {who} alone, and none of the node's groups"
        return cause, (
            f"in job.yaml: user: {uid}:{group}   (its owner and its group keep it)",
            chown,
        )
    named = f"$(getent group {group} | cut -d: -f1)"
    step = f"on {node}: sudo usermod -aG {named} {facts.user or '$(id -un)'}   (counts from the next login)"
    return f"group {group} may write there, and {who} is not in it", (step, chown)


def taken_for(seen: Examination) -> Iterator[Finding]:
    """fs.squash, where writing works: the server takes a node's user for another one, and not that of others."""
    if len({trial.owner[0] for _, trial in _trials(seen) if trial.owner}) < 2:
        return
    of = nfs.origin(seen)
    on, path = (of.host or of.server, of.exported or of.path) if of else ("its server", seen.wanted.shared)
    for node, trial in _trials(seen):
        mount, known = nfs.mounted(seen, node), trial.owner and trial.uid is not None
        if not known or not trial.owner or trial.owner[0] == trial.uid or not nfs.is_nfs(mount):
            continue
        squashes = "root_squash" if trial.uid == 0 else "all_squash"
        yield Finding(
            id="fs.squash",
            status="warn",
            nodes=(node,),
            summary=f"{seen.wanted.shared}: what {trial.uid}:{trial.gid} writes belongs to {trial.owner[0]} there",
            evidence=f"a file written by {trial.uid}:{trial.gid} belongs to {trial.owner[0]}:{trial.owner[1]}",
            cause=f"the server takes users for another one ({squashes}), and not on all nodes",
            fix=(
                "let runs work as one user with the same UID:GID on all nodes",
                f"on {on}: in /etc/exports, for {path}, let all_squash go; then: sudo exportfs -ra",
            ),
            needs_root=True,
            blast_radius=f"who owns what is in {seen.wanted.shared}",
        )


def untried(seen: Examination) -> Iterator[Finding]:
    """What the proof did not get to on a node is not known to be well."""
    for node, trial in _trials(seen):
        for what, (why, meant) in trial.untried.items():
            for identity in _ASKED[what]:
                yield Finding(identity, "skipped" if meant else "unknown", (node,), why)


def _owned(
    seen: Examination, node: str, user: int | None, group: int | None, *, squashed: bool
) -> tuple[str, tuple[str, ...]]:
    """Why this user may not, and what gives the directory to one that may on all nodes."""
    shared = seen.wanted.shared or ""
    of = nfs.origin(seen)
    on = f"on {of.host or of.server}" if of else "on any node"
    path = of.exported or of.path if of else shared
    if squashed:
        setting = "user: UID:GID in job.yaml" if seen.wanted.contained else f"user= in {seen.survey.cluster.path}"
        return "the server takes root for nobody (root_squash), and the directory is not nobody's", (
            f"let runs work as one user with the same UID:GID on all nodes: {setting}",
            f"{on}: sudo chown UID:GID {quote(path)}   (of that user; no_root_squash would trust every root)",
        )
    differ = {(one.uid, one.gid) for one in seen.survey.facts.values()}
    first: tuple[str, ...] = ()
    if len(differ) > 1 and not (seen.wanted.job and seen.wanted.job.user):
        first = (f"log in as users with one UID:GID on all nodes: user= in {seen.survey.cluster.path}",)
    return "it belongs to another user", (*first, f"{on}: sudo chown {user}:{group} {quote(path)}")


def not_writable(seen: Examination) -> Iterator[Finding]:
    """fs.not-writable: an error of the filesystem itself; by proof alone."""
    for node, trial in _trials(seen):
        trouble = trial.trouble
        if trouble is None or trouble.errno in (*_DENIED, *_FULL, errno.ESTALE):
            continue  # other findings tell of these
        if trouble.errno in _ABSENT and trouble.step == "look":
            continue
        if trouble.step in ("see", "lock") or (trouble.errno == errno.EROFS and _frozen(seen, node)):
            continue
        mount = nfs.mounted(seen, node)
        of = nfs.origin(seen)
        lent = trouble.errno == errno.EROFS and nfs.is_nfs(mount)
        if lent and of:
            steps: tuple[str, ...] = (
                f"on {of.host or of.server}: change ro to rw for {of.exported or of.path} in /etc/exports, "
                "then: sudo exportfs -ra",
            )
        elif trouble.errno == errno.ENOTCONN:
            target = quote(mount.target if mount else seen.wanted.shared or "")
            steps = (f"sudo umount -l {target}   then mount it again: what served it has ended",)
        elif trouble.errno in _ABSENT:
            at = quote(f"{seen.wanted.shared}/.clusterft")
            steps = (f"ls -ld {at}; findmnt -T {at}   tell what is in the way there; a directory should be",)
        else:
            at = quote(seen.wanted.shared or "")
            steps = (f"findmnt -T {at}; sudo dmesg | tail -n 50   tell what is wrong with it",)
        yield Finding(
            id="fs.not-writable",
            status="fail",
            nodes=(node,),
            summary=f"{seen.wanted.shared} cannot be written",
            evidence=trouble.words + (f"\n{mount.source} on {mount.target} type {mount.fstype}" if mount else ""),
            cause="its server lends it to be read only" if lent else "",
            fix=steps,
            needs_root=True,
            blast_radius=seen.wanted.shared or "",
        )


def quota(seen: Examination) -> Iterator[Finding]:
    """os.disk-full: there is room, and none for the run's user."""
    for node, trial in _trials(seen):
        trouble = trial.trouble
        if trouble is None or trouble.errno not in _FULL:
            continue
        disk = next((one for one in seen.survey.facts[node].disks if one.directory == seen.wanted.shared), None)
        free = disk.free_bytes if disk else trial.free_bytes
        if disk and (disk.free_bytes < seen.wanted.shared_bytes or disk.free_inodes == 0):
            continue  # told of as the disk that it is
        yield Finding(
            id="os.disk-full",
            status="fail",
            nodes=(node,),
            summary=f"{trial.uid}:{trial.gid}, the run's user, has no room in {seen.wanted.shared}",
            evidence=trouble.words + (f"\n{free >> 20} MiB free for others" if free is not None else ""),
            cause="a quota, or blocks that are kept for root",
            fix=(f"quota -s -u {trial.uid}   tells the limits; remove files, or have the limit raised",),
            blast_radius=seen.wanted.shared or "",
        )


def file_size(seen: Examination) -> Iterator[Finding]:
    """fs.file-size: a file as large as a model may not be made there."""
    for node, trial in _trials(seen):
        if not trial.too_large:
            continue
        mount = nfs.mounted(seen, node)
        small = mount is not None and mount.fstype in _FAT
        yield Finding(
            id="fs.file-size",
            status="fail",
            nodes=(node,),
            summary=f"no file of {trial.too_large >> 30} GiB, as a model is, may be made in {seen.wanted.shared}",
            evidence=f"ftruncate to {trial.too_large} bytes: {os.strerror(errno.EFBIG)}"
            + (f"\n{mount.source} on {mount.target} type {mount.fstype}" if mount else ""),
            cause=f"{mount.fstype} has no files of 4 GiB and more"
            if mount and small
            else "a limit on the size of files of that login, or of its filesystem",
            fix=("choose a directory on ext4, xfs or NFS for shared:",)
            if small
            else (
                f"on {node}: ulimit -f   must say unlimited; else find it: grep -rn fsize "
                "/etc/security/limits.conf /etc/security/limits.d; grep -n 'ulimit.*-f' ~/.bashrc ~/.profile",
                "remove that line, and log in again",
            ),
            blast_radius="limits of every login, or the filesystem",
        )


def lock(seen: Examination) -> Iterator[Finding]:
    """fs.lock: what one node has locked, another one may lock too, or none can lock at all."""
    share = seen.share
    if share is None or not share.holder:
        return
    for node, trial in _trials(seen):
        wrong = {
            kind: said
            for kind, said in trial.locks.items()
            if said != ("had" if node == share.holder else "refused")
        }
        if not wrong:
            continue
        local = set(wrong.values()) == {"had"}
        mount = nfs.mounted(seen, node)
        said = [
            f"{kind}: given to {share.holder} and {node} at once" if words == "had" else f"{kind}: {words}"
            for kind, words in wrong.items()
        ]
        said += [f"{mount.source} on {mount.target} type {mount.fstype} ({mount.options})"] if mount else []
        yield Finding(
            id="fs.lock",
            status="warn",
            nodes=(node,),
            summary=f"locks in {seen.wanted.shared} "
            + ("do not reach the other nodes" if local else "cannot be had"),
            evidence="\n".join(said),
            cause="each node locks for itself alone" if local else "the server's lock service does not answer",
            fix=_locking(seen, node),
            needs_root=True,
            blast_radius="the mount on the node, and what uses it",
        )


def _locking(seen: Examination, node: str) -> tuple[str, ...]:
    mount = nfs.mounted(seen, node)
    if mount and nfs.is_nfs(mount):
        target = quote(mount.target)
        fresh = f"sudo mount -t nfs -o vers=4.2 {quote(mount.source)} {target}"
        return (f"sudo umount {target} && {fresh}   (version 4 has locks of its own; no nolock, no local_lock)",)
    return (
        "keep caches that are locked (HF_HOME, TRITON_CACHE_DIR) on a disk of the node: env: in job.yaml",
        "or choose a directory on NFS 4 for shared:",
    )


def attrcache(seen: Examination) -> Iterator[Finding]:
    """fs.attrcache, by proof: a file of another node is seen late, though its directory was listed."""
    for node, trial in _trials(seen):
        late = {
            other: sight.seconds
            for sights in (trial.seen, trial.renewed)
            for other, sight in sights.items()
            if sight.seconds > _LATE
        }
        never = [one for one in trial.seen if trial.renewed and one not in trial.renewed]
        if late or never:
            said = [f"a file that {other} wrote was seen after {seconds:.1f} s" for other, seconds in late.items()]
            said += [f"a file that {other} replaced was seen as it was before for 6 s" for other in never]
            yield _cached(seen, node, said)


def cached_long(seen: Examination) -> Iterator[Finding]:
    """fs.attrcache, by the mount's options: told to keep what it knows for longer than NFS does by itself."""
    for node in seen.health:
        mount = nfs.mounted(seen, node)
        words = [one for one in mount.options.split(",") if _keeps(one)] if mount and nfs.is_nfs(mount) else []
        trial = seen.trial(node)
        fast = trial is not None and trial.seen and all(not one.listed for one in trial.seen.values())
        if mount and words and not (fast and "nocto" not in words):
            yield _cached(seen, node, [f"{mount.source} on {mount.target}: {','.join(words)}"])


def _keeps(option: str) -> bool:
    name, _, value = option.partition("=")
    numbers = name in ("acregmin", "acregmax", "acdirmin", "acdirmax", "actimeo")
    return option == "nocto" or (numbers and value.isdecimal() and int(value) > _LONG_CACHE)


def _cached(seen: Examination, node: str, said: list[str]) -> Finding:
    mount = nfs.mounted(seen, node)
    if mount and nfs.is_nfs(mount):
        kept = (one for one in nfs.kept(mount.options) if not one.startswith(("actimeo=", "noac")))
        options = quote(",".join((*kept, "actimeo=1")))
        target = quote(mount.target)
        fix: tuple[str, ...] = (
            f"sudo umount {target} && sudo mount -t nfs -o {options} {quote(mount.source)} {target}",
            f"and the same options for {mount.target} in /etc/fstab",
        )
    else:
        what = f"{mount.source}, {mount.fstype}" if mount else "it"
        fix = (f"mount {what} with a cache of attributes of a second at most",)
    return Finding(
        id="fs.attrcache",
        status="warn",
        nodes=(node,),
        summary=f"{seen.wanted.shared}: what another node writes is seen late",
        evidence="\n".join(said),
        cause="the mount keeps what it knows of files and directories for long",
        fix=fix,
        needs_root=True,
        blast_radius="the mount on the node, and what uses it",
    )


def kind(seen: Examination) -> Iterator[Finding]:
    """fs.type, of what the directory lies on by both looks."""
    for node in seen.health:
        mount = nfs.mounted(seen, node)
        if mount and seen.wanted.shared:
            yield from host.kind(node, seen.wanted.shared, mount)


def slow(seen: Examination) -> Iterator[Finding]:
    """fs.slow: so slow that something is wrong; all wrote at once, so that each had a part of what there is."""
    share = seen.share
    if share is None:
        return
    for node, trial in _trials(seen):
        rate = None if trial.rate is None else trial.rate * max(1, share.writers)
        said = []
        if rate is not None and rate < _SLOW_RATE:
            said.append(f"writing: {rate / 1e6:.1f} MB/s at most, in two tries")
        if trial.fsync is not None and trial.fsync > _SLOW_SYNC:
            said.append(f"fsync of a small file: {trial.fsync:.1f} s, the best of three")
        if said:
            yield _slow(seen, node, said)


def _slow(seen: Examination, node: str, said: list[str]) -> Finding:
    mount = nfs.mounted(seen, node)
    away = mount.source if mount and mount.shared else seen.wanted.shared
    return Finding(
        id="fs.slow",
        status="warn",
        nodes=(node,),
        summary=f"{seen.wanted.shared} is very slow: checkpoints will hold the run up",
        evidence="\n".join(said),
        cause="its disk or the way to it is busy, failing, or of another kind than meant",
        fix=(f"see what is busy where {away} lies: iostat -x 2   and the network towards it",),
        blast_radius="nothing",
    )


def retrans(seen: Examination) -> Iterator[Finding]:
    """fs.retrans: a good part of all calls to the NFS server had to be sent again."""
    for node, health in seen.health.items():
        mount, calls = nfs.mounted(seen, node), health.storage.calls
        told = calls.get(mount.target) if mount and calls is not None and nfs.is_nfs(mount) else None
        if mount is None or told is None or told.made < _ENOUGH_CALLS or told.again < told.made * _RESENT:
            continue
        server = mount.source.rpartition(":")[0]
        yield Finding(
            id="fs.retrans",
            status="warn",
            nodes=(node,),
            summary=f"calls to {server} for {seen.wanted.shared} are sent again and again",
            evidence=f"{told.again} of {told.made} ({told.again / told.made:.1%}) since it was mounted\n"
            f"{mount.source} on {mount.target} type {mount.fstype}",
            cause="packets are lost on the way, or the server is overloaded or was away for long",
            fix=(
                "clusterft doctor --only network   tries the way",
                f"on {server}, twice while it is in use: nstat -az TcpRetransSegs; cat /proc/net/rpc/nfsd",
            ),
            blast_radius="nothing: it only looks",
        )


def figures(seen: Examination, share: Share) -> str:
    """In a few words: from where, and how soon a file is seen on the other nodes."""
    times = [sight.seconds for trial in share.trials.values() for sight in trial.seen.values()]
    mounts = [mount for mount in (nfs.mounted(seen, node) for node in share.trials) if mount and mount.shared]
    words = []
    if mounts:
        version = next((one[5:] for one in mounts[0].options.split(",") if one.startswith("vers=")), "")
        words.append(f"{'nfs' if version else mounts[0].fstype}{version} {mounts[0].source}")
    if times:
        words.append(f"{max(max(times) * 1000, 1):.0f} ms to be seen")
    return ", ".join(words)


def _trials(seen: Examination) -> Iterator[tuple[str, Trial]]:
    for node, trial in (seen.share.trials if seen.share else {}).items():
        if node in seen.survey.facts and not trial.hung:
            yield node, trial


def _as_owner(seen: Examination, trial: Trial) -> bool:
    return seen.wanted.owner is None or (trial.uid, trial.gid) == seen.wanted.owner


def _unwritable(seen: Examination, node: str) -> bool:
    """By the shell's own test, where the SSH user is the run's user."""
    facts, look = seen.survey.facts.get(node), seen.health[node].storage.look
    if facts is None or look is None or look.state not in ("ok", "denied"):
        return False
    disk = next((one for one in facts.disks if one.directory == seen.wanted.shared), None)
    owner = seen.wanted.owner if seen.wanted.contained else None
    same = owner is None or (facts.uid, facts.gid) == owner
    return same and disk is not None and not disk.writable


def _frozen(seen: Examination, node: str) -> bool:
    """Mounted to be read only, which os.ro-fs tells."""
    mount = nfs.mounted(seen, node)
    return mount is not None and mount.read_only
