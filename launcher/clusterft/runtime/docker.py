"""The container runtime: one detached, labelled container a node; labels and `inspect` are the state.

Files go in through the engine's archive API before the start: a home that the engine's root cannot read does not
matter, and no file of the host is mounted. Nothing is ended but by container id.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import requests
from docker.errors import APIError, ImageNotFound, NotFound

from clusterft.engine import Engine, NoEngine
from clusterft.errors import ClusterftError
from clusterft.image import Identity, identify
from clusterft.plan.container import HOME, ContainerPlan, Person
from clusterft.remote import Remote
from clusterft.runtime.process import CannotStart

_STOP_SECONDS = 10
_CONFLICT = 409
_NO_SUCH = 404
_REMOVING = (0.5, 2.0)  # seconds until an engine is asked again
_FIRST_MOMENTS = 0.5  # seconds in which a command that cannot run has ended
OVER = ("created", "exited", "dead")  # the engine's words for a container that nothing runs in


class EngineSaidNo(ClusterftError):
    """The engine was reached and did not do it; the words are its own."""

    exit_code = 3
    kind = "engine"


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """What docker's SDK raises, as an error of ours: one node's trouble must not end the work on the others."""
    try:
        yield
    except (APIError, requests.exceptions.RequestException) as error:
        words = error.explanation if isinstance(error, APIError) else str(error)
        raise EngineSaidNo(f"{what}: {words}") from None


class Placed(NamedTuple):
    """One file inside the container, owned by the run's user."""

    path: PurePosixPath
    data: bytes
    mode: int


class Found(NamedTuple):
    """A container of ours."""

    id: str
    name: str
    cluster: str
    run: str
    node: str
    state: str  # the engine's word: running, exited, created, ...
    machine_rank: int = 0
    idle: bool = False  # opened by hand: no launcher runs in it
    attempt: int = 0  # the first one of it


class Seen(NamedTuple):
    """One container, looked at."""

    state: str
    code: int  # with which it ended last
    argv: tuple[str, ...]

    @property
    def over(self) -> bool:
        """Whether its supervisor has said that it need not come back."""
        return self.state == "exited" and self.code == 0


def create(engine: Engine, plan: ContainerPlan, files: Iterable[Placed]) -> str:
    """Make the container with its files and return its id; CannotStart names the run that holds the name."""
    try:
        made = engine.api.create_container_from_config(plan.to_dict(), plan.name)  # type: ignore[no-untyped-call]
    except APIError as error:
        if error.status_code == _CONFLICT:
            raise _in_use(engine, plan) from None
        said = str(error.explanation)
        remedy = "clusterft up   brings the image to every node"
        if "bind source path" in said:
            remedy = f"make or mount it on {plan.labels.node}, or leave it out"
        raise CannotStart(f"the engine makes no container: {said}", remedy=remedy) from None
    identity = str(made["Id"])
    try:
        with _plainly("files cannot be put into the container"):
            _put(engine, identity, plan.person, files)
    except BaseException:
        remove(engine, identity)
        raise
    return identity


def command(remote: Remote) -> tuple[str, ...]:
    """How this user reaches the engine: as himself, else by sudo where that asks nothing."""
    for argv in (("docker",), ("sudo", "-n", "docker")):
        try:
            Engine(remote, argv).close()
        except NoEngine as why:
            if why.id != "dk.perm":
                raise
            refused = why
        else:
            return argv
    raise refused


def start(engine: Engine, identity: str) -> None:
    """Start it, and see that it does not end at once."""
    try:
        engine.api.start(identity)
    except APIError as error:
        raise CannotStart(f"the container does not start: {error.explanation}") from None
    deadline = time.monotonic() + _FIRST_MOMENTS
    while time.monotonic() < deadline:
        with _plainly("the container cannot be looked at"):
            state = engine.api.inspect_container(identity)["State"]
            said = "" if state["Running"] else engine.api.logs(identity, tail=10).decode(errors="replace").strip()
        if not state["Running"]:
            raise CannotStart(f"the container ended at once with exit code {state['ExitCode']}: {said}")
        time.sleep(0.1)


