"""The storage layer of doctor's look at a node: what is asked, and what the answers say. Pure.

The shared directory is looked at by a program that is given up on, as its server may be gone. What is told of NFS
is told from both sides: of a node as a client, and as the server that it may be.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from clusterft.facts import probe
from clusterft.facts.frames import whole
from clusterft.facts.health.asked import Asked
from clusterft.facts.mounted import Mounted, over
from clusterft.facts.storage import Mount, mounts, plain

_PATIENCE = 7  # seconds for a look at the shared directory
_PATHS = 4  # seconds for a look at what a job names beside it
_MANY = 32  # such paths; a job names a few
_REACH = 4  # seconds for a server to take a connection
_PORT = 2049
# Of each NFS mount its target, and of all operations how many were asked for and how often they were sent.
_CALLS = (
    '/^device / {if (at) print at, n, s; at = ""; n = s = 0; if ($0 ~ / fstype nfs4? /) at = $5} '
    "/^[ \\t]+[A-Z_0-9]+: / {n += $2; s += $3} END {if (at) print at, n, s}"
)
State = Literal["ok", "hung", "missing", "stale", "denied", "broken"]
Answer = Literal["there", "absent", "waits"]  # of a path; waits: whoever touches it did not come back in time


@dataclass(frozen=True, slots=True)
class Look:
    """What `ls` and `cd` came to."""

    state: State
    words: str = ""
    real: str = ""  # where the path leads, links followed
    mode: str = ""  # drwxr-xr-x
    owner: tuple[int, int] | None = None
    holds: bool = False  # anything at all


class FstabLine(NamedTuple):
    """What shall be mounted at boot."""

    source: str
    target: str
    fstype: str
    options: str


class Client(NamedTuple):
    """One client of an exported directory, as the exports name it."""

    name: str  # an address, a network, a pattern, a host
    options: str


class Export(NamedTuple):
    """One directory that is lent to others."""

    path: str
    clients: tuple[Client, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """A node as an NFS server."""

    threads: int | None  # of the kernel's server; 0: it is stopped
    versions: frozenset[str] | None  # 3, 4, 4.1, 4.2; None where only root may know
    written: tuple[Export, ...]  # /etc/exports
    loaded: tuple[Export, ...] | None  # what `exportfs` made of it last


class Dialled(NamedTuple):
    """A server's NFS port, tried from this node."""

    server: str
    outcome: Literal["open", "refused", "silent", "failed"]
    words: str


class Calls(NamedTuple):
    """What an NFS mount has asked of its server since it was mounted."""

    made: int
    again: int  # sent once more, as no answer came in time or the connection broke


@dataclass(frozen=True, slots=True)
class StorageHealth:
    """What could be read; None where it could not."""

    look: Look | None = None  # of the shared directory
    fstab: tuple[FstabLine, ...] | None = None
    nfs_client: bool | None = None  # mount.nfs is installed
    systemd: bool = False
    served: Served | None = None  # None: no NFS server is installed
    dialled: tuple[Dialled, ...] = ()
    calls: Mapping[str, Calls] | None = None  # target of an NFS mount -> of it
    place: Mounted | None = None  # what the shared directory lies on, and which directory of that is mounted
    paths: Mapping[str, Answer] = field(
        default_factory=dict
    )  # that the job names beside it; who says nothing lacks
    under: Mapping[str, Mounted] = field(default_factory=dict)  # path -> the mount that it lies on
    mounts: tuple[Mount, ...] | None = None  # after the look: an automount is there once it has been touched


def look_text(directory: str, seconds: int = _PATIENCE) -> str:
    """Commands for a look; they need the shell functions of the probe. What hangs on / too is the node itself."""
    steps = (
        'ls -ldn / >/dev/null; echo began; ls -ldn -- "$1" && cd -P -- "$1" && { printf "real %s\\n" "$PWD"; '
        'ls -f . | while read -r n; do case $n in .|..) ;; *) echo holds; break ;; esac; done; }; echo "ended"'
    )
    return f"hear {seconds} sh -c {shlex.quote(steps)} sh {shlex.quote(directory)}"


def look(text: str) -> Look | None:
    """What it printed."""
    lines = text.splitlines()
    if "began" not in lines:
        return None
    del lines[: lines.index("began")]
    if lines[-1] != "ended":
        return Look("hung")
    said = lines[1:-1]
    real = next((line[5:] for line in said if line.startswith("real ")), "")
    entry = next((line for line in said if re.match(r"[dlbcps-][rwxsStTl-]{9}", line)), "")
    fields = entry.split()
    numbers = [whole(word) for word in fields[2:4]]
    owner = (numbers[0], numbers[1]) if len(numbers) == 2 and None not in numbers else None
    if real:
        return Look("ok", "", real, fields[0] if fields else "", owner, "holds" in said)  # type: ignore[arg-type]
    words = next((line for line in said if line != entry), "")
    return Look(_state(words), words, "", fields[0] if fields else "", owner)  # type: ignore[arg-type]


