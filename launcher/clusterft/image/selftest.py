"""Proving that an image works before any node gets it: the trainer's own test runs in a container of it.

As a numeric user that the image does not know, and without a network. What comes back is judged by a pure
function: our image must have everything; of a user's own, what a script of theirs may not need is a warning.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from clusterft.findings import Finding

COMMAND = ("python3", "-P", "-m", "clusterft_trainer.image_selftest")
_ID = "dk.selftest"
_SECONDS = 300  # torch and transformers from a cold disk
_PAUSE = 0.3
_NOBODY = "64321:64321"
_SCHEMA = 1
_NEEDED = (
    "pydantic numpy PIL safetensors torch accelerate deepspeed diffusers transformers tensorboard xxhash".split()
)
# What some jobs need, and for what.
_SOME = {
    "bitsandbytes": "8-bit optimizers",
    "peft": "learn.lora",
    "pytorch_optimizer": "lion, came, prodigy, stable-adamw and schedule-free-adamw",
    "torchao": "optimizers ao-*",
}
_SIGILL, _NO_COMMAND = 132, (126, 127)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What an image said of itself."""

    trainer: str | None
    python: str
    modules: Mapping[str, str]  # name -> version
    broken: Mapping[str, str]  # name -> why it cannot be imported
    cuda: str | None  # that torch was built for
    nccl: str | None
    cards: tuple[str, ...]  # compute capabilities, such as sm_90
    vocabulary: str | None  # version of the package that brings CLIP's vocabulary
    ops: Mapping[str, str]  # DeepSpeed's compiled kernels -> why one does not work, or ""
    programs: Mapping[str, str | None]
    host_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the image is meant to be."""

    trainer: str
    variant: str
    ours: bool  # our own foundation, not the user's Dockerfile or image


def run(api: APIClient, tag: str) -> SelfTest | Finding:
    """Try the image on this engine; a Finding says why it does not even answer."""
    try:
        identity = str(api.create_container_from_config(_container(tag))["Id"])  # type: ignore[no-untyped-call]
    except APIError as error:
        return _fail(f"no container can be made from {tag}", str(error.explanation))
    try:
        api.start(identity)
        code = _ended(api, identity)
        out = api.logs(identity, stdout=True, stderr=False).decode(errors="replace")
        err = api.logs(identity, stdout=False, stderr=True, tail=15).decode(errors="replace")
    except APIError as error:
        return _fail(f"{tag} does not start", str(error.explanation), *_PUT_ON_TOP)
    finally:
        _remove(api, identity)
    if code is None:
        return _fail(f"the self-test of {tag} did not end within {_SECONDS} s", err)
    return read(code, out, err)


def _ended(api: APIClient, identity: str) -> int | None:
    """The exit code, or None at the deadline. Polled: a call of minutes looks like an engine that hangs."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        state = api.inspect_container(identity)["State"]
        if state["Status"] in ("exited", "dead"):
            return int(state["ExitCode"])
        time.sleep(_PAUSE)
    return None


