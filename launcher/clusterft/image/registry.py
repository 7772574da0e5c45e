"""The way by a registry, for who has one: pushed once from where it was made, pulled by digest on each node.

A login is this machine's own (docker login): it goes along with each request and is kept on no node. Refuses tags
on the way: what is pulled is what was pushed, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from docker import APIClient
from docker.errors import APIError

from clusterft.errors import Blocked
from clusterft.events import Progress
from clusterft.findings import Finding

_STAGE = "image"


def push(api: APIClient, tag: str, repository: str, report: Callable[[Progress], None]) -> str:
    """Push an image that this engine has; the reference by digest, which names it for good."""
    version = tag.partition("@")[0].rpartition(":")[2] if ":" in tag and "@" not in tag else "latest"
    api.tag(tag, repository, version)
    digest = ""
    for message in _talk(
        lambda: api.push(repository, tag=version, stream=True, decode=True), "", repository, report
    ):
        digest = str((message.get("aux") or {}).get("Digest") or digest)
    if not digest:
        raise _blocked("", f"{repository} took the image and named no digest", "")
    return f"{repository}@{digest}"


def pull(api: APIClient, reference: str, node: str, report: Callable[[Progress], None]) -> None:
    """Pull by digest on one node's engine; layers that are there already stay."""
    repository, _, digest = reference.partition("@")
    for _ in _talk(lambda: api.pull(repository, tag=digest, stream=True, decode=True), node, repository, report):
        pass


def _talk(
    ask: Callable[[], Any], node: str, repository: str, report: Callable[[Progress], None]
) -> Iterator[dict[str, Any]]:
    """All that the engine says; its error, wherever it stands, is ours."""
    try:
        for message in ask():
            if "error" in message:
                raise _blocked(node, f"{repository}: {message['error']}", str(message["error"]))
            if shown := _shown(node, message):
                report(shown)
            yield message
    except APIError as error:
        words = str(error.explanation)
        raise _blocked(node, f"{repository}: {words}", words) from None


def _shown(node: str, message: dict[str, Any]) -> Progress | None:
    if "status" not in message:
        return None
    detail = message.get("progressDetail") or {}
    words = f"{message['status']} {message.get('id', '')}".strip()
    return Progress(node, _STAGE, words, detail.get("current"), detail.get("total"))


def _blocked(node: str, what: str, words: str) -> Blocked:
    lower = words.lower()
    fix: tuple[str, ...] = (
        "name another repository as image.registry, or none: nodes hand the image on themselves",
    )
    identity = "dk.registry"
    if "toomanyrequests" in lower:
        identity, fix = "dk.ratelimit", ("docker login   on this machine", *fix)
    elif "denied" in lower or "unauthorized" in lower or "authentication" in lower:
        fix = ("docker login   on this machine, for that registry", *fix)
    elif "certificate" in lower or "server gave http response" in lower:
        identity = "dk.x509" if "certificate" in lower else identity
        fix = ("let the node's engine trust it: /etc/docker/certs.d/, or insecure-registries in daemon.json", *fix)
    finding = Finding(identity, "fail", (node,) if node else (), what, fix=fix)
    return Blocked("the registry does not do its part", (finding,))
