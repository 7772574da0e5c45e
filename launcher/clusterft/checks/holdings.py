"""Checks of what a job reads from the nodes' own disks: the same on all, as rank 0 alone lists it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote

from clusterft.checks.sizes import about
from clusterft.facts.holdings import MOST, Holding
from clusterft.findings import Finding

_ID = "data.differs"
_WHY = {
    "full": f"there are more than {MOST:,} files, which are not counted",
    "cut": "counting its files took too long",
    "closed": "not all of it could be read",
}


def found(
    nodes: Sequence[str],
    held: Mapping[str, Mapping[str, Holding]],
    addresses: Mapping[str, str],
) -> Iterator[Finding]:
    """data.differs: for each path, the nodes that are not as most are; `nodes` begins with the head."""
    for path in dict.fromkeys(path for of_node in held.values() for path in of_node):
        there = {node: held[node][path] for node in nodes if path in held.get(node, {})}
        yield from _unread(path, there)
        known = {node: one for node, one in there.items() if one.state in ("whole", "absent")}
        yield from _unlike(path, known, addresses)


def _unread(path: str, there: Mapping[str, Holding]) -> Iterator[Finding]:
    for node, one in there.items():
        if one.state in _WHY:
            summary = f"whether {path} is the same on all nodes is not known: {_WHY[one.state]}"
            yield Finding(_ID, "unknown", (node,), summary)


def _unlike(path: str, known: Mapping[str, Holding], addresses: Mapping[str, str]) -> Iterator[Finding]:
    known = _filled(known)
    usual = _usual(list(known.values()))
    if usual is None:
        yield from (_absent(path, node, None, "") for node in known)
        return
    good, head = next(node for node, one in known.items() if one == usual), next(iter(known))
    for node, one in known.items():
        if one.state == "absent":
            yield _absent(path, node, good, _evidence(known))
        elif one != usual and (one.files, one.bytes) == (usual.files, usual.bytes):
            many = Counter(known.values())
            yield _other(path, node, good, _evidence(known), addresses, tied=many[one] == many[usual])
        elif one != usual:
            words, breaks = _apart(path, node, one, usual, leads=node == head)
            fix: tuple[str, ...] = (
                f"on {node}: rsync -a {addresses.get(good, good)}:{_inside(path)} {_inside(path)}",
            )
            if one.files > usual.files:
                fix = (f"{fix[0]} --delete   which takes away what {good} has not; or bring the others to its",)
            elif one.files < usual.files:
                fix = (_push(path), *fix)
            yield Finding(
                id=_ID,
                status="fail" if breaks else "warn",
                nodes=(node,),
                summary=words,
                evidence=_evidence(known),
                cause="rank 0 lists the files for all ranks; each rank then reads them from its own node's disk",
                fix=fix,
                blast_radius=path,
            )


def _filled(known: Mapping[str, Holding]) -> Mapping[str, Holding]:
    """Where no samples came, content is taken for the usual one: nothing is said of it."""
    sums = Counter(one.sum for one in known.values() if one.sum)
    usual = sums.most_common(1)[0][0] if sums else ""
    return {
        node: replace(one, sum=usual) if one.state == "whole" and not one.sum else one
        for node, one in known.items()
    }


def _other(path: str, node: str, good: str, evidence: str, addresses: Mapping[str, str], *, tied: bool) -> Finding:
    """Files of the same sizes with other bytes in them, which no listing shows."""
    whole = quote(path)
    copy = f"on {node}: rsync -a --checksum {addresses.get(good, good)}:{whole} {quote(_parent(path))}"
    sure = f"on both: sha256sum of its files, beside what its author gives; the right one is copied: {copy}"
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=f"{path} has other content on {node} than on {good if tied else 'other nodes'}, in files of the "
        "same sizes",
        evidence=evidence,
        cause="a copy that went wrong or broke off, a disk that returns other bytes, or another version of it; "
        "which of the two is right is not known" if tied else
        "a copy that went wrong or broke off, a disk that returns other bytes, or another version of it",
        fix=(sure if tied else copy,),
        blast_radius=path,
    )  # fmt: skip


def _apart(path: str, node: str, one: Holding, usual: Holding, *, leads: bool) -> tuple[str, bool]:
    """In words; and whether a rank will miss a file that rank 0 lists."""
    apart = abs(one.files - usual.files)
    files = f"{apart:,} file{'' if apart == 1 else 's'}"
    if one.files < usual.files:
        return f"{node} has {files} less in {path} than other nodes", not leads
    if one.files > usual.files:
        return f"{node} has {files} more in {path} than other nodes", leads
    return f"{node} has as many files in {path} as other nodes, and they are of another size", False


def _usual(ones: list[Holding]) -> Holding | None:
    """What most nodes have; of as many the head's, whose list of files all ranks go by."""
    whole = [one for one in ones if one.state == "whole"]
    return Counter(whole).most_common(1)[0][0] if whole else None


def _absent(path: str, node: str, good: str | None, evidence: str) -> Finding:
    return Finding(
        id=_ID,
        status="fail",
        nodes=(node,),
        summary=f"{path}, which the job reads, is not there",
        evidence=evidence,
        cause="it is on another node's own disk, and not in the shared dir" if good else "no node has it",
        fix=(_push(path), "or put it into the shared dir, and name it there in job.yaml"),
        blast_radius=path,
    )


def _evidence(known: Mapping[str, Holding]) -> str:
    """Who has how much, nodes that are alike in one line."""
    alike: dict[Holding, list[str]] = {}
    for node, one in known.items():
        alike.setdefault(one, []).append(node)
    return "\n".join(f"{' '.join(nodes)}: {_much(one)}" for one, nodes in alike.items())


def _much(one: Holding) -> str:
    if one.state == "absent":
        return "not there"
    shown = f" ({about(one.bytes)})" if one.bytes >= 10**6 else ""
    content = f", samples of its content: {one.sum[:12]}" if one.sum else ""
    return f"{one.files:,} files, {one.bytes:,} bytes{shown}{content}"


def _push(path: str) -> str:
    return f"clusterft push {quote(path)}   where this machine has all of it"


def _parent(path: str) -> str:
    return (path.rstrip("/").rpartition("/")[0] or "") + "/"


def _inside(path: str) -> str:
    """As rsync takes what is in it, and not the folder itself; of a file it is refused with clear words."""
    return quote(path.rstrip("/") + "/")
