"""Three nodes with an engine each and a spare, a desk where verbs are typed, and runs that a fault may befall.

Owns the lab and what is known of a run from outside: the witnesses' notes, the files in the shared dir, the
containers on the nodes. Refuses to take clusterft's word for anything that it can see by itself.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2e.upping import Desk
from faults import controller, ledger, remains
from faults.controller import Controller, until
from faults.jobs import DOCKERFILE, IMAGES, MOUNTS, NOTES, SHARED, job
from faults.ledger import Note
from lab import FullLab, FullNode, LabError

NODES = ("n1", "n2", "n3")
SPARE = "n4"
USER, UID = "worker", 1000
# The shared dir as it is behind what can be frozen.
BEHIND = "/export/shared"
DATA = "/data"  # on a node's own disk
# Where clusterft may leave something, and where the tests do.
OURS = (f"/home/{USER}/.clusterft", f"/home/{USER}/.ssh", f"/var/tmp/clusterft-{UID}", NOTES, DATA)


@dataclass
class Rig:
    """The lab and its controllers."""

    lab: FullLab
    desk: Desk
    before: dict[str, set[str]] = field(default_factory=dict)  # node -> what lay on it before the first run
    controllers: list[Controller] = field(default_factory=list)

    def node(self, name: str) -> FullNode:
        """A node by its name."""
        return self.lab.node(name)

    # -- verbs -----------------------------------------------------------------

    def begin(self, *words: str, desk: Desk | None = None) -> Controller:
        """Type a command and do not wait for it."""
        self.controllers.append(controller.begin(desk or self.desk, len(self.controllers), *words))
        return self.controllers[-1]

    def write(self, **changes: Any) -> Path:
        """Put a job onto the desk."""
        path = self.desk.root / "job.yaml"
        path.write_text(yaml.safe_dump(job(**changes)))
        return path

    def train(self, *words: str, **changes: Any) -> tuple[Controller, str]:
        """Start a run; its controller and its id, as soon as the run has one."""
        known = set(self.runs())
        self.write(**changes)
        begun = self.begin("train", "job.yaml", "--json", *words)
        until(lambda: bool(set(self.runs()) - known), 90, "the run to be recorded", begun)
        (run,) = set(self.runs()) - known
        return begun, run

    def status(self, run: str) -> dict[str, Any]:
        """What `clusterft status RUN` knows; it also harvests a run that is over."""
        return self.desk.said("status", run)

    def another_desk(self, *up: str) -> Desk:
        """Another person's home, who has the keys, the hostfile and the job, and trusts the same machines."""
        root = Path(tempfile.mkdtemp(prefix="desk-", dir=self.desk.root.parent))
        other = Desk(root, self.desk.hosts.read_text())
        for name in ("job.yaml", "image/Dockerfile"):
            (other.root / name).write_text((self.desk.root / name).read_text())
        other.up(*(up or ("--no-image",)))
        return other

    def without_spare(self) -> Path:
        """The hostfile of the same cluster, of its three nodes alone."""
        path = self.desk.root / "alone" / self.desk.hosts.name
        path.parent.mkdir(exist_ok=True)
        lines = self.desk.hosts.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "spare=true" not in line))
        return path

    # -- what is known of a run from outside -------------------------------------

    def sh(self, node: str, script: str, seconds: float = 30) -> str:
        """What a shell on a node prints, by a way that no fault of the network closes."""
        return self.node(node).inside(["sh", "-ec", script], timeout=seconds)

    def runs(self) -> list[str]:
        """Runs that the shared dir holds."""
        found = self.sh(self._awake(), f"ls {BEHIND}/*/run.json 2>/dev/null || :").split()
        return [Path(one).parent.name for one in found]

    def shared(self, run: str, path: str) -> str:
        """A file of the run."""
        return self.sh(self._awake(), f"cat {shlex.quote(f'{BEHIND}/{run}/{path}')}")

    def outcome(self, run: str) -> dict[str, Any]:
        """outcome.json of the run."""
        body: dict[str, Any] = json.loads(self.shared(run, "outcome.json"))
        return body

    def over(self, run: str, seconds: float = 300) -> dict[str, Any]:
        """Wait until the run has an outcome, whoever watches; the outcome."""
        there = f"[ -e {BEHIND}/{run}/outcome.json ] && echo yes || :"
        until(lambda: self.sh(self._awake(), there) == "yes", seconds, f"the end of {run}")
        return self.outcome(run)

    def notes(self, run: str) -> list[Note]:
        """What the witnesses wrote, on all nodes that are on."""
        found = []
        for node in filter(_is_on, self.lab.nodes):
            for line in self.sh(node.name, f"cat {NOTES}/{run}.jsonl 2>/dev/null || :").splitlines():
                body = json.loads(line)
                found.append(Note(**{**body, "seen": tuple(body["seen"])}))
        return found

    def step(self, run: str) -> int:
        """The newest step."""
        return max((note.step for note in self.notes(run)), default=0)

    def resumed(self, run: str) -> int:
        """The first step of the newest attempt; 0 where there was only one."""
        notes = self.notes(run)
        newest = max(note.attempt for note in notes)
        return min(note.step for note in notes if note.attempt == newest) if newest else 0

    def checkpoints(self, run: str) -> list[int]:
        """Steps of the complete checkpoints."""
        listed = f"ls {BEHIND}/{run}/checkpoints/*/manifest.json 2>/dev/null || :"
        found = self.sh(self._awake(), listed).split()
        return sorted(int(Path(one).parent.name.removeprefix("step-")) for one in found)

    def saved(self, run: str, begun: Controller | None = None) -> int:
        """Wait for the first complete checkpoint; its step."""
        until(lambda: bool(self.checkpoints(run)), 240, "a checkpoint", begun)
        return self.checkpoints(run)[-1]

    def containers(self, node: str, run: str) -> list[str]:
        """Running containers of a run on a node."""
        return self.sh(node, f"docker ps -q --filter label=clusterft.run={run}").split()

    def _awake(self) -> str:
        """A node through which the shared dir can be seen."""
        return next(node.name for node in self.lab.nodes if _is_on(node))

    # -- faults ------------------------------------------------------------------

    def kill_rank(self, run: str, rank: int, signal: str = "KILL") -> float:
        """Send a rank a signal inside its container, where its own note tells its pid; when that was."""
        find = f"cat $(ls -t $(find /run/clusterft -name rank{rank}.pid) /dev/null | head -1)"
        for node in NODES:
            for container in self.containers(node, run):
                note = self.sh(node, f"docker exec {container} sh -c '{find}'")
                if note:
                    pid = json.loads(note)["pid"]
                    kill = f"date +%s.%N; kill -{signal} {pid}"
                    return float(self.sh(node, f"docker exec {container} sh -ec '{kill}'"))
        raise AssertionError(f"rank {rank} of {run} left no note of its pid")

    def kill_container(self, node: str, run: str) -> None:
        """Kill its first process, as the kernel does when memory runs out: nobody told the engine to."""
        (container,) = self.containers(node, run)
        self.sh(node, f"kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {container})")

    def returns(self, node: str, run: str) -> None:
        """Power a node on whose run is over; its part of it comes back, finds nobody, and ends by itself."""
        self.node(node).start()
        until(lambda: not self.containers(node, run), 120, f"the part of {run} on {node} to end")

    def fill_shared(self, leave_mib: int) -> None:
        """Leave only so much room in the shared dir."""
        room = f"$(($(df --output=avail -m {BEHIND} | tail -1) - {leave_mib}))"
        # A checkpoint may take some of it between the two.
        self.sh("n1", f"until fallocate -l {room}M {BEHIND}/.filler; do rm -f {BEHIND}/.filler; done 2>/dev/null")

    def free_shared(self) -> None:
        """Take that back."""
        self.sh("n1", f"rm -f {BEHIND}/.filler")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The shared dir hangs on all nodes."""
        for node in self.lab.nodes:
            node.freeze_shared()
        try:
            yield
        finally:
            for node in self.lab.nodes:
                node.thaw_shared()

    def swap_image(self, node: str) -> None:
        """Put another image under the cluster's tag, as a build by hand does."""
        tag = self.sh(node, "docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -v none | head -1")
        steps = f"other=$(docker create {tag}); docker cp /etc/hostname $other:/etc/changed"
        self.sh(node, f"{steps}; docker commit $other {tag} >/dev/null; docker rm $other >/dev/null")

    def pictures(self, node: str, folder: str) -> None:
        """Drawn pictures with captions in a folder of the node's own disk."""
        from clusterft_trainer import shapes

        with tempfile.TemporaryDirectory() as directory:
            for number in range(IMAGES):
                image, caption = shapes.draw(number)
                image.save(Path(directory, f"{number:05d}.png"))
                Path(directory, f"{number:05d}.txt").write_text(caption + "\n", encoding="utf-8")
            self.node(node).bring(Path(directory), folder)

    # -- what is left ------------------------------------------------------------

    def assert_each_once(self, run: str, epochs: int) -> None:
        """Every sample exactly once in every epoch."""
        ledger.assert_each_once(self.notes(run), IMAGES, epochs)

    def assert_clean(self) -> None:
        """Nothing is left on any node."""
        found = {node.name: remains.left(node, self.before[node.name], OURS) for node in self.lab.nodes}
        assert not any(found.values()), json.dumps(found, indent=1)[:4000]

    def clear(self) -> None:
        """Make the nodes as they were, whatever a test left: the next one must not pay for it."""
        for begun in self.controllers:
            if begun.process.poll() is None:
                begun.kill()
        for node in self.lab.nodes:
            if not _is_on(node):
                node.start()
            node.restore_link()
            node.full_speed()
            node.thaw_shared()
            running = "docker version >/dev/null 2>&1"
            self.sh(node.name, f"{running} || lab-engine; until {running}; do sleep 0.1; done", 60)
            self.sh(node.name, f"docker ps -aq | xargs -r docker rm -f >/dev/null; rm -f {NOTES}/*", 90)
        self.free_shared()
        self.sh("n1", f"rm -rf {BEHIND}/tiny-*")


def _is_on(node: FullNode) -> bool:
    try:
        node.inside(["true"])
    except LabError:
        return False
    return True


@contextlib.contextmanager
def rigged(root: Path, count: int = 4) -> Iterator[Rig]:
    """A lab that is up, with its image on all nodes; nothing of it stays."""
    with FullLab.up(count, mounts=MOUNTS, hangs=True, shared_mib=2048) as lab:
        assert lab.shared == SHARED
        hosts = lab.access.hostfile_for(USER).read_text()
        rig = Rig(lab, Desk(root, hosts.replace(f"{SPARE} slots=1", f"{SPARE} slots=1 spare=true")))
        (root / "image" / "Dockerfile").write_text(DOCKERFILE)
        rig.write()
        for node in lab.nodes:
            rig.sh(node.name, f"install -d -m 1777 {NOTES}")
        rig.sh("n1", f"chmod 1777 {BEHIND}")
        rig.desk.up()
        rig.before = {node.name: remains.files(node) for node in lab.nodes}
        yield rig
