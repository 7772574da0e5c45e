"""Real nodes on this machine, for tests and for people; see __main__.py for the commands."""

from __future__ import annotations

from .errors import LabError, LabUnavailable
from .full import FullLab, full_available
from .full_node import FullNode
from .light import LightLab, LightNode, light_available
from .vm import VmLab, VmNode, vm_available

__all__ = [
    "FullLab",
    "FullNode",
    "LabError",
    "LabUnavailable",
    "LightLab",
    "LightNode",
    "VmLab",
    "VmNode",
    "full_available",
    "light_available",
    "vm_available",
]
