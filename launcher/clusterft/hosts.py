"""The hostfile: DeepSpeed's `NAME slots=N`, then `key=value` pairs of ours -> Cluster of Nodes.

Pure. Refuses whatever DeepSpeed's own unanchored pattern would silently skip or cut short, and names file,
line, column and text. Touches no network: names are not resolved here.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from clusterft.errors import InvalidFile, UsageError

Transport = Literal["ssh", "local"]
_KEYS = ("slots", "addr", "user", "port", "identity", "jump", "spare", "gpus", "transport")
# One name serves as a file name, a container name and a DeepSpeed host, so it stays plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*")+|"')  # a quote alone was never closed
# Plain words only: they end in files, command lines and other people's parsers.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?\Z")
_PLAIN = {
    "user": (re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\+-]*\Z"), "a user name"),
    "jump": (re.compile(r"[A-Za-z0-9_.\[][A-Za-z0-9_.@:/\[\],%+-]*\Z"), "a bastion, such as user@host:port"),
}
_LINE_END = re.compile(r"\r\n?|\n")  # no other break ends a line for DeepSpeed or an editor


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster, as the hostfile describes it."""

    name: str
    slots: int
    addr: str | None = None
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    jump: str | None = None
    spare: bool = False
    gpus: tuple[str, ...] = ()
    transport: Transport = "ssh"
    line: int = 0
    settled: bool = False  # addr is what `doctor --fix` has settled, and not the hostfile's word


@dataclass(frozen=True, slots=True)
class Cluster:
    """A hostfile made into objects; `notes` are remarks the user should read once."""

    name: str
    path: Path
    nodes: tuple[Node, ...]
    notes: tuple[str, ...] = ()

    @property
    def active(self) -> tuple[Node, ...]:
        """The nodes a run uses, in machine_rank order; the first is the head."""
        return tuple(node for node in self.nodes if not node.spare)

    def mustered(self) -> Cluster:
        """The same with its spares as active nodes: `up` prepares them too, so that they can step in."""
        return replace(self, nodes=tuple(replace(node, spare=False) for node in self.nodes))

    @property
    def all_local(self) -> bool:
        """Whether every active node is this machine."""
        return all(node.transport == "local" for node in self.active)


class _Token(NamedTuple):
    text: str
    column: int


