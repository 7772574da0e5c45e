"""The image of one `up`: made on one engine, tried in a container, named after its cluster; brought by a registry.

What travels from node to node is `ship`'s affair. Refuses to hand on an image that did not pass its own test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from docker.errors import APIError

from clusterft import __version__
from clusterft.engine import Engine, NoEngine
from clusterft.errors import Blocked
from clusterft.events import Progress
from clusterft.findings import Finding, Outcome, blockers
from clusterft.fleet import Fleet
from clusterft.image import Made, make, pull, push, selftest
from clusterft.remote import Remote
from clusterft.remote.local import LocalRemote
from clusterft.runtime import docker
from clusterft.ship import Origin
from clusterft.spec import ImageSpec


def image_name(cluster_id: str) -> str:
    """What the images of one cluster are called; no other cluster's `down` removes them."""
    return f"clusterft-{cluster_id}"


def here() -> Origin:
    """The engine of this machine; its absence is told as that, and not as a node's."""
    try:
        return Origin(LocalRemote(), docker.command(LocalRemote()))
    except NoEngine as why:
        finding = Finding(
            why.id,
            "fail",
            (),
            "this machine, the controller, has no Docker engine to build the image with",
            why.what,
            fix=(*why.fix, "or build it on the first node: image: {build_on: head}   in the job"),
        )
        raise Blocked("the image cannot be built", (finding,), effect="blocks") from None


def no_head(head: str) -> Blocked:
    """The node that is to build is not up."""
    fix = (f"mend {head}, or build_on: controller",)
    finding = Finding("dk.build", "fail", (head,), "the head is not up, and image.build_on names it", fix=fix)
    return Blocked("the image cannot be built", (finding,), effect="blocks")


class Supply:
    """One image and the engine that has it."""

    source: Origin
    tag: str  # a name of this cluster's own: the builder's is the same for all that is built alike

    def __init__(self, spec: ImageSpec, cluster_id: str, tell: Callable[[Progress], None]) -> None:
        self._spec = spec
        self._name = image_name(cluster_id)
        self._tell = tell
        self._version = ""
        self.findings: tuple[Finding, ...] = ()

    def make(self, source: Origin, *, tried: str | None) -> Made:
        """Build it if need be, and try it in a container unless this very image has been tried before."""
        self.source = source
        with Engine(source.remote, source.command) as engine:
            made = make(engine.api, self._spec, self._tell)
            if tried != made.identity.config_digest:
                self._try(engine, made.tag)
            # Also for an image that was named by its digest, which is no name that a node could give it.
            self._version = made.identity.config_digest.removeprefix("sha256:")[:12]
            engine.api.tag(made.tag, self._name, self._version)
        self.tag = f"{self._name}:{self._version}"
        return made

    def _try(self, engine: Engine, tag: str) -> None:
        self._tell(Progress("", "image", "self-test in a container"))
        ours = not (self._spec.use or self._spec.dockerfile)
        _, self.findings = selftest.passed(
            engine.api, tag, selftest.Expected(__version__, self._spec.variant, ours)
        )
        if blocking := blockers(self.findings):
            what = "the image does not pass its self-test; no node got it"
            raise Blocked(what, blocking, effect="blocks")

    def by_registry(
        self, fleet: Fleet, commands: Mapping[str, tuple[str, ...]], repository: str
    ) -> tuple[Finding, ...]:
        """Pushed once, pulled by digest on each node; the relay then only proves that all have the very image."""
        with Engine(self.source.remote, self.source.command) as engine:
            reference = push(engine.api, self.tag, repository, self._tell)

        def take(name: str, remote: Remote) -> Outcome:
            if name not in commands:
                return ()
            try:
                with Engine(remote, commands[name]) as engine:
                    pull(engine.api, reference, name, self._tell)
                    engine.api.tag(reference, self._name, self._version)
            except Blocked as refused:
                return refused.findings[0]
            except APIError as error:
                said = str(error.explanation)
                return Finding("dk.registry", "fail", (name,), "took the image and did not name it", said)
            return ()

        outcomes = fleet.each(take).values()
        # The relay brings it all the same; the user still learns that the registry does not.
        return tuple(replace(one, status="warn") for one in outcomes if isinstance(one, Finding))
