"""Where the shared directory comes from, whom its server lets in, and the lines that bring it to a node. Pure.

The server's own word counts where it is a node; elsewhere, what the other nodes' mounts and fstab say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from clusterft.checks.examination import Examination
from clusterft.checks.ways import walls
from clusterft.checks.ways.walls import Opening
from clusterft.facts import Mount, NodeFacts
from clusterft.facts.health.storage import Export, FstabLine, Served, StorageHealth
from clusterft.facts.storage import over

_PORT, _SAMBA = 2049, frozenset({139, 445})
_USUAL = "rw,sync,no_subtree_check"
# Of a mount's options those that another node needs too; the rest is negotiated.
_KEPT = ("vers=", "nfsvers=", "port=", "sec=krb5", "nconnect=", "soft", "actimeo=", "noac")
_TOOLS = {"debian": "sudo apt-get install -y nfs-common", "fedora": "sudo dnf install -y nfs-utils"}
_FAMILIES = {"debian": "debian", "ubuntu": "debian", "fedora": "fedora", "rhel": "fedora", "centos": "fedora"}


@dataclass(frozen=True, slots=True)
class Origin:
    """The NFS directory that is, or should be, the shared one."""

    server: str  # as its clients name it
    path: str  # as they ask for it
    target: str  # where it is mounted
    options: tuple[str, ...]
    told: str  # who says so
    host: str = ""  # the node that is this server, if one is
    exported: str = ""  # the path on that node

    @property
    def source(self) -> str:
        """As mount wants it."""
        return f"[{self.server}]:{self.path}" if ":" in self.server else f"{self.server}:{self.path}"

    @property
    def mount(self) -> str:
        """The command; root alone may."""
        options = f" -o {quote(','.join(self.options))}" if self.options else ""
        target = quote(self.target)
        return f"sudo mkdir -p {target} && sudo mount -t nfs{options} {quote(self.source)} {target}"

    @property
    def fstab(self) -> str:
        """The line with which it is there after the next boot too."""
        return f"{field(self.source)} {field(self.target)} nfs {','.join((*self.options, '_netdev'))} 0 0"


def field(path: str) -> str:
    """A path as fstab and exports want it: blanks and the like by three octal digits."""
    return re.sub(r"[\s\\#\"]", lambda match: f"\\{ord(match.group()):03o}", path)


def appended(line: str, file: str) -> str:
    """The command that adds a line to a file of root's; some shells' echo reads backslashes."""
    says = "printf '%s\\n'" if "\\" in line else "echo"
    return f"{says} {quote(line)} | sudo tee -a {file}"


def mounted(seen: Examination, node: str) -> Mount | None:
    """What the shared directory lies on, on a node; links are followed where that is known."""
    facts, health = seen.survey.facts.get(node), seen.health.get(node)
    mounts = (health.storage.mounts if health else None) or (facts.mounts if facts else None)
    if mounts is None or seen.wanted.shared is None:
        return None
    look = health.storage.look if health else None
    return over(mounts, look.real if look and look.real else seen.wanted.shared)


def is_nfs(mount: Mount | None) -> bool:
    """Whether the kernel mounts it from a server by NFS."""
    return mount is not None and mount.fstype in ("nfs", "nfs4")


def in_fstab(seen: Examination, node: str) -> FstabLine | None:
    """The line of its fstab for the shared directory, or for one that it lies in."""
    health = seen.health.get(node)
    lines = [line for line in (health.storage.fstab or () if health else ()) if line.target != "/"]
    directory = f"{seen.wanted.shared}/"
    over_it = [line for line in lines if directory.startswith(line.target.rstrip("/") + "/")]
    return max(over_it, key=lambda line: len(line.target)) if over_it else None


def origin(seen: Examination) -> Origin | None:
    """From the first node that has it mounted, else from an fstab, else from a node that exports it."""
    return next(_told(seen), None)


def addresses(seen: Examination, node: str) -> tuple[str, ...]:
    """Those that others may see a node by: what the hostfile says first."""
    entry = next(one for one in seen.survey.cluster.active if one.name == node)
    facts = seen.survey.facts.get(node)
    own = [one.ip for one in facts.addresses or ()] if facts else []
    known = (entry.addr, seen.survey.contacts.get(node), *own)
    return tuple(dict.fromkeys(one for one in known if one and not one.startswith(("127.", "::1", "fe80"))))


def admitted(seen: Examination, node: str, of: Origin) -> bool | None:
    """Whether the server, a node, lets this one in; None where its exports do not tell."""
    served = _served(seen, of.host)
    if served is None:
        return None
    return _admits(served.loaded if served.loaded is not None else served.written, of, addresses(seen, node))


def in_file(seen: Examination, node: str, of: Origin) -> bool | None:
    """The same by /etc/exports, which may not have been taken up yet."""
    served = _served(seen, of.host)
    return _admits(served.written, of, addresses(seen, node)) if served else None


def lending(seen: Examination, of: Origin, nodes: tuple[str, ...]) -> str:
    """The command, for the server, that lets these nodes in."""
    if all(in_file(seen, node, of) for node in nodes):
        return f"on {of.host}: sudo exportfs -ra"
    served = _served(seen, of.host)
    line = next((one for one in served.written if one.path == of.exported), None) if served else None
    usual = next((client.options for client in line.clients if client.options), "") if line else ""
    options = usual or _USUAL
    clients = " ".join(f"{client(seen, node)}({options})" for node in nodes)
    return f"on {of.host}: {appended(f'{field(of.exported)} {clients}', '/etc/exports')} && sudo exportfs -ra"


def client(seen: Examination, node: str) -> str:
    """What the exports should name a node by."""
    return next(iter(addresses(seen, node)), node)


def bringing(seen: Examination, node: str, of: Origin) -> Iterator[str]:
    """The commands, for a node, that mount the shared directory there now and at every boot."""
    health, facts = seen.health.get(node), seen.survey.facts.get(node)
    storage = health.storage if health else StorageHealth()
    if storage.nfs_client is False:
        yield _tools(facts)
    if storage.look and storage.look.holds:
        yield f"ls -A {quote(of.target)}   (a mount hides what lies there: move it away first if it is needed)"
    line = in_fstab(seen, node)
    if line and _same(line, of):
        target = quote(of.target)
        yield f"sudo mkdir -p {target} && sudo mount {target}   (its line is in /etc/fstab)"
        return
    yield of.mount
    if line:
        yield f"and in /etc/fstab, instead of `{' '.join(field(word) for word in line)}`: {of.fstab}"
    else:
        yield appended(of.fstab, "/etc/fstab")


def again(seen: Examination, node: str, mount: Mount) -> tuple[str, ...]:
    """The commands that let go of a mount and make it anew."""
    line = in_fstab(seen, node)
    options, target = kept(mount.options), quote(mount.target)
    words = f" -o {quote(','.join(options))}" if options else ""
    short = line is not None and line.source == mount.source and line.target == mount.target
    fresh = target if short else f"-t nfs{words} {quote(mount.source)} {target}"
    return (f"sudo umount -f -l {target} && sudo mount {fresh}",)


def starting(seen: Examination, host: str) -> str:
    """The command that starts the server on a node."""
    health = seen.health.get(host)
    if health and not health.storage.systemd:
        return f"on {host}: sudo exportfs -ra && sudo rpc.nfsd 8"
    return f"on {host}: sudo systemctl enable --now nfs-server"


def opening(seen: Examination, host: str, node: str) -> tuple[str, ...]:
    """What lets a node through the host's own firewall."""
    return walls.steps(seen, Opening(host, (_network(seen, node),), (2049, 2049)))


