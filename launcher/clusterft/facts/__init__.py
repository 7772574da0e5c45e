"""What is true on a node: one POSIX-sh probe (`probe`) and the pure parsers of its answer."""

from clusterft.facts.docker import Docker
from clusterft.facts.frames import Asked, Unreadable
from clusterft.facts.gpu import Gpu, GpuProcess, Nvidia
from clusterft.facts.network import Address, Firewall, InfiniBand, Link
from clusterft.facts.node import UNLIMITED, DockerGroup, Limits, NodeFacts, System, parse
from clusterft.facts.probe import HOME, script
from clusterft.facts.storage import Disk, Mount, Room

__all__ = [
    "HOME",
    "UNLIMITED",
    "Address",
    "Asked",
    "Disk",
    "Docker",
    "DockerGroup",
    "Firewall",
    "Gpu",
    "GpuProcess",
    "InfiniBand",
    "Limits",
    "Link",
    "Mount",
    "NodeFacts",
    "Nvidia",
    "Room",
    "System",
    "Unreadable",
    "parse",
    "script",
]
