"""Building the image on an engine, or finding that it is there.

Owns the order (foundation, then the last layers), what is reported meanwhile, and that nothing is done twice: an
image carries the key of all that went into it. Uses the classic builder, which every engine since 20.10 has.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, ImageNotFound

from clusterft.errors import Blocked
from clusterft.events import Progress
from clusterft.findings import Finding
from clusterft.image import recipe, wheel
from clusterft.image.identity import Identity, identify
from clusterft.image.recipe import Recipe
from clusterft.image.transcript import STAGE, Transcript
from clusterft.spec import ImageSpec

Report = Callable[[Progress], None]
# A compiler may work for many minutes without a word; a builder that says nothing for longer hangs.
_SILENCE_SECONDS = 45 * 60
_STRIDE = 1 << 24  # bytes between two reports of what has been sent
_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Made:
    """The image that the cluster shall run, as the engine that has it knows it."""

    tag: str
    identity: Identity
    built: tuple[str, ...]  # what had to be made now; empty when all was there


def make(api: APIClient, spec: ImageSpec, report: Report, environ: Mapping[str, str] = os.environ) -> Made:
    """Build what is not there yet, and say what the image is."""
    if spec.use:
        return _existing(api, spec.use)
    trainer = wheel.build()
    below = recipe.foundation(spec, wheel.requirements(), environ)
    top = recipe.last(spec, below, trainer)
    built: list[str] = []
    if not _has(api, top):
        if not _has(api, below):
            _build(api, below, report)
            built.append(below.tag)
        _build(api, top, report)
        built.append(top.tag)
    return Made(top.tag, identify(api, top.tag), tuple(built))


def _existing(api: APIClient, name: str) -> Made:
    try:
        return Made(name, identify(api, name), ())
    except ImageNotFound:
        raise _blocked(
            f"the engine has no image {name}", "", (f"docker pull {name}", "or name another one as image.use")
        ) from None


def _has(api: APIClient, wanted: Recipe) -> bool:
    """Whether an image with this key is there; one that lost its name gets it back."""
    found = api.images(filters={"label": [f"{recipe.KEY}={wanted.key}", f"{recipe.PART}={wanted.part}"]})
    if not found:
        return False
    if not any(wanted.tag in (image.get("RepoTags") or ()) for image in found):
        name, _, version = wanted.tag.rpartition(":")
        api.tag(found[0]["Id"], name, version)
    return True


def _build(api: APIClient, wanted: Recipe, report: Report) -> None:
    transcript = Transcript(wanted.part)
    try:
        answer = api.build(
            fileobj=io.BufferedReader(_Sent(wanted, report), _BUFFER),
            custom_context=True,
            dockerfile=wanted.dockerfile,
            tag=wanted.tag,
            buildargs={**wanted.arguments, **wanted.ways},
            labels=wanted.labels,
            # A company's package index often answers on this machine's network only, and not on a bridge.
            network_mode="host",
            rm=True,
            forcerm=True,
            decode=True,
            timeout=_SILENCE_SECONDS,
        )
        for message in answer:
            if shown := transcript.feed(message):
                report(shown)
    except APIError as error:
        transcript.error = str(error.explanation)
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        transcript.error = (
            f"the way to the builder broke, or it said nothing for {_SILENCE_SECONDS // 60} min: {error}"
        )
    if transcript.error:
        what = f"the image cannot be built: its {wanted.part} failed"
        raise _blocked(what, transcript.evidence(), _mend(transcript))


class _Sent(io.RawIOBase):
    """The context as a file that is read once; says how far it has gone."""

    def __init__(self, wanted: Recipe, report: Report) -> None:
        self._total = wanted.context.size
        self._told = 0
        self._report = report
        self._what = wanted.part
        self._pieces: Iterator[bytes] = wanted.context.stream(self._tell)
        self._left = b""

    def readable(self) -> bool:
        """It is for reading only."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the next piece goes."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def _tell(self, gone: int) -> None:
        if gone - self._told >= _STRIDE or gone == self._total:
            self._told = gone
            self._report(Progress("", STAGE, f"{self._what}: sending the context", gone, self._total))


_TRUST = "your network signs with its own certificate: name it as image.ca_bundle"
_REGISTRY = "the registry cannot be reached: docker load the base image, or name another one as image.base"
# What a failing step printed -> what mends it; the first that fits.
_REMEDIES = (
    ("CERTIFICATE_VERIFY_FAILED", _TRUST),
    ("certificate verify failed", _TRUST),
    (
        "No matching distribution found",
        "the package index or the wheelhouse lacks it; PIP_INDEX_URL names another",
    ),
    ("No space left on device", "make room on the engine's disk: docker image prune"),
    ("toomanyrequests", "docker login raises the registry's limit"),
    ("pull access denied", "docker login, or name an image that you have as image.base"),
    ("manifest unknown", "image.base names an image or tag that the registry does not have"),
    ("Temporary failure in name resolution", "the builder has no network: set a proxy, or use image.wheelhouse"),
    ("Could not resolve", "the builder has no network: set a proxy, or use image.base from a mirror"),
    ("no such host", _REGISTRY),
    ("request canceled", _REGISTRY),
    ("connection refused", _REGISTRY),
)


def _mend(transcript: Transcript) -> tuple[str, ...]:
    said = transcript.evidence()
    return tuple(remedy for sign, remedy in _REMEDIES if sign in said)[:1]


def _blocked(what: str, evidence: str, fix: tuple[str, ...]) -> Blocked:
    finding = Finding("dk.build", "fail", (), what, evidence, fix=fix)
    return Blocked(what, (finding,))