def server_of(mount: Mount) -> str:
    """The server's name or address, out of server:/path."""
    return mount.source.partition(":/")[0].strip("[]")


def host_of(seen: Examination, server: str) -> str:
    """The node that is this server, if one is."""
    for node in seen.nodes:
        facts = seen.survey.facts.get(node)
        names = (node, facts.hostname if facts else None, *addresses(seen, node))
        if server in names:
            return node
    return ""


def may_serve(seen: Examination, node: str, having: list[str]) -> bool:
    """Whether the others may have it from this node, which then has the directory itself, by whatever name."""
    facts = seen.survey.facts.get(node)
    listening = facts.listening if facts and facts.listening else frozenset[int]()
    mounts = [mount for mount in (mounted(seen, other) for other in having) if mount]
    samba = any(mount.fstype in ("cifs", "smb3") for mount in mounts)
    if _PORT in listening or (samba and _SAMBA & listening):
        return True
    own = {node, facts.hostname if facts else None, *addresses(seen, node)}
    return any(own & _hosts(mount.source) for mount in mounts)


def _hosts(source: str) -> set[str]:
    """What may be a host in a mount's source: user@host:/path, //host/name, host1,host2:/name."""
    words = set(re.split(r"[/,@\\\[\]]+|:(?![0-9a-fA-F]*:)", source)) | set(re.findall(r"\[([^]]+)\]", source))
    return words | {word.partition(".")[0] for word in words if not word[:1].isdigit()}


