"""The environment of the ranks. Pure; placeholders of `assignment.Term` in it are filled in by each attempt.

Plain processes get exactly this: nothing is inherited, so a stray variable on a node changes nothing. In a
container it comes on top of what the image sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from clusterft.checks import Survey
from clusterft.checks.job import used
from clusterft.hosts import Node
from clusterft.places import NodePlaces, RunPlaces
from clusterft.plan import engine
from clusterft.plan.network import Address
from clusterft.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Site:
    """One node, as its ranks find it."""

    node: Node
    address: Address
    python: str
    places: NodePlaces
    run: RunPlaces


def ranks(spec: JobSpec, survey: Survey, site: Site) -> dict[str, str]:
    """All variables of one node's ranks, but for secrets."""
    node = site.node
    env = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(_threads(spec, survey, node)),
        "MASTER_ADDR": "@MASTER_ADDR@",
        "MASTER_PORT": "@MASTER_PORT@",
        "CLUSTERFT_RUN": site.run.run,
        "CLUSTERFT_RUN_DIR": str(site.run.dir),
        "CLUSTERFT_NODE": node.name,
        "CLUSTERFT_MACHINE_RANK": str(survey.cluster.active.index(node)),
        "CLUSTERFT_DEVICE": spec.resources.device,
        **engine.environment(spec, node.slots),
    }
    env |= _own_world(spec, survey, site) if spec.runtime == "process" else {}
    # A run must not depend on a hub that answers; a script may ask one. Shipped code is nobody's cache.
    env |= {"HF_HUB_OFFLINE": "1"} if spec.train else {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= _cards(spec, survey, node)
    if spec.stagger_seconds:
        env["CLUSTERFT_STAGGER"] = f"{spec.stagger_seconds:g}"
    return env | interface(site.address) | spec.env


def interface(address: Address) -> dict[str, str]:
    """What the libraries of collectives take their sockets from."""
    if not address.interface:
        return {}
    return {"NCCL_SOCKET_IFNAME": f"={address.interface}", "GLOO_SOCKET_IFNAME": address.interface}


def visible(node: Node, device: Literal["cpu", "cuda"], *, contained: bool) -> dict[str, str]:
    """Which cards the ranks see, and in which order."""
    if device == "cpu":
        return {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # CUDA's own order is fastest first; card numbers in a hostfile are nvidia-smi's, by PCI bus.
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if node.gpus and not contained:  # a container sees these cards alone, and numbers them from 0
        env["CUDA_VISIBLE_DEVICES"] = ",".join(node.gpus)
    return env


def _own_world(spec: JobSpec, survey: Survey, site: Site) -> dict[str, str]:
    """What an image would have set."""
    facts = survey.facts[site.node.name]
    python = PurePosixPath(site.python)
    first = f"{python.parent}:" if python.is_absolute() else ""
    home = PurePosixPath(facts.home or "/")
    cache = site.places.base / "cache"
    env = {
        "PATH": f"{first}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "USER": facts.user or "",
        "LANG": "C.UTF-8",
        "TRITON_CACHE_DIR": str(cache / "triton"),
        # Vocabulary files may be those that an earlier download left in the user's cache.
        "HF_HUB_CACHE": str(home / ".cache" / "huggingface" / "hub"),
    }
    # A private home for the rest: a default_config.yaml of the user's own must not alter a run.
    return env | {"HF_HOME": str(cache / "huggingface")}


def _cards(spec: JobSpec, survey: Survey, node: Node) -> dict[str, str]:
    env = visible(node, spec.resources.device, contained=spec.runtime == "docker")
    if spec.resources.device == "cpu":
        return env
    cards = used(node, survey.facts[node.name])
    if node.gpus and spec.runtime == "process":
        named = {key: card for card in cards for key in (str(card.index), card.uuid)}
        cards = tuple(named[key] for key in node.gpus if key in named)
    buses = [card.bus_id[-12:].lower() for card in cards if card.bus_id]
    if len(buses) == node.slots:  # a rank runs on the cores that are nearest to its card
        env["CLUSTERFT_CARDS"] = ";".join(buses)
    return env


def _threads(spec: JobSpec, survey: Survey, node: Node) -> int:
    """A fair share of the machine's cores; nodes that are one machine share them too."""
    if spec.resources.threads:
        return spec.resources.threads
    facts = survey.facts[node.name]
    same = [n for n in survey.cluster.active if survey.facts[n.name].boot_id == facts.boot_id]
    return max(1, (facts.cores or 1) // sum(n.slots for n in same))
