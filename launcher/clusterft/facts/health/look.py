"""The script of doctor's look, put together from the layers' sections, and its answer -> Health. Pure.

A layer's module has `sections(asked)`, name -> commands that end soon, each in a subshell; `stages(asked)`,
the same for what may take seconds (an engine, a driver), run beside each other; and `parse(said, asked)`. They may
use the shell functions of facts.probe: limit SECONDS COMMAND (killed after that), hear SECONDS COMMAND (given up
on after that, even if it sleeps in the kernel), room DIRECTORY. stderr is /dev/null.

A stage as a whole is cut after some seconds; then `said` has its name with `.cut` behind it too, and its parser
must not take what is there for all there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterft.facts import frames, probe
from clusterft.facts.health import confines, docker, gpu, host, network, ours, storage
from clusterft.facts.health.asked import Asked

_SECONDS = 11  # for a stage; the whole look has 15
_LAYERS = (host, docker, gpu, network, storage, ours, confines)


@dataclass(frozen=True, slots=True)
class Health:
    """One node at one moment; what could not be read is None, never a default."""

    node: str
    host: host.HostHealth
    docker: docker.DockerHealth
    gpu: gpu.GpuHealth
    network: network.NetworkHealth
    storage: storage.StorageHealth
    ours: ours.OursHealth
    confines: confines.Confines = confines.Confines(memory=(), processes=())


def script(asked: Asked) -> str:
    """The text for one node's sh."""
    sections, stages = _texts(asked)
    return probe.framed(asked.word, sections, stages, within=_SECONDS)


def parse(node: str, output: str, asked: Asked) -> Health:
    """Read one node's answer; Unreadable when the frames are not all there."""
    sections, stages = _texts(asked)
    said = frames.framed(output, asked.word, (*sections, *stages))
    return Health(
        node=node,
        host=host.parse(said, asked),
        docker=docker.parse(said, asked),
        gpu=gpu.parse(said, asked),
        network=network.parse(said, asked),
        storage=storage.parse(said, asked),
        ours=ours.parse(said, asked),
        confines=confines.parse(said, asked),
    )


def _texts(asked: Asked) -> tuple[dict[str, str], dict[str, str]]:
    sections = {name: text for layer in _LAYERS for name, text in layer.sections(asked).items()}
    stages = {name: text for layer in _LAYERS for name, text in layer.stages(asked).items()}
    return sections, stages