def stop(engine: Engine, identity: str, seconds: int = _STOP_SECONDS) -> None:
    """TERM, then KILL; a container that is gone is stopped."""
    with _plainly("the container cannot be stopped"), contextlib.suppress(NotFound):
        engine.api.stop(identity, timeout=seconds)


def remove(engine: Engine, identity: str) -> None:
    """Take it away with its anonymous volumes; gone already, or going, is fine."""
    with _plainly("the container cannot be removed"):
        for pause in (*_REMOVING, None):
            try:
                engine.api.remove_container(identity, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code == _CONFLICT and "in progress" in str(error.explanation):
                    return
                if pause is None:
                    raise
                time.sleep(pause)  # its files are busy for a moment after its processes were killed
            else:
                return


def find(
    engine: Engine, *, cluster: str | None = None, run: str | None = None, owner: int | None = None
) -> tuple[Found, ...]:
    """Our containers on this engine, also those that have ended."""
    wanted = {"clusterft.cluster": cluster, "clusterft.run": run, "clusterft.owner": owner}
    labels = [key if value is None else f"{key}={value}" for key, value in wanted.items()]
    with _plainly("the containers cannot be listed"):
        listed = engine.api.containers(all=True, filters={"label": labels})
    return tuple(_found(one) for one in listed)


def holder(engine: Engine, name: str) -> Found | None:
    """Whose container has this name, the lock of a node's cards; None where it is free, or none of ours."""
    return next((one for one in find(engine) if one.name == name), None)


def look(engine: Engine, identity: str) -> Seen | None:
    """What became of a container; None when it is gone."""
    try:
        with _plainly("the container cannot be looked at"):
            body = engine.api.inspect_container(identity)
    except EngineSaidNo:
        if any(one.id == identity for one in find(engine)):
            raise
        return None
    state = body["State"]
    return Seen(state["Status"], int(state["ExitCode"]), tuple(body["Config"]["Cmd"] or ()))


def raw(engine: Engine, identity: str) -> str:
    """All that `inspect` says of it, as JSON."""
    with _plainly("the container cannot be looked at"):
        return json.dumps(engine.api.inspect_container(identity))


def kill(engine: Engine, identity: str) -> None:
    """KILL at once; one that does not run is left as it is."""
    with _plainly("the container cannot be killed"):
        try:
            engine.api.kill(identity)
        except APIError as error:
            if error.status_code not in (_CONFLICT, _NO_SUCH):
                raise


def put(engine: Engine, identity: str, file: Placed, person: tuple[int, int]) -> None:
    """One more file, into a directory that is there; the container may be down."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(file.path.name)
        entry.size, entry.mode = len(file.data), file.mode
        entry.uid, entry.gid = person
        tar.addfile(entry, io.BytesIO(file.data))
    packed.seek(0)
    with _plainly(f"{file.path} cannot be put into the container"):
        engine.api.put_archive(identity, str(file.path.parent), packed)


def read(engine: Engine, identity: str, path: str) -> str:
    """A text file of a container, whether it runs or not; none is an empty one."""
    with _plainly(f"{path} cannot be read from the container"):
        return _read(engine, identity, path)


def identity(engine: Engine, tag: str) -> Identity | None:
    """What this engine has under that name; None where it has nothing."""
    with _plainly(f"image {tag} cannot be looked at"):
        try:
            return identify(engine.api, tag)
        except ImageNotFound:
            return None


def environment(engine: Engine, tag: str) -> dict[str, str]:
    """What the image sets; a session over SSH would not have it otherwise."""
    try:
        with _plainly(f"image {tag} cannot be looked at"):
            body = engine.api.inspect_image(tag)  # type: ignore[no-untyped-call]
    except EngineSaidNo as error:
        raise CannotStart(error.what, remedy="clusterft up   brings the image to every node") from None
    given: Iterable[str] = body["Config"].get("Env") or ()
    return {name: value for name, _, value in (one.partition("=") for one in given)}


def owner(remote: Remote) -> int:
    """Who we are on this node, as the label has it."""
    done = remote.run(("id", "-u"))
    words = done.out.split()
    if done.code != 0 or not words or not words[-1].isdecimal():
        raise EngineSaidNo(f"who logs in here could not be read: {(done.err or done.out).strip()[-200:]}")
    return int(words[-1])


def _found(one: dict[str, Any]) -> Found:
    labels = one["Labels"]
    return Found(
        id=one["Id"],
        name=one["Names"][0].lstrip("/") if one["Names"] else one["Id"][:12],
        cluster=labels["clusterft.cluster"],
        run=labels["clusterft.run"],
        node=labels.get("clusterft.node", ""),
        state=one["State"],
        machine_rank=int(labels.get("clusterft.machine-rank") or 0),
        idle=not labels.get("clusterft.config-digest"),
        attempt=int(labels.get("clusterft.attempt") or 0),
    )


def _in_use(engine: Engine, plan: ContainerPlan) -> CannotStart:
    held = holder(engine, plan.name)
    if held is None:
        return CannotStart(
            f"a container named {plan.name} is there that is none of ours",
            remedy=f"docker rename {plan.name} ANOTHER   on {plan.labels.node}",
        )
    over = held.state in OVER
    words = "it is over, and is cleared away by" if over else "wait for it, or end it:"
    return CannotStart(
        f"the cards are held by run {held.run} of cluster {held.cluster} ({held.state})",
        remedy=f"{words} clusterft stop {held.run}",
    )


def _put(engine: Engine, identity: str, person: Person, files: Iterable[Placed]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, line in (("etc/passwd", person.passwd_line()), ("etc/group", person.group_line())):
            there = _read(engine, identity, f"/{path}")
            text = there if _known(there, line) else there + line
            _add(tar, path, text.encode(errors="surrogateescape"), 0o644, None)
        # sshd insists on it when it runs as root, and an image may have lost it with its /run.
        _root_directory(tar, "run/sshd")
        made: set[str] = set()
        _directory(tar, str(HOME).lstrip("/"), person, made)
        for file in files:
            inside = str(file.path).lstrip("/")
            _directory(tar, str(PurePosixPath(inside).parent), person, made)
            _add(tar, inside, file.data, file.mode, person)
    packed.seek(0)
    engine.api.put_archive(identity, "/", packed)


def _known(text: str, line: str) -> bool:
    """Whether the number has a name already; root has one in every image."""
    number = line.split(":")[2]
    return any(entry.split(":")[2:3] == [number] for entry in text.splitlines())


def _read(engine: Engine, identity: str, path: str) -> str:
    """A small text file of the image; none is an empty one."""
    try:
        chunks, _ = engine.api.get_archive(identity, path)
    except NotFound:
        return ""
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.extractfile(tar.getmembers()[0])
        text = member.read().decode("utf-8", errors="surrogateescape") if member else ""
    return text if not text or text.endswith("\n") else text + "\n"


def _directory(tar: tarfile.TarFile, path: str, person: Person, made: set[str]) -> None:
    """The directory and those above it that are ours, each once; /run and /home belong to the image."""
    ours = [p for p in (path, *map(str, PurePosixPath(path).parents)) if p.count("/") >= 1]
    for each in reversed(ours):
        if each not in made:
            made.add(each)
            entry = tarfile.TarInfo(each)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o700, person.uid, person.gid
            tar.addfile(entry)


def _root_directory(tar: tarfile.TarFile, path: str) -> None:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry)


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int, person: Person | None) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    if person:
        entry.uid, entry.gid = person.uid, person.gid
    tar.addfile(entry, io.BytesIO(data))