def paths_text(paths: Sequence[str], seconds: int = _PATHS) -> str:
    """Commands for a look at each path, beside each other; like `look_text`, each is given up by itself."""
    steps = (
        'ls -ldn / >/dev/null; echo "began $2"; s=absent; ls -ldn -- "$1" >/dev/null 2>&1 && s=there; '
        'if [ -d "$1" ]; then ls -f -- "$1" 2>/dev/null | while read -r n; do break; done; '
        'elif [ -f "$1" ]; then head -c 1 -- "$1" >/dev/null 2>&1; fi; echo "$s $2"'
    )
    one = f"hear {seconds} sh -c {shlex.quote(steps)} sh"
    return "\n".join((*(f"( {one} {shlex.quote(path)} {k} ) &" for k, path in enumerate(paths[:_MANY])), "wait"))


def answers(text: str, paths: Sequence[str]) -> dict[str, Answer]:
    """What it printed: what began and did not end waits."""
    found: dict[str, Answer] = {}
    for word, number in re.findall(r"^(began|there|absent) (\d{1,3})$", text, re.MULTILINE):
        if int(number) < len(paths):
            path = paths[int(number)]
            if word != "began":
                found[path] = "there" if word == "there" else "absent"
            else:
                found.setdefault(path, "waits")
    return found


def sections(asked: Asked) -> dict[str, str]:
    """What ends soon."""
    return {
        # Of what is not NFS only that it is there: options of other kinds may hold a password.
        "storage.fstab": "echo seen; awk '$1 !~ /^#/ && NF >= 3 {print $1, $2, $3, ($3 ~ /^nfs/ ? $4 : \"-\")}' "
        "/etc/fstab",
        "storage.place": f"d={shlex.quote(_escaped(asked.shared or ''))}; export d; "
        'awk \'$5 == "/" || index(ENVIRON["d"] "/", $5 "/") == 1\' /proc/self/mountinfo',
        "storage.under": "; ".join(
            f"echo under {k}; d={shlex.quote(_escaped(path))}; export d; "
            'awk \'$5 == "/" || index(ENVIRON["d"] "/", $5 "/") == 1\' /proc/self/mountinfo'
            for k, path in enumerate(asked.paths[:_MANY])
        )
        or ":",
        "storage.nfs": "[ -d /sbin ] && echo seen; command -v mount.nfs; "
        "[ -d /run/systemd/system ] && echo systemd",
        "storage.server": "command -v rpc.nfsd exportfs | head -n 1; [ -r /proc/net/rpc/nfsd ] && "
        "grep '^th ' /proc/net/rpc/nfsd",
        "storage.versions": "cat /proc/fs/nfsd/versions",
        "storage.exports": "cat /etc/exports; cat /etc/exports.d/*.exports",
        "storage.calls": f"[ -r /proc/self/mountstats ] && echo seen && awk '{_CALLS}' /proc/self/mountstats",
        "storage.loaded": "[ -r /var/lib/nfs/etab ] && echo seen && cat /var/lib/nfs/etab",
    }


def stages(asked: Asked) -> dict[str, str]:
    """What may take seconds."""
    named = {"storage.paths": paths_text(asked.paths)} if asked.paths else {}
    if not asked.shared:
        return named
    after = f"{look_text(asked.shared)}\necho mounts; {probe.MOUNTS}"
    return {**named, "storage.look": after, "storage.dial": _dial_text(asked.shared)}


def parse(said: Mapping[str, str], asked: Asked) -> StorageHealth:
    """From the sections' texts."""
    nfs = said["storage.nfs"].splitlines()
    server = said["storage.server"].splitlines()
    served = None
    if server:
        threads = re.search(r"^th (\d+)", said["storage.server"], re.MULTILINE)
        served = Served(
            threads=int(threads.group(1)) if threads else 0,
            versions=_versions(said["storage.versions"]),
            written=exports(said["storage.exports"]),
            loaded=exports(said["storage.loaded"].partition("\n")[2]) if said["storage.loaded"] else None,
        )
    looked, _, table = said.get("storage.look", "").rpartition("mounts\n")
    return StorageHealth(
        look=look(looked),
        place=over(said["storage.place"].splitlines()) if asked.shared else None,
        mounts=mounts(table) if looked else None,
        fstab=_fstab(said["storage.fstab"]),
        nfs_client=any(line.endswith("/mount.nfs") for line in nfs) if "seen" in nfs else None,
        systemd="systemd" in nfs,
        served=served,
        calls=_calls(said["storage.calls"]),
        dialled=_dialled(said.get("storage.dial", "")),
        paths=answers(said.get("storage.paths", ""), asked.paths),
        under=_under(said["storage.under"], asked.paths),
    )


