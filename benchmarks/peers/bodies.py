"""The networks, without heads, of peers that bring none of their own. To be imported once the options are read."""

from __future__ import annotations

from torch import nn


def nature() -> nn.Sequential:
    """NatureCNN (Mnih et al. 2015): pixels `[N, 4, 84, 84]` in [0, 1] to `[N, 512]`."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
    )


def small() -> nn.Sequential:
    """Two layers of 64: CartPole's `[N, 4]` to `[N, 64]`."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
