"""How one node's part of a plan is carried out: in a container (`contained`) or as plain processes (`process`)."""

from clusterft.runtime.carrier import DOWN, Carrier, Harvest, carrier

__all__ = ["DOWN", "Carrier", "Harvest", "carrier"]
