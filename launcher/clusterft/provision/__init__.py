"""Act: what every node needs besides an image: relay keys, pins, hostfile, and the way back.

`apply` gives, `take_back` takes; `worlds` decides what a run's containers need to reach each other.
"""

from clusterft.provision.install import Provisioned, apply
from clusterft.provision.member import Member, Order, hostfile, members
from clusterft.provision.proof import Proof
from clusterft.provision.takeback import take_back

__all__ = ["Member", "Order", "Proof", "Provisioned", "apply", "hostfile", "members", "take_back"]
