"""Distributions over actions as plain values. Every draw takes the generator that owns it.

`sample`, `mode` and the argument of `log_prob` are in the distribution's own units: category numbers, or unbounded
reals that the policy squeezes into the environment's range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Distribution(Protocol):
    """What a policy needs of a distribution over a batch `[N, ...]`."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw per row."""
        ...

    def mode(self) -> Tensor:
        """The most probable action per row."""
        ...

    def log_prob(self, sample: Tensor) -> Tensor:
        """float `[N]`: log-probability (density) of each row's sample."""
        ...

    def entropy(self) -> Tensor:
        """float `[N]`, in nats."""
        ...


@dataclass(frozen=True, slots=True)
class Categorical:
    """One choice among n per row. `log_probs`: normalised, float `[..., n]`."""

    log_probs: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor) -> Categorical:
        """Normalise logits `[..., n]` (log-softmax: no epsilon, no underflow).

        Written out: for as few categories as actions are, torch's own takes several times as long on a CPU.
        """
        shifted = logits - logits.detach().amax(dim=-1, keepdim=True)  # a shift changes neither result nor gradient
        return cls(shifted - shifted.exp().sum(dim=-1, keepdim=True).log())

    def sample(self, generator: torch.Generator) -> Tensor:
        """int64 `[...]`, by inverting the cumulative distribution: one uniform number per row.

        The threshold lies in (0, total], so that a category of probability zero is never chosen and rounding cannot
        run past the last one, however small the probabilities are.
        """
        cumulative = self.log_probs.exp().cumsum(dim=-1)
        uniform = torch.rand(
            self.log_probs.shape[:-1], generator=generator, device=cumulative.device, dtype=cumulative.dtype
        )
        threshold = (1.0 - uniform) * cumulative[..., -1]
        choice = (cumulative < threshold.unsqueeze(-1)).sum(dim=-1)
        if choice.device.type == "cpu":
            return choice
        # Elsewhere sums may be made in parallel, each in an order of its own: where a probability is zero, two
        # neighbours can then differ in their last bit.
        return torch.where(self.log_prob(choice).exp() > 0.0, choice, self.mode())

    def mode(self) -> Tensor:
        """int64 `[...]`."""
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, sample: Tensor) -> Tensor:
        """float `[...]`."""
        return self.log_probs.gather(-1, sample.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """float `[...]`. A probability of exactly zero contributes zero."""
        return -(self.log_probs.exp() * self.log_probs.clamp(min=torch.finfo(self.log_probs.dtype).min)).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class MultiCategorical:
    """Several independent choices per row; samples are int64 `[..., len(parts)]`."""

    parts: tuple[Categorical, ...]

    @classmethod
    def from_logits(cls, logits: Tensor, nvec: tuple[int, ...]) -> MultiCategorical:
        """Split logits `[..., sum(nvec)]` into one categorical per choice."""
        return cls(tuple(Categorical.from_logits(part) for part in logits.split(nvec, dim=-1)))

    def sample(self, generator: torch.Generator) -> Tensor:
        """int64 `[..., len(parts)]`."""
        return torch.stack([part.sample(generator) for part in self.parts], dim=-1)

    def mode(self) -> Tensor:
        """int64 `[..., len(parts)]`."""
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, sample: Tensor) -> Tensor:
        """float `[...]`: the choices are independent, their log-probabilities add."""
        terms = [part.log_prob(choice) for part, choice in zip(self.parts, sample.unbind(-1), strict=True)]
        return torch.stack(terms).sum(dim=0)

    def entropy(self) -> Tensor:
        """float `[...]`."""
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normals: `mean` float `[..., d]`, `log_std` broadcastable to it."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """float `[..., d]`."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """float `[..., d]`."""
        return self.mean

    def log_prob(self, sample: Tensor) -> Tensor:
        """float `[...]`."""
        standard = (sample - self.mean) * (-self.log_std).exp()
        return (-0.5 * standard.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """float `[...]`."""
        return (self.log_std + 0.5 * (1 + math.log(2 * math.pi))).expand_as(self.mean).sum(dim=-1)
