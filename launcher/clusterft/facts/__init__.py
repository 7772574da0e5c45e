"""What is true on a node: one POSIX-sh probe (`probe`) and the pure parser of what it prints (`node`)."""

from clusterft.facts.node import Asked, Disk, Gpu, NodeFacts, Unreadable, parse
from clusterft.facts.probe import HOME, script

__all__ = ["HOME", "Asked", "Disk", "Gpu", "NodeFacts", "Unreadable", "parse", "script"]
