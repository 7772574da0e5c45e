"""Act: the same bytes to all nodes, each sent once by the controller and passed on from node to node."""

from clusterft.ship.bring import Origin, Shipment, image
from clusterft.ship.convoy import Convoy, Target
from clusterft.ship.layout import Blob, ImageParts

__all__ = ["Blob", "Convoy", "ImageParts", "Origin", "Shipment", "Target", "image"]
