"""The networks that `--model` knows."""

from torch import nn


def narrow(seen: int) -> nn.Module:
    """A few thousand weights."""
    return nn.Sequential(nn.Linear(seen, 64), nn.Tanh(), nn.Linear(64, 1))


def wide(seen: int) -> nn.Module:
    """A few hundred thousand."""
    return nn.Sequential(nn.Linear(seen, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))


MODELS = {"narrow": narrow, "wide": wide}