def _under(text: str, paths: Sequence[str]) -> dict[str, Mounted]:
    """Of each path, in the same order, the nearest mount."""
    parts = re.split(r"^under (\d{1,3})$", text, flags=re.MULTILINE)
    found = {}
    for number, lines in zip(parts[1::2], parts[2::2], strict=True):
        mounted = over(lines.splitlines())
        if mounted is not None and int(number) < len(paths):
            found[paths[int(number)]] = mounted
    return found


def exports(text: str) -> tuple[Export, ...]:
    """The lines of /etc/exports, or of etab, which has one client a line and joins those of one directory."""
    found: dict[str, list[Client]] = {}
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        bare = line.split("#")[0].strip()
        match = re.match(r'("[^"]+"|\S+)\s*(.*)', bare)
        if not match:
            continue
        clients = found.setdefault(_unquoted(match.group(1)), [])
        usual = ""
        for word in match.group(2).split():
            if word.startswith("-"):
                usual = word[1:]
                continue
            name, _, options = word.partition("(")
            clients.append(Client(name or "*", options.rstrip(")") or usual))
        if not match.group(2):
            clients.append(Client("*", ""))
    return tuple(Export(path, tuple(clients)) for path, clients in found.items())


def _dial_text(directory: str) -> str:
    """The NFS servers that this directory is, or should be, mounted from: is their port open from here?"""
    return f"""
d={shlex.quote(_escaped(directory))}; export d
try() {{
  if command -v bash >/dev/null; then hear {_REACH} bash -c 'exec 3<>"/dev/tcp/$0/{_PORT}" && echo open' "$1"
  elif command -v nc >/dev/null; then hear {_REACH} nc -z -w 3 "$1" {_PORT} && echo open
  else echo untried; fi
}}
for s in $(cat /proc/mounts /etc/fstab | awk '$3 ~ /^nfs4?$/ && index(ENVIRON["d"] "/", $2 "/") == 1 {{
  s = $1; sub(/:\\/.*/, "", s); gsub(/[][]/, "", s)
  if (!(s in seen)) print s; seen[s] = 1 }}' | head -n 2); do
  printf 'server %s\\n' "$s"; try "$s"
done"""


def _escaped(path: str) -> str:
    """As fstab and the kernel's table of mounts write a path."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match.group()):03o}", path)


def _dialled(text: str) -> tuple[Dialled, ...]:
    found = []
    for block in re.split(r"^server ", text, flags=re.MULTILINE)[1:]:
        server, *lines = block.splitlines()
        words = " ".join(lines).strip()
        if words == "untried":
            continue
        outcome: Literal["open", "refused", "silent", "failed"] = "failed"
        if "open" in lines:
            outcome, words = "open", ""
        elif "refused" in words:
            outcome = "refused"
        elif not words or "timed out" in words:
            outcome = "silent"
        found.append(Dialled(server, outcome, words))
    return tuple(found)


def _state(words: str) -> State:
    if "No such file" in words or "Not a directory" in words:
        return "missing"
    if "Stale" in words and "handle" in words:
        return "stale"
    return "denied" if "ermission denied" in words else "broken"


def _fstab(text: str) -> tuple[FstabLine, ...] | None:
    first, *lines = text.splitlines() or [""]
    rows = [[plain(word) for word in line.split(" ")] for line in lines]
    return tuple(FstabLine(*row) for row in rows if len(row) == 4) if first == "seen" else None


def _calls(text: str) -> dict[str, Calls] | None:
    first, *lines = text.splitlines() or [""]
    if first != "seen":
        return None
    rows = [re.fullmatch(r"(\S+) (\d{1,18}) (\d{1,18})", line) for line in lines]
    return {plain(row[1]): Calls(int(row[2]), max(0, int(row[3]) - int(row[2]))) for row in rows if row}


def _versions(text: str) -> frozenset[str] | None:
    words = text.split()
    return frozenset(word[1:] for word in words if word.startswith("+")) if words else None


def _unquoted(word: str) -> str:
    return word[1:-1] if word.startswith('"') else plain(word)
