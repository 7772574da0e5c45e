"""What one node is told to do: the file that the launcher writes and the supervisor reads. Torch-free.

Owns the fields and the JSON form, and the words in them that only an attempt can fill in. Holds no secret of the
user's: those travel in a file of their own, mode 0600. `token` makes this file one to keep at 0600 too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the gang, as the others know it."""

    node: str
    machine_rank: int
    slots: int
    address: str


@dataclass(frozen=True, slots=True)
class Survival:
    """How a gang lives through what happens to it; all times in seconds."""

    restarts: int = 3  # attempts after the first; interruptions that nobody caused do not count
    min_nodes: int | None = None  # None: all of them, always
    hang_after: float = 600.0  # without a step; a script: without a line of its log
    first_step_after: float = 1800.0  # the same before the first step of an attempt
    patience: float = 300.0  # how long a member may be out of reach before it counts as lost
    stagger: float = 0.0  # between the starts of a node's ranks


@dataclass(frozen=True, slots=True)
class Term:
    """What an attempt is, as seen by one node. Fills the placeholders in argv, env and files."""

    attempt: int
    machines: int
    machine_rank: int  # among those that take part: counts without gaps
    first_rank: int  # the global rank of this node's first slot
    world: int
    address: str  # of rank 0's node
    port: int
    hostfile: str  # DeepSpeed's, of those that take part
    here: str  # the directory in which the attempt's files lie

    def fill(self, text: str) -> str:
        """A text with its placeholders filled in."""
        for word, value in (
            ("@HERE@", self.here),
            ("@HOSTFILE@", self.hostfile),
            ("@ATTEMPT@", self.attempt),
            ("@MACHINES@", self.machines),
            ("@MACHINE_RANK@", self.machine_rank),
            ("@FIRST_RANK@", self.first_rank),
            ("@WORLD@", self.world),
            ("@MASTER_ADDR@", self.address),
            ("@MASTER_PORT@", self.port),
        ):
            text = text.replace(word, str(value))
        return text


@dataclass(frozen=True, slots=True)
class Assignment:
    """One node's part of a run. argv, env and files may hold a Term's placeholders."""

    run: str
    cluster: str
    node: str
    machine_rank: int
    slots: int
    members: tuple[Member, ...]  # all of the gang, this one too, by machine_rank
    gang_port: int  # where the head's supervisor listens for the others
    token: str  # by which they know each other
    first_port: int  # the rendezvous of an attempt takes the first free one from here on
    ports: int  # how many
    argv: tuple[str, ...]  # the command that starts this node's ranks
    env: dict[str, str]  # the whole environment of the ranks, but for secrets
    work_dir: str  # where the ranks start
    run_dir: str  # in the shared dir
    log_dir: str  # on a local disk of the node; an attempt's logs go into attempt-<k> below it
    lock_file: str | None = None  # process runtime: held while the node is in use; names the run that holds it
    secrets_file: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # name -> text, written anew for each attempt
    kind: str = "train"  # script: nothing is known but its lines and its exit code; prep: work that is claimed
    contained: bool = False  # PID 1's child of a container that the engine brings back
    preflight: bool = True  # whether the members try ports and the shared dir before the first attempt
    first_attempt: int = 0  # a resumed run counts on
    grace_seconds: float = 600.0  # from the polite signal to the final one: a large checkpoint takes minutes
    survival: Survival = Survival()

    def to_json(self) -> str:
        """Indented, since people read it when a run fails."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def parse(text: str) -> Assignment:
    """The reverse of to_json; ValueError says what does not fit."""
    body = json.loads(text)
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"not an assignment of schema {SCHEMA}")
    names = {f.name for f in fields(Assignment)}
    missing = names - body.keys()
    if missing:
        raise ValueError("the assignment lacks " + ", ".join(sorted(missing)))
    known: dict[str, Any] = {name: body[name] for name in names}
    known["argv"] = tuple(known["argv"])
    known["members"] = tuple(Member(**one) for one in known["members"])
    known["survival"] = Survival(**known["survival"])
    return Assignment(**known)


def term(members: tuple[Member, ...], machine_rank: int, attempt: int, port: int, directory: str) -> Term:
    """The term of one member in an attempt of these members, which need not be all of the gang."""
    present = sorted(members, key=lambda one: one.machine_rank)
    place = next(i for i, one in enumerate(present) if one.machine_rank == machine_rank)
    return Term(
        attempt=attempt,
        machines=len(present),
        machine_rank=place,
        first_rank=sum(one.slots for one in present[:place]),
        world=sum(one.slots for one in present),
        address=present[0].address,
        port=port,
        hostfile="".join(f"{one.node} slots={one.slots}\n" for one in present),
        here=f"{directory}/attempt-{attempt}",
    )
