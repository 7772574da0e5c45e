"""Act: the one image of a cluster: how it is made, that it works, what it is."""

from clusterft.image.build import Made, make
from clusterft.image.identity import Identity, differences, from_inspect, identify
from clusterft.image.registry import pull, push

__all__ = ["Identity", "Made", "differences", "from_inspect", "identify", "make", "pull", "push"]