def read(code: int, out: str, err: str) -> SelfTest | Finding:
    """What the container left -> what it said, or why it said nothing. Pure."""
    lines = out.strip().splitlines()
    if code == 0 and lines:
        try:
            return _parse(json.loads(lines[-1]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _fail("the self-test answered something else than it should", lines[-1][:300])
    if "No module named" in err and "clusterft_trainer" in err:
        return _fail("the image has no clusterft trainer", err.strip(), *_PUT_ON_TOP)
    if code in _NO_COMMAND:
        return _fail("the image has no python3 on its PATH", err.strip(), *_PUT_ON_TOP)
    if code == _SIGILL:
        what = "the image holds code that this machine's CPU does not know"
        return _fail(what, err.strip(), "rebuild the library named last for an older CPU")
    return _fail(f"the self-test ended with exit code {code}", err.strip())


def judge(found: SelfTest, expected: Expected) -> tuple[Finding, ...]:
    """The findings of a self-test; none if all is well. Pure."""
    heavy = "fail" if expected.ours else "warn"
    findings = [*_libraries(found, expected, heavy)]
    findings += [
        _finding(heavy, f"{name} is there and cannot be imported", why) for name, why in found.broken.items()
    ]
    findings += [
        _finding(heavy, f"DeepSpeed's compiled {name} does not work", why)
        for name, why in found.ops.items()
        if why
    ]
    if expected.ours and not found.ops:
        findings.append(_fail("none of DeepSpeed's kernels is compiled in the image", "", *_REBUILD))
    if expected.variant == "cuda" and "torch" in found.modules and not found.cuda:
        findings.append(_finding(heavy, "torch in the image is built without CUDA", found.modules["torch"]))
    if not found.programs.get("sshd"):
        what = "the image has no sshd: launchers that reach nodes by ssh cannot run in it"
        findings.append(_finding(heavy, what, "", "install openssh-server in the Dockerfile"))
    if found.host_keys:
        what = "private SSH host keys lie in the image: whoever gets it can pose as its containers"
        findings.append(
            _finding(heavy, what, "\n".join(found.host_keys), "rm /etc/ssh/ssh_host_* in the same step")
        )
    return tuple(findings)


def _libraries(found: SelfTest, expected: Expected, heavy: str) -> Iterator[Finding]:
    """What the trainer, and libraries that it cannot do without, or not for every job."""
    if found.trainer != expected.trainer:
        have = f"trainer {found.trainer}" if found.trainer else "no trainer"
        what = f"the image has {have}, this clusterft needs {expected.trainer}"
        yield _fail(what, "", *_PUT_ON_TOP)
    known = found.modules.keys() | found.broken.keys()
    missing = [name for name in _NEEDED if name not in known]
    if missing:
        what = f"the image lacks {', '.join(missing)}: jobs with train: cannot run in it"
        yield _finding(heavy, what, "", "a script of your own may not need them")
        return  # what only some jobs of the trainer need is then no news
    some = [f"{name} ({what})" for name, what in _SOME.items() if name not in known]
    if some:
        what = f"the image lacks {', '.join(some)}: jobs that ask for those cannot run in it"
        yield _finding(heavy, what, "", "other jobs do not need them")
    if found.vocabulary is None:
        what = "the image lacks open_clip_torch, which brings CLIP's vocabulary"
        fix = (
            "pip install --no-deps open_clip_torch in it; without, a model in a single file needs train.tokenizers"
        )
        yield _finding(heavy, what, "", fix)


def _container(tag: str) -> dict[str, Any]:
    return {
        "Image": tag,
        "Entrypoint": [],
        "Cmd": list(COMMAND),
        "User": _NOBODY,
        # A number without a name has no home and no login, which some libraries ask for as they are imported.
        "Env": ["HOME=/tmp", "LOGNAME=clusterft", "USER=clusterft", "HF_HUB_OFFLINE=1"],
        "WorkingDir": "/",
        "NetworkDisabled": True,
        "Labels": {"clusterft.selftest": "1"},
        "HostConfig": {"NetworkMode": "none", "Init": True, "Tmpfs": {"/tmp": "mode=1777"}},
    }


def _remove(api: APIClient, identity: str) -> None:
    try:
        api.remove_container(identity, force=True, v=True)
    except NotFound:
        return


def _parse(body: dict[str, Any]) -> SelfTest:
    if body["schema"] != _SCHEMA:
        raise ValueError("of another version")
    torch = body["torch"] or {}
    modules = {str(name): one for name, one in body["modules"].items()}
    return SelfTest(
        trainer=body["trainer"],
        python=str(body["python"]),
        modules={name: str(one["version"]) for name, one in modules.items() if not one["error"]},
        broken={name: str(one["error"]) for name, one in modules.items() if one["error"]},
        cuda=torch.get("cuda"),
        nccl=torch.get("nccl"),
        cards=tuple(torch.get("cards", ())),
        vocabulary=body.get("vocabulary"),
        ops={str(name): str(why) for name, why in body["ops"].items()},
        programs=dict(body["programs"]),
        host_keys=tuple(map(str, body["host_keys"])),
    )


_PUT_ON_TOP = (
    "write a Dockerfile that starts FROM it and name that as image.dockerfile: the trainer goes on top",
)
_REBUILD = ("docker image prune -a --filter label=clusterft.image-part, then up again builds it anew",)


def _fail(what: str, evidence: str, *fix: str) -> Finding:
    return _finding("fail", what, evidence, *fix)


def _finding(status: str, what: str, evidence: str, *fix: str) -> Finding:
    clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", evidence)
    return Finding(_ID, "fail" if status == "fail" else "warn", (), what, clean, fix=fix)


def passed(api: APIClient, tag: str, expected: Expected) -> tuple[SelfTest | None, tuple[Finding, ...]]:
    """Run and judge in one: what the image said, if it could, and what is wrong with it."""
    found = run(api, tag)
    if isinstance(found, Finding):
        return None, (found,)
    return found, judge(found, expected)


__all__ = ["Expected", "SelfTest", "judge", "passed", "read", "run"]
