"""What every engine can do, whatever it spreads over the ranks."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clusterft_trainer.engine.pieces import Piece


class Source(Protocol):
    """A checkpoint as an engine reads it."""

    states: tuple[str, ...]  # of the optimizer, an element for each weight; empty where they cannot be used
    count: float
    rest: Mapping[str, Mapping[str, Any]]

    def read(self, kind: str, name: str, first: int, end: int) -> torch.Tensor:
        """Elements of a flattened tensor: `kind` is weight, or the name of a state."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What an optimizer step did."""

    norm: float | None  # of all gradients, before clipping; None where it was not computed
    applied: bool = True  # False: half precision overflowed and the step was left out


class Engine(ABC):
    """A model whose weights move, spread over the ranks.

    A training step is: `micro(last)` around forward and `backward` of each micro-batch, then `step`.
    """

    kind: str
    averages: int  # gradients are divided by this between backward and step
    replicated: bool  # whether each rank can compute alone, without the others
    bare: Any  # the Denoiser itself

    @abstractmethod
    def forward(self, *inputs: Any) -> torch.Tensor:
        """Call the model as the engine needs it called, in the precision of the run."""

    @abstractmethod
    def micro(self, last: bool) -> AbstractContextManager[None]:
        """Stands around one micro-batch; only the last one of a step has gradients exchanged."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Add this loss's gradients."""

    @abstractmethod
    def step(self) -> Moved:
        """Clip, move the weights, forget the gradients."""

    @property
    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, whose rates may be set."""

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """What this rank answers for when all ranks together write: weights, and the state of the optimizer."""

    @abstractmethod
    def load(self, source: Source) -> None:
        """Take over weights, and what of the optimizer's state the source has. A collective."""

    @abstractmethod
    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Put other weights in the place of this rank's pieces', here and in what computes. A collective."""

    @property
    @abstractmethod
    def count(self) -> float:
        """Optimizer steps taken, as the optimizer itself counts them."""

    @property
    def exposed(self) -> float | None:
        """Seconds of a step in which computing waits for the exchange of gradients; None where nobody measures."""
        return None

    def averaged(self) -> AbstractContextManager[None]:
        """Stands around what looks at the weights from outside: some optimizers publish others than they train."""
        return contextlib.nullcontext()

    def scalars(self) -> dict[str, float]:
        """Numbers of the engine that belong to a checkpoint: loss scaling."""
        return {}

    def take_scalars(self, scalars: dict[str, float]) -> None:
        """The reverse of scalars()."""
        if scalars:
            raise NotImplementedError(f"engine {self.kind} has no loss scaling")

    def rest(self) -> dict[str, dict[str, Any]]:
        """Optimizer state that is no element for each weight: name of the weight -> key -> tensor or number."""
        return {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each trained weight's name and shape."""
        return {n: shape_of(p) for n, p in self.bare.named_parameters() if p.requires_grad}


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The whole shape, also where only a part is here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
