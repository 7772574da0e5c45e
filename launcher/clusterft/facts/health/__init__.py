"""What doctor's own look at a node tells, beyond what `up` asks: one POSIX-sh script, a parser a layer."""

from clusterft.facts.health.asked import Asked
from clusterft.facts.health.docker import DockerHealth
from clusterft.facts.health.gpu import GpuHealth
from clusterft.facts.health.host import HostHealth
from clusterft.facts.health.look import Health, parse, script
from clusterft.facts.health.network import NetworkHealth
from clusterft.facts.health.ours import OursHealth
from clusterft.facts.health.storage import StorageHealth

__all__ = [
    "Asked",
    "DockerHealth",
    "GpuHealth",
    "Health",
    "HostHealth",
    "NetworkHealth",
    "OursHealth",
    "StorageHealth",
    "parse",
    "script",
]