class _Mistake(Exception):
    """A mistake at one token; the caller adds file and line."""

    def __init__(self, what: str, token: _Token, remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.token, self.remedy = what, token, remedy


def load(path: Path, *, name: str | None = None) -> Cluster:
    """Read and check a hostfile; every mistake in it is reported at once."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            "the hostfile does not exist",
            where=str(path),
            remedy="write one line per node, such as: gpu0 slots=8   (hostfiles/ has examples)",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the hostfile cannot be read: {error}", where=str(path)) from None
    if name is not None and not _NAME.match(name):
        # It becomes a directory under ~/.clusterft: `../x` would leave it.
        raise UsageError(f'"{name}" is not a cluster name', remedy="letters, digits, dot, dash, underscore")
    # A stem may hold anything; the name becomes a directory, a label and part of container names.
    derived = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "cluster"
    return parse(text, path=path, name=name or derived)


def parse(text: str, *, path: Path, name: str) -> Cluster:
    """Turn hostfile text into a Cluster, or raise InvalidFile with all mistakes."""
    nodes: list[Node] = []
    problems: list[UsageError] = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        tokens = [_Token(m.group(), m.start() + 1) for m in _TOKEN.finditer(_without_comment(line))]
        if not tokens:
            continue
        try:
            _closed_quotes(tokens)
            nodes.append(_node(tokens, number, {node.name: node.line for node in nodes}))
        except _Mistake as mistake:
            problems.append(_problem(mistake, path, number, line))
    if problems:
        raise InvalidFile(tuple(problems))
    if not any(not node.spare for node in nodes):
        raise UsageError(
            "the hostfile names no node" if not nodes else "every node is a spare, so none would train",
            where=str(path),
            remedy="add a line such as: gpu0 slots=8",
        )
    return Cluster(name=name, path=path, nodes=tuple(nodes), notes=_notes(nodes))


def deepspeed_hostfile(nodes: tuple[Node, ...]) -> str:
    """The text given to DeepSpeed: names and slots of active nodes, nothing it could misread."""
    return "".join(f"{node.name} slots={node.slots}\n" for node in nodes if not node.spare)


def _without_comment(line: str) -> str:
    """Drop a comment; a # inside a word (a path, say) or inside quotes is not one."""
    quoted = False
    for index, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char == "#" and not quoted and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


def _closed_quotes(tokens: list[_Token]) -> None:
    for token in tokens:
        if token.text == '"':
            raise _Mistake("this quote is never closed", token, 'such as identity="~/my keys/id_ed25519"')


def _node(tokens: list[_Token], line: int, seen: dict[str, int]) -> Node:
    head, rest = tokens[0], tokens[1:]
    if not _NAME.match(head.text):
        raise _Mistake(f'"{head.text}" is not a node name', head, "letters, digits, dot, dash, underscore")
    if head.text in seen:
        raise _Mistake(f'node "{head.text}" is already on line {seen[head.text]}', head, "remove one")
    if not rest or not rest[0].text.startswith("slots="):
        token = rest[0] if rest else head
        raise _Mistake(
            "slots=N must come right after the name",
            token,
            f"write: {head.text} slots=N   (DeepSpeed cannot read this line as it is)",
        )
    values: dict[str, _Token] = {}
    for token in rest:
        key, value = _pair(token)
        if key in values:
            raise _Mistake(f'"{key}" is given twice', token)
        values[key] = value
    return _build(head.text, line, values)


def _pair(token: _Token) -> tuple[str, _Token]:
    key, equals, value = token.text.partition("=")
    if not equals:
        raise _Mistake(f'"{token.text}" is not a key=value pair', token, "DeepSpeed would ignore this text")
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known keys: " + ", ".join(_KEYS)
        raise _Mistake(f'unknown key "{key}"', token, hint)
    # Quotes exist so that a path may hold spaces: identity="~/my keys/id_ed25519".
    text = value.replace('"', "")
    if not text:
        raise _Mistake(f'"{key}" has no value', token)
    if not text.isprintable():
        raise _Mistake(f'"{key}" holds a control character', token)
    return key, _Token(text, token.column + len(key) + 1)


def _build(name: str, line: int, values: dict[str, _Token]) -> Node:
    node = Node(name=name, slots=_number(values["slots"], "slots", 1, 1024), line=line)
    if "port" in values:
        node = replace(node, port=_number(values["port"], "port", 1, 65535))
    if "spare" in values:
        node = replace(node, spare=_choice(values["spare"], "spare", ("true", "false")) == "true")
    if "transport" in values:
        chosen = _choice(values["transport"], "transport", ("ssh", "local"))
        node = replace(node, transport="local" if chosen == "local" else "ssh")
    elif name == "localhost":
        node = replace(node, transport="local")  # said in the cluster's notes
    if "gpus" in values:
        node = replace(node, gpus=_gpus(values["gpus"], node.slots))
    _plain(values)
    for key in ("addr", "user", "identity", "jump"):
        if key in values:
            node = replace(node, **{key: values[key].text})  # type: ignore[arg-type]
    return node


def _plain(values: dict[str, _Token]) -> None:
    if "addr" in values:
        _address(values["addr"])
    for key, (pattern, what) in _PLAIN.items():
        if key in values and not pattern.match(values[key].text):
            raise _Mistake(f'"{values[key].text}" is not {what}', values[key])


def _address(token: _Token) -> None:
    try:
        ipaddress.ip_address(token.text)
    except ValueError:
        if not _HOST.match(token.text):
            raise _Mistake(f'"{token.text}" is neither an IP address nor a host name', token) from None


def _number(token: _Token, key: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", token.text) or not low <= int(token.text) <= high:
        raise _Mistake(f'{key} must be a whole number from {low} to {high}, not "{token.text}"', token)
    return int(token.text)


def _choice(token: _Token, key: str, allowed: tuple[str, ...]) -> str:
    if token.text not in allowed:
        raise _Mistake(f'{key} must be {" or ".join(allowed)}, not "{token.text}"', token)
    return token.text


def _gpus(token: _Token, slots: int) -> tuple[str, ...]:
    cards = tuple(token.text.split(","))
    if not all(re.fullmatch(r"0|[1-9][0-9]*|(?:GPU|MIG)-[0-9A-Za-z/-]+", card) for card in cards):
        raise _Mistake(f'gpus must be card numbers or UUIDs, not "{token.text}"', token, "such as gpus=0,1")
    if len(set(cards)) != len(cards):
        raise _Mistake(f'gpus names a card twice: "{token.text}"', token)
    if len(cards) != slots:
        raise _Mistake(f"gpus names {len(cards)} cards for slots={slots}", token, "one card per slot")
    return cards


def _problem(mistake: _Mistake, path: Path, number: int, line: str) -> UsageError:
    column = mistake.token.column
    shown = line.expandtabs(1)
    excerpt = f"{number:5d} | {shown}\n      | {' ' * (column - 1)}^"
    return UsageError(mistake.what, where=f"{path}:{number}:{column}", remedy=mistake.remedy, excerpt=excerpt)


def _notes(nodes: list[Node]) -> tuple[str, ...]:
    """`localhost` means this machine, also beside other nodes; transport=ssh asks for SSH all the same."""
    local = any(node.name == "localhost" and node.transport == "local" for node in nodes)
    return ("localhost is this machine: it is used without SSH",) if local else ()