def offered(seen: Examination, of: Origin) -> frozenset[str] | None:
    """The versions of NFS that the server, a node, speaks."""
    served = _served(seen, of.host)
    return served.versions if served else None


def _network(seen: Examination, node: str) -> str:
    """The subnet from which a node comes, else its address alone."""
    facts, own = seen.survey.facts.get(node), client(seen, node)
    found = (str(one.network) for one in (facts.addresses or () if facts else ()) if one.ip == own)
    return next(found, own)


def origin_of(seen: Examination, nodes: tuple[str, ...]) -> Origin | None:
    """What these nodes have mounted by NFS, where it is right."""
    return next(_mounts(seen, nodes), None)


def _mounts(seen: Examination, nodes: tuple[str, ...]) -> Iterator[Origin]:
    for node in nodes:
        mount = mounted(seen, node)
        if mount is not None and is_nfs(mount):
            server, path = server_of(mount), "/" + mount.source.partition(":/")[2]
            words = f"{node}: {mount.source} on {mount.target} type {mount.fstype} ({mount.options})"
            yield _origin(seen, Origin(server, path, mount.target, kept(mount.options), words))


def _told(seen: Examination) -> Iterator[Origin]:
    yield from _mounts(seen, seen.nodes)
    for node in seen.nodes:
        line = in_fstab(seen, node)
        if line and line.fstype in ("nfs", "nfs4") and ":/" in line.source:
            server, _, path = line.source.partition(":/")
            words = f"{node}, /etc/fstab: {' '.join(line)}"
            found = Origin(server.strip("[]"), f"/{path}", line.target, kept(line.options), words)
            yield _origin(seen, found)
    yield from _exported(seen)


def _exported(seen: Examination) -> Iterator[Origin]:
    directory = seen.wanted.shared or ""
    for node in seen.nodes:
        served = _served(seen, node)
        for one in (*served.written, *(served.loaded or ())) if served else ():
            if (directory + "/").startswith(one.path.rstrip("/") + "/"):
                words = (
                    f"{node}, /etc/exports: {one.path} {' '.join(f'{name}({how})' for name, how in one.clients)}"
                )
                path = "/" if _is_root(one) else one.path
                yield Origin(client(seen, node), path, one.path, (), words, node, one.path)


def _origin(seen: Examination, found: Origin) -> Origin:
    """The same with the node that serves it, and under which path."""
    host = host_of(seen, found.server)
    served = _served(seen, host)
    exported = found.path
    for one in served.written if served else ():
        if _is_root(one):
            exported = (one.path.rstrip("/") + found.path).rstrip("/") or "/"
    return Origin(found.server, found.path, found.target, found.options, found.told, host, exported)


def _served(seen: Examination, node: str) -> Served | None:
    health = seen.health.get(node)
    return health.storage.served if health else None


def _is_root(one: Export) -> bool:
    """Whether clients see it as / : version 4 calls that fsid=0."""
    return any({"fsid=0", "fsid=root"} & set(client.options.split(",")) for client in one.clients)


def _admits(exports: tuple[Export, ...], of: Origin, ips: tuple[str, ...]) -> bool | None:
    over_it = [one for one in exports if (of.exported + "/").startswith(one.path.rstrip("/") + "/")]
    verdicts = [_matches(client.name, ips) for one in over_it for client in one.clients]
    if True in verdicts:
        return True
    return None if None in verdicts or not ips else False


def _matches(name: str, ips: tuple[str, ...]) -> bool | None:
    """None for a host's name or a pattern, which only the server can resolve."""
    if name in ("*", "0.0.0.0/0", "::/0"):
        return True
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None
    return any(ipaddress.ip_address(ip) in network for ip in ips)


def kept(options: str) -> tuple[str, ...]:
    """Of a mount's options, those that go with the directory wherever it is mounted."""
    return tuple(dict.fromkeys(one for one in options.split(",") if one.startswith(_KEPT)))


def _same(line: FstabLine, of: Origin) -> bool:
    """Whether an fstab line asks for what the others have; one that names no version takes any."""
    ours, theirs = (
        {one for one in kept(words) if "vers=" in one} for words in (line.options, ",".join(of.options))
    )
    plain = {one.replace("nfsvers=", "vers=") for one in ours}
    return line.source == of.source and line.target == of.target and (not plain or not theirs or plain == theirs)


def _tools(facts: NodeFacts | None) -> str:
    families = facts.system.family if facts and facts.system else ()
    known = next((_FAMILIES[one] for one in families if one in _FAMILIES), "")
    return _TOOLS.get(known, "install the NFS client: nfs-common on Debian and Ubuntu, nfs-utils elsewhere")
