"""One module acts, learns, is evaluated and ships: normaliser → network → distribution → the environment's action."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from greenroom.maths.distributions import Categorical, Distribution, Gaussian, MultiCategorical
from greenroom.networks import Encoder, Initialisation, Mlp, NetworkConfig, initialise
from greenroom.normalize import ObsNormalizer
from greenroom.spec import ActionSpec, Bounded, Discrete, EnvSpec
from greenroom.types import Decision, Obs


class Policy(Protocol):
    """What acting and evaluation need of a policy."""

    def __call__(self, obs: Obs) -> Tensor:
        """The greedy action for observations `[N, ...]`, in the environment's units. This is what is exported."""
        ...

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """A sampled action for observations `[N, ...]`, and what the learner wants to find beside it."""
        ...


class Categoricals(nn.Module):
    """Head for discrete and multi-discrete actions."""

    def __init__(self, features: int, spec: ActionSpec) -> None:
        super().__init__()
        assert not isinstance(spec, Bounded)
        self.nvec = (spec.n,) if isinstance(spec, Discrete) else spec.nvec
        self.single = isinstance(spec, Discrete)
        self.logits = nn.Linear(features, sum(self.nvec))

    def forward(self, features: Tensor) -> Distribution:
        """Distribution over action numbers for features `[N, F]`."""
        logits = self.logits(features)
        return Categorical.from_logits(logits) if self.single else MultiCategorical.from_logits(logits, self.nvec)

    def to_env(self, sample: Tensor) -> Tensor:
        """Category numbers are the environment's own."""
        return sample


class BoundedGaussian(nn.Module):
    """Head for bounded continuous actions: a Gaussian over [-1, 1], clipped and stretched to the environment's range.

    Log-probabilities are those of the draw before clipping, as in the PPO implementations it is compared with.
    """

    low: Tensor
    high: Tensor

    def __init__(self, features: int, spec: Bounded, initial_log_std: float) -> None:
        super().__init__()
        self.shape = spec.shape
        size = math.prod(spec.shape)
        self.mean = nn.Linear(features, size)
        self.log_std = nn.Parameter(torch.full((size,), initial_log_std))
        self.register_buffer("low", torch.tensor(spec.low))
        self.register_buffer("high", torch.tensor(spec.high))

    def forward(self, features: Tensor) -> Distribution:
        """Distribution over unbounded reals `[N, D]` for features `[N, F]`."""
        mean = self.mean(features)
        return Gaussian(mean, self.log_std.expand_as(mean))

    def to_env(self, sample: Tensor) -> Tensor:
        """`[N, D]` in units of half the range to `[N, *shape]` within the bounds."""
        unit = (sample.clamp(-1.0, 1.0) + 1.0) / 2.0
        # lerp is exact at both ends, where low + (high - low) may round past high.
        return torch.lerp(self.low, self.high, unit).reshape(-1, *self.shape)


Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How the policy of an actor-critic algorithm is built."""

    network: NetworkConfig = field(default_factory=Mlp)
    """The encoder of observations."""
    separate_value: bool = False
    """Give the value function an encoder of its own."""
    initialisation: Initialisation = "orthogonal"
    """`orthogonal` weights with zero biases, or `fan_in`: all uniform within ±1/√fan_in (PAAC's released code)."""
    normalize_obs: bool = False
    """Bring float observations to zero mean and unit variance, with statistics kept inside the policy."""
    initial_log_std: float = 0.0
    """Continuous actions: initial log standard deviation, in units of half the action range."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of convolutional networks. `auto`: bfloat16 on processors with instructions for it, else float32."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory layout of convolutional weights. `auto`: on for float32 on a processor, where it pays."""

    def build(self, spec: EnvSpec, precision: Precision) -> ActorCritic:
        """The policy for one environment. Draws its weights from torch's global generator."""
        return ActorCritic(self, spec, precision)


class ActorCritic(nn.Module):
    """Action distribution and state value. Extras in the rollout: `sample`, `log_prob`, `value`."""

    def __init__(self, config: PolicyConfig, spec: EnvSpec, precision: Precision) -> None:
        super().__init__()
        self.normalizer = ObsNormalizer(spec.obs, running=config.normalize_obs)
        self.encoder = Encoder(config.network, spec.obs)
        self.value_encoder = Encoder(config.network, spec.obs) if config.separate_value else None
        features = self.encoder.features
        self.head = (
            BoundedGaussian(features, spec.action, config.initial_log_std)
            if isinstance(spec.action, Bounded)
            else Categoricals(features, spec.action)
        )
        self.value_head = nn.Linear(features, 1)
        self.precision = precision
        self._initialise(config)

    def _initialise(self, config: PolicyConfig) -> None:
        """Orthogonal gains: √2 in the network, 0.01 for actions (an even start), 1 for values (Huang et al. 2022)."""
        for encoder in (self.encoder, self.value_encoder):
            if encoder is not None:
                initialise(encoder, config.initialisation, math.sqrt(2.0))
        initialise(self.head, config.initialisation, 0.01)
        initialise(self.value_head, config.initialisation, 1.0)

    def _features(self, encoder: Encoder, obs: Obs) -> Tensor:
        if self.precision == "float32":
            return encoder(obs)  # type: ignore[no-any-return]  # nn.Module's call is untyped
        kind = obs.device.type if isinstance(obs, Tensor) else next(iter(obs.values())).device.type
        with torch.autocast(kind, torch.bfloat16):
            features = encoder(obs)
        return features.float()  # type: ignore[no-any-return]  # as above

    def evaluate(self, obs: Obs) -> tuple[Distribution, Tensor]:
        """Action distribution over N rows and value float `[N]`, both differentiable."""
        inputs = self.normalizer(obs)
        features = self._features(self.encoder, inputs)
        of_value = features if self.value_encoder is None else self._features(self.value_encoder, inputs)
        return self.head(features), self.value_head(of_value).squeeze(-1)

    @torch.no_grad()
    def value(self, obs: Obs) -> Tensor:
        """float `[N]`, without gradient."""
        encoder = self.encoder if self.value_encoder is None else self.value_encoder
        return self.value_head(self._features(encoder, self.normalizer(obs))).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """Sample one action per row."""
        distribution, value = self.evaluate(obs)
        sample = distribution.sample(generator)
        extras = {"sample": sample, "log_prob": distribution.log_prob(sample), "value": value}
        return Decision(action=self.head.to_env(sample), extras=extras)

    def forward(self, obs: Obs) -> Tensor:
        """The most probable action per row, in the environment's units."""
        distribution: Distribution = self.head(self._features(self.encoder, self.normalizer(obs)))
        return self.head.to_env(distribution.mode())
