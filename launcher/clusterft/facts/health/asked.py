"""What one look at a node's health is about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """Of one node; `word` frames the answer."""

    word: str
    shared: str | None = None
    port: int = 29500
    cluster: str = ""
    cuda: bool = True
    sent: float = 0.0  # unix seconds on the controller
    received: float = 0.0
    contained: bool = True  # training runs in containers
    tag: str | None = None  # of the run's image
    clock: str = ""  # what the node's date said between the two
    paths: tuple[str, ...] = ()  # that the job names on nodes, outside the shared directory
