"""Act: the Docker engine of one machine, through the way that `remote` holds open."""

from clusterft.engine.client import Engine
from clusterft.engine.refusal import NoEngine

__all__ = ["Engine", "NoEngine"]
