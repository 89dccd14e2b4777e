"""One module acts, learns, is evaluated and ships: normaliser → network → distribution → the environment's action."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from greenroom.errors import UserError
from greenroom.linear import Linear
from greenroom.maths.distributions import Categorical, Distribution, Gaussian, MultiCategorical
from greenroom.memory import Memory
from greenroom.networks import Encoder, Initialisation, Mlp, NetworkConfig, initialise
from greenroom.normalize import ObsNormalizer
from greenroom.spec import MASK, ActionSpec, Bounded, Discrete, EnvSpec, ObsSpec
from greenroom.types import Decision, Obs, State, len_obs, map_obs


class Actor(Protocol):
    """Whatever can play: a policy, or a classical rule."""

    def initial_state(self, num_envs: int) -> State:
        """What every episode starts with, `[num_envs, ...]` each, on the policy's device."""
        ...

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """An action for observations `[N, ...]`: sampled, or without a generator the greedy one."""
        ...


class Trainee(Actor, Protocol):
    """An actor that learns from what it does."""

    @property
    def remembers(self) -> bool:
        """Whether it has a memory, so that it learns from whole sequences."""
        ...


class Policy(Trainee, Protocol):
    """What is trained and shipped: an `nn.Module` that acts."""

    normalizer: ObsNormalizer
    """Makes the inputs of observations; learning keeps its statistics."""

    def __call__(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """The greedy action in the environment's units, and the next state. This is what is exported."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All tensors by name."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over saved tensors."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is learned."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is learned, by name."""
        ...


Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What surrounds the decision: any algorithm's policy is built with it."""

    network: NetworkConfig = field(default_factory=Mlp)
    """The encoder of observations."""
    memory: Memory = Memory()
    """A recurrent layer behind the encoder."""
    separate_value: bool = False
    """Actor-critic: give the value function an encoder (and memory) of its own."""
    initialisation: Initialisation = "orthogonal"
    """`orthogonal` weights with zero biases, or `fan_in`: all uniform within ±1/√fan_in (PAAC's released code)."""
    normalize_obs: bool = False
    """Bring float observations to zero mean and unit variance, with statistics kept inside the policy."""
    initial_log_std: float = 0.0
    """Actor-critic, continuous actions: initial log standard deviation, in units of half the action range."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of convolutional networks. `auto`: bfloat16 on processors that are faster by it, else float32."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory layout of pictures and of convolutional weights. `auto`: on for a processor, where it pays."""

    def only_actor_critic(self, algo: str) -> None:
        """Refuse, for an algorithm without a state value, what only an actor-critic has.

        Raises:
            UserError: such a setting was given.
        """
        for name in ("separate_value", "initial_log_std"):
            if getattr(self, name) != getattr(PolicyConfig(), name):
                raise UserError(f"{algo} has no use for {name}: that is for a2c, ppo and vtrace; leave it out")


def visible(spec: ObsSpec) -> ObsSpec:
    """What a network sees of an observation: all but the mask of allowed actions."""
    return {name: part for name, part in spec.items() if name != MASK} if isinstance(spec, dict) else spec


def allowed(obs: Obs) -> Tensor | None:
    """bool `[..., n]`: which actions are allowed; None if all are."""
    return obs[MASK] > 0.5 if isinstance(obs, dict) and MASK in obs else None


def normalizer_of(settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ObsNormalizer:
    """What makes a network's inputs of an environment's observations."""
    arithmetic = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return ObsNormalizer(visible(spec.obs), running=settings.normalize_obs, bytes_to=arithmetic)


def forbid(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores `[N, n]` (logits, Q-values) with the lowest number where `mask` (bool `[N, n]`) forbids an action.

    Not minus infinity: a row that allows nothing, as a final observation may, stays finite.
    """
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


class Body(nn.Module):
    """Observation to features: encoder, then memory. L steps of N actors are L·N rows in the order of time."""

    def __init__(self, config: PolicyConfig, spec: ObsSpec, precision: Precision, *, prefix: str = "") -> None:
        super().__init__()
        self.encoder = Encoder(config.network, visible(spec))
        self.memory = config.memory.build(self.encoder.features, prefix)
        self.features = self.encoder.features if self.memory is None else self.memory.size
        self.precision = precision

    def initial_state(self, num_envs: int) -> State:
        """What every episode starts with."""
        return {} if self.memory is None else self.memory.initial_state(num_envs)

    def forward(self, inputs: Obs, state: State, cut: Tensor | None) -> tuple[Tensor, list[State]]:
        """Features of normalised observations.

        Args:
            inputs: float `[L, N, ...]`.
            state: before the first step, `[N, ...]` each.
            cut: bool `[L, N]`: the episode ended after this step; None: nowhere.

        Returns:
            float `[L·N, features]`, and the state after each step, not yet started anew (empty without memory).
        """
        length = len_obs(inputs)
        features = self._encode(map_obs(lambda part: part.flatten(0, 1), inputs))
        if self.memory is None:
            return features, [{}] * length
        outputs, after = self.memory(features.unflatten(0, (length, -1)), state, cut)
        return outputs.flatten(0, 1), after

    def _encode(self, inputs: Obs) -> Tensor:
        if self.precision == "float32":
            return self.encoder(inputs)  # type: ignore[no-any-return]  # nn.Module's call is untyped
        kind = inputs.device.type if isinstance(inputs, Tensor) else next(iter(inputs.values())).device.type
        with torch.autocast(kind, torch.bfloat16):
            features = self.encoder(inputs)
        return features.float()  # type: ignore[no-any-return]  # as above


def one_step(obs: Obs) -> Obs:
    """Observations `[N, ...]` as a sequence `[1, N, ...]`."""
    return map_obs(lambda part: part.unsqueeze(0), obs)


class Categoricals(nn.Module):
    """Head for discrete and multi-discrete actions."""

    def __init__(self, features: int, spec: ActionSpec) -> None:
        super().__init__()
        assert not isinstance(spec, Bounded)
        self.nvec = (spec.n,) if isinstance(spec, Discrete) else spec.nvec
        self.single = isinstance(spec, Discrete)
        self.logits = Linear(features, sum(self.nvec))

    def forward(self, features: Tensor, mask: Tensor | None) -> Distribution:
        """Distribution over the allowed action numbers for features `[N, F]`."""
        logits = forbid(self.logits(features), mask)
        return Categorical.from_logits(logits) if self.single else MultiCategorical.from_logits(logits, self.nvec)

    def to_env(self, sample: Tensor) -> Tensor:
        """Category numbers are the environment's own."""
        return sample


class Interval(nn.Module):
    """From [-1, 1] to the bounds of continuous actions."""

    low: Tensor
    high: Tensor

    def __init__(self, spec: Bounded) -> None:
        super().__init__()
        self.shape = spec.shape
        self.register_buffer("low", torch.tensor(spec.low))
        self.register_buffer("high", torch.tensor(spec.high))

    def forward(self, unit: Tensor) -> Tensor:
        """`[N, D]` within [-1, 1] to `[N, *shape]` within the bounds."""
        # lerp is exact at both ends, where low + (high - low) may round past high.
        return torch.lerp(self.low, self.high, (unit + 1.0) / 2.0).reshape(-1, *self.shape)


class BoundedGaussian(nn.Module):
    """Head for bounded continuous actions: a Gaussian over [-1, 1], clipped and stretched to the environment's range.

    Log-probabilities are those of the draw before clipping, as in the PPO implementations it is compared with.
    """

    def __init__(self, features: int, spec: Bounded, initial_log_std: float) -> None:
        super().__init__()
        size = math.prod(spec.shape)
        self.mean = Linear(features, size)
        self.log_std = nn.Parameter(torch.full((size,), initial_log_std))
        self.interval = Interval(spec)

    def forward(self, features: Tensor, mask: Tensor | None) -> Distribution:
        """Distribution over unbounded reals `[N, D]` for features `[N, F]`; nothing can be forbidden here."""
        mean = self.mean(features)
        return Gaussian(mean, self.log_std.expand_as(mean))

    def to_env(self, sample: Tensor) -> Tensor:
        """`[N, D]` in units of half the range to `[N, *shape]` within the bounds."""
        return self.interval(sample.clamp(-1.0, 1.0))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class ActorCritic(nn.Module):
    """Action distribution and state value. Extras in the rollout: `sample`, `log_prob`, `value`."""

    def __init__(self, config: PolicyConfig, spec: EnvSpec, precision: Precision) -> None:
        super().__init__()
        self.normalizer = normalizer_of(config, spec, precision)
        self.body = Body(config, spec.obs, precision)
        self.value_body = Body(config, spec.obs, precision, prefix="value_") if config.separate_value else None
        features = self.body.features
        self.head = (
            BoundedGaussian(features, spec.action, config.initial_log_std)
            if isinstance(spec.action, Bounded)
            else Categoricals(features, spec.action)
        )
        self.value_head = Linear(features, 1)
        # Gains: √2 in the network, 0.01 for actions (an even start), 1 for values (Huang et al. 2022).
        for body in self._bodies:
            initialise(body, config.initialisation, math.sqrt(2.0))
        initialise(self.head, config.initialisation, 0.01)
        initialise(self.value_head, config.initialisation, 1.0)

    @property
    def remembers(self) -> bool:
        """Whether it has a memory."""
        return self.body.memory is not None

    def initial_state(self, num_envs: int) -> State:
        """What every episode starts with: nothing, or the memory's zeros."""
        return {name: part for body in self._bodies for name, part in body.initial_state(num_envs).items()}

    @property
    def _bodies(self) -> tuple[Body, ...]:
        return (self.body,) if self.value_body is None else (self.body, self.value_body)

    def evaluate(self, obs: Obs, state: State, cut: Tensor | None) -> tuple[Distribution, Tensor]:
        """Look at sequences again, differentiably.

        Args:
            obs: `[L, N, ...]`.
            state: before the first step, `[N, ...]` each.
            cut: bool `[L, N]`: the episode ended after this step; None: nowhere.

        Returns:
            The action distribution over L·N rows in the order of time, and the value float `[L·N]`.
        """
        distribution, value, _ = self._pass(obs, state, cut)
        return distribution, value

    def _pass(self, obs: Obs, state: State, cut: Tensor | None) -> tuple[Distribution, Tensor, State]:
        inputs = self.normalizer(obs)
        features, after = self.body(inputs, state, cut)
        of_value, value_after = (features, after) if self.value_body is None else self.value_body(inputs, state, cut)
        mask = allowed(obs)
        distribution = self.head(features, None if mask is None else mask.flatten(0, 1))
        return distribution, self.value_head(of_value).squeeze(-1), {**after[-1], **value_after[-1]}

    @torch.no_grad()
    def value(self, obs: Obs, state: State) -> Tensor:
        """float `[N]` of observations `[N, ...]`, without gradient."""
        features, _ = (self.value_body or self.body)(self.normalizer(one_step(obs)), state, None)
        return self.value_head(features).squeeze(-1)  # type: ignore[no-any-return]  # nn.Module's call is untyped

    @torch.no_grad()
    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """One action per row: sampled, or without a generator the most probable one."""
        distribution, value, after = self._pass(one_step(obs), state, None)
        sample = distribution.mode() if generator is None else distribution.sample(generator)
        extras = {"sample": sample, "log_prob": distribution.log_prob(sample), "value": value}
        return Decision(action=self.head.to_env(sample), extras=extras, state=after)

    def forward(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """The most probable action per row, in the environment's units, and the next state."""
        features, after = self.body(self.normalizer(one_step(obs)), state, None)
        mask = allowed(obs)
        distribution: Distribution = self.head(features, mask)
        return self.head.to_env(distribution.mode()), state | after[-1]
