"""A harbour for shipping tests: full nodes with their relays, and images of random bytes in the local engine."""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clusterft import hosts, places, provision, ship
from clusterft.checks import Survey
from clusterft.events import Progress
from clusterft.fleet import Fleet
from clusterft.places import NodePlaces
from clusterft.remote.local import LocalRemote
from clusterft.ship import layout
from lab import FullLab

MIB = 1 << 20


def layer(name: str, size: int, seed: object) -> bytes:
    """A layer with one file: bytes that no compression shrinks, unless the seed is the very bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        data = seed if isinstance(seed, bytes) else random.Random(str(seed)).randbytes(size)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Made:
    """An image in this machine's engine."""

    reference: str
    parts: ship.ImageParts

    @property
    def size(self) -> int:
        """Bytes of its layers."""
        return sum(one.size for one in self.parts.layers)


@contextlib.contextmanager
def made(reference: str, layers: list[bytes], platform: str = "amd64") -> Iterator[Made]:
    """Load an image of these layers here, and remove it again."""
    config = {
        "architecture": platform,
        "os": "linux",
        "config": {"Cmd": ["/none"], "Labels": {"clusterft.test": reference}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layout.digest_of(one)}" for one in layers]},
        "history": [{"created_by": "test"} for _ in layers],
    }
    blobs = tuple(layout.Blob(layout.digest_of(one), len(one)) for one in layers)
    parts = ship.ImageParts(reference, json.dumps(config).encode(), blobs)
    files = parts.documents(reference) | {
        f"blobs/sha256/{blob.digest}": one for blob, one in zip(blobs, layers, strict=True)
    }
    subprocess.run(["docker", "load"], input=layout.packed(files), check=True, capture_output=True)
    try:
        yield Made(reference, parts)
    finally:
        subprocess.run(["docker", "image", "rm", reference], check=True, capture_output=True)


@dataclass
class Harbour:
    """A lab whose nodes can ask each other for blobs."""

    lab: FullLab
    people: Mapping[str, str] = field(default_factory=dict)  # node -> who logs in; root where not said
    cluster: str = "ship"
    said: list[Progress] = field(default_factory=list)
    survey: Survey | None = None

    def hostfile(self) -> hosts.Cluster:
        """The lab's own, with other people where told."""
        lines = []
        for line in self.lab.hostfile.read_text().splitlines():
            person = self.people.get(line.split()[0], "root")
            lines.append(line.replace("user=root", f"user={person}") + "\n")
        return hosts.parse("".join(lines), path=Path(self.cluster), name=self.cluster)

    @contextlib.contextmanager
    def fleet(self) -> Iterator[Fleet]:
        """Log in to all; the first time, give them their relays."""
        with Fleet(self.hostfile(), self.lab.known_hosts) as fleet:
            if self.survey is None:
                self.survey = fleet.survey(lambda node: ())
                keys = {}
                for line in self.lab.known_hosts.read_text().splitlines():
                    names, kind, blob = line.split()
                    keys[names.split(",")[0]] = (f"{kind} {blob}",)
                members = provision.members(self.survey, keys)
                done = provision.apply(fleet, provision.Order(members=members), lambda event: None)
                assert not done.proof.refused, done
            yield fleet

    def convoy(self, fleet: Fleet, cut: tuple[tuple[str, str], ...] = ()) -> ship.Convoy:
        """All nodes of the lab, in order."""
        assert self.survey is not None
        targets = {}
        for node in fleet.cluster.active:
            facts = self.survey.facts[node.name]
            where = NodePlaces(Path(str(facts.home)) / ".clusterft", self.cluster, node.name)  # type: ignore[arg-type]
            command = ("sudo", "-n", "docker") if node.user == "sudoer" else ("docker",)
            targets[node.name] = ship.Target(
                places.scratch(int(facts.uid or 0), self.cluster), where.ssh_config, command
            )
        return ship.Convoy(fleet, targets, self.said.append, cut)

    def bring(self, image: Made, known: ship.ImageParts | None = None) -> ship.Shipment:
        """Ship it to all nodes."""
        with self.fleet() as fleet:
            return ship.image(self.convoy(fleet), image.reference, ship.Origin(LocalRemote()), known)

    def on(self, node: str, script: str) -> str:
        """What a shell line prints on a node, as root."""
        done = self.lab.node(node).run(["sh", "-c", script], timeout=60)
        assert done.returncode == 0, (node, script, done.stdout, done.stderr)
        return done.stdout

    def has(self, node: str, image: Made) -> bool:
        """Whether the node has the very image, and a container can be made from it."""
        ask = f"docker image inspect -f '{{{{.Id}}}} {{{{json .RootFS.Layers}}}}' {image.reference}"
        done = self.lab.node(node).run(["sh", "-c", f"{ask} && docker rm $(docker create {image.reference})"])
        if done.returncode:
            return False
        identity, _, layers = done.stdout.splitlines()[0].partition(" ")
        right = identity in (image.parts.config_digest, image.parts.manifest_digest)
        return right and tuple(json.loads(layers)) == image.parts.diff_ids

    def litter(self, node: str) -> str:
        """What a shipment left behind; its last process may take a second to end."""
        script = (
            "ls -A /var/tmp; docker ps -aq; docker images -q -f dangling=true; "
            "docker images -q clusterft-arriving; ps ax -o args | grep -v grep | grep +ship || :"
        )
        deadline = time.monotonic() + 5
        while (left := self.on(node, script)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left
