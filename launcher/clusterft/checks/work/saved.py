"""A DeepSpeed checkpoint that all nodes have saved and read back through the shared directory. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from shlex import quote

from clusterft.checks.examination import Examination
from clusterft.facts.deep import Saving
from clusterft.findings import Finding

# What a filesystem answers -> the id that explains it.
_BY_ERRNO = {
    errno.ENOSPC: "os.disk-full",
    errno.EDQUOT: "os.disk-full",
    errno.EROFS: "os.ro-fs",
    errno.ESTALE: "fs.stale",
    errno.ENOLCK: "fs.lock",
    errno.EACCES: "fs.squash",
    errno.EPERM: "fs.squash",
}
_ROOM = 1 << 20  # bytes: less than that is none
_RACES = (errno.EEXIST, errno.ENOTEMPTY)
_MEETING = ("store", "group")  # for the network's checks to tell


def through_the_share(seen: Examination) -> Iterator[Finding]:
    """fs.not-shared, ckpt.race, ckpt.latest, and what the filesystem itself has refused."""
    if not seen.deep or not seen.deep.savings:
        return
    savings, place = seen.deep.savings, seen.deep.directory
    refused = [replace(one, errno=_number(one)) for one in savings.values() if _number(one) is not None]
    blind = [one for one in savings.values() if one.missing]
    if refused:
        yield from (_refused(one, place, seen) for one in refused)
    elif blind:
        yield _not_shared(savings, blind, place)
    else:
        yield from _odd(savings, place)


def _number(one: Saving) -> int | None:
    """What the filesystem answered; torch hides that a disk is full."""
    full = one.errno is None and one.free is not None and one.free < _ROOM
    return errno.ENOSPC if full else one.errno


def _refused(one: Saving, place: str, seen: Examination) -> Finding:
    shared = place.rpartition("/.clusterft/")[0]
    at = quote(shared)
    absent = one.errno in (errno.ENOENT, errno.ENOTDIR) and one.stage == "reach"
    race = one.errno in _RACES or (one.errno == errno.ENOENT and one.stage == "save")
    known = _BY_ERRNO.get(one.errno or 0)
    identity = "fs.not-shared" if absent else "ckpt.race" if race else known or "ckpt.latest"
    how = {"reach": "reach it", "save": "save into it", "see": "list it", "load": "read it back"}
    return Finding(
        id=identity,
        status="fail",
        nodes=(one.node,),
        summary=f"a checkpoint in {shared} fails here: it cannot {how.get(one.stage, 'use it')}",
        evidence=one.words + (f"\n{one.free:.0f} bytes are free" if one.free is not None else ""),
        cause="the shared dir is not there" if absent else "",
        fix=(f"on {one.node}: ls -ld {at}; findmnt -T {at}; df -h {at}",)
        + ((f"mount it on {one.node} as on {seen.nodes[0]}: findmnt -T {at}   there names what",) * absent),
        needs_root=absent,
        blast_radius=f"{shared} on that node",
    )


def _not_shared(savings: Mapping[str, Saving], blind: list[Saving], place: str) -> Finding:
    """Of two sides that do not see each other, the smaller one is called odd."""
    shared = place.rpartition("/.clusterft/")[0]
    sides: dict[tuple[str, ...], list[str]] = {}
    for one in savings.values():
        sides.setdefault(one.there, []).append(one.node)
    # The largest side is the rest; of equal ones that which has the head.
    rest = max(sides.values(), key=len)
    odd = tuple(name for name in savings if name not in rest)
    example = next((one for one in blind if one.node in odd), blind[0])
    return Finding(
        id="fs.not-shared",
        status="fail",
        nodes=odd or tuple(one.node for one in blind),
        summary=f"{shared} is another directory here than on {', '.join(rest)}: a checkpoint is torn",
        evidence=f"on {example.node} after all had saved: {', '.join(example.there) or 'nothing'}\n"
        f"missing: {', '.join(example.missing[:6])}",
        cause="the shared dir is not mounted, or not the same everywhere",
        fix=(
            f"on {rest[0]}: findmnt -T {quote(shared)}   names what is mounted there",
            f"on {odd[0] if odd else example.node}: mount the same at {shared}, with _netdev in /etc/fstab; "
            "look first that the directory is empty, as a mount hides what lies in it",
        ),
        needs_root=True,
        blast_radius=f"{shared} on that node",
    )


def _odd(savings: Mapping[str, Saving], place: str) -> Iterator[Finding]:
    """What failed without a word of the filesystem."""
    bad = [one for one in savings.values() if not one.ok and one.stage not in _MEETING]
    hung = [one for one in bad if one.late and one.stage in ("reach", "save", "see")]
    wrong = [one for one in bad if one.words == "other weights came back"]
    words = "\n".join(f"{one.node}: {one.words or one.stage}" for one in bad)
    shared = place.rpartition("/.clusterft/")[0]
    at = quote(shared)
    if hung:
        yield Finding(
            id="fs.hung",
            status="fail",
            nodes=tuple(one.node for one in hung),
            summary=f"a checkpoint in {shared} did not come to an end",
            evidence=words,
            cause="the file server does not answer, or very slowly",
            fix=(f"on {hung[0].node}: timeout 5 ls {at}; grep nfs /proc/mounts; findmnt -T {at}",),
        )
    elif wrong:
        yield Finding(
            id="ckpt.latest",
            status="fail",
            nodes=tuple(one.node for one in wrong),
            summary="a checkpoint that was read back holds other weights than were saved",
            evidence=words,
            fix=(f"on {wrong[0].node}: findmnt -T {at}   and look into what caches in between",),
        )
    elif bad:
        yield Finding(
            id="ckpt.latest",
            status="unknown",
            nodes=tuple(one.node for one in bad),
            summary="DeepSpeed could not be tried",
            evidence=words,
        )
