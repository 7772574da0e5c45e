"""Act: the same bytes to all nodes, each sent once by the controller and passed on from node to node."""

from clusterft.ship.bring import Origin, Shipment, image
from clusterft.ship.convoy import Convoy, Target
from clusterft.ship.layout import Blob, ImageParts
from clusterft.ship.pushing import Pushed, push

__all__ = ["Blob", "Convoy", "ImageParts", "Origin", "Pushed", "Shipment", "Target", "image", "push"]
