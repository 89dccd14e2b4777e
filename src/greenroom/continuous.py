"""Policies that learn from a state-action value: bounded continuous actions, drawn within [-1, 1] and stretched.

One module serves both kinds. What differs is the head: a Gaussian squeezed by tanh (SAC) or one action with noise for
exploration (TD3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from greenroom.errors import UserError
from greenroom.linear import Linear
from greenroom.maths.distributions import Gaussian
from greenroom.networks import initialise
from greenroom.policy import Body, Interval, PolicyConfig, Precision, normalizer_of, one_step
from greenroom.spec import Bounded, EnvSpec
from greenroom.types import Decision, Obs, State


class UnitActions(Protocol):
    """What a policy decides for N observations: how to draw actions `[N, D]` within [-1, 1]."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw per row, as it is acted with."""
        ...

    def mode(self) -> Tensor:
        """The greedy action of each row."""
        ...


@dataclass(frozen=True, slots=True)
class TanhGaussian:
    """`tanh(x)` of independent normals x (Haarnoja et al. 2018)."""

    normal: Gaussian

    def sample(self, generator: torch.Generator) -> Tensor:
        """float `[N, D]` within [-1, 1]."""
        return self.normal.sample(generator).tanh()

    def mode(self) -> Tensor:
        """float `[N, D]` within [-1, 1]: tanh of the mean."""
        return self.normal.mode().tanh()

    def log_prob(self, raw: Tensor) -> Tensor:
        """float `[N]`: log-density of `tanh(raw)`, with `raw` float `[N, D]`; exact wherever `raw` is.

        The change of variables costs log(1 − tanh²(x)) = 2·(log 2 − x − softplus(−2x)), which does not round to log 0.
        """
        return self.normal.log_prob(raw) - (2.0 * (math.log(2.0) - raw - softplus(-2.0 * raw))).sum(dim=-1)

    def sample_with_log_prob(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """float `[N, D]` within [-1, 1] and its log-density `[N]`, both differentiable in the distribution."""
        raw = self.normal.sample(generator)
        return raw.tanh(), self.log_prob(raw)


@dataclass(frozen=True, slots=True)
class NoisyAction:
    """One action per row, float `[N, D]` within [-1, 1], and how far draws stray from it."""

    action: Tensor
    noise: float
    """Standard deviation of Gaussian noise, in units of half the action range."""
    clip: float = math.inf
    """The noise does not go beyond ± this."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """float `[N, D]`: with noise, held within [-1, 1]."""
        noise = torch.randn(self.action.shape, generator=generator, device=self.action.device, dtype=self.action.dtype)
        return (self.action + (self.noise * noise).clamp(-self.clip, self.clip)).clamp(-1.0, 1.0)

    def mode(self) -> Tensor:
        """float `[N, D]`: without noise."""
        return self.action


class GaussianHead(nn.Module):
    """Mean and standard deviation for every state."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.layer = Linear(features, 2 * size)

    def forward(self, features: Tensor) -> TanhGaussian:
        """Distribution over `[N, D]` for features `[N, F]`."""
        mean, log_std = self.layer(features).chunk(2, dim=-1)
        # Bounds of the authors' code; they keep the density finite.
        return TanhGaussian(Gaussian(mean, log_std.clamp(-20.0, 2.0)))


class DeterministicHead(nn.Module):
    """One action for every state (Fujimoto et al. 2018)."""

    def __init__(self, features: int, size: int, noise: float) -> None:
        super().__init__()
        self.layer = Linear(features, size)
        self.noise = noise

    def forward(self, features: Tensor) -> NoisyAction:
        """Actions `[N, D]` for features `[N, F]`."""
        return NoisyAction(self.layer(features).tanh(), self.noise)


class ActionNetwork(nn.Module):
    """What decides: body and head."""

    def __init__(self, body: Body, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Obs) -> Any:
        """The head's `UnitActions` for normalised observations `[N, ...]`."""
        features, _ = self.body(one_step(inputs), {}, None)
        return self.head(features)


class ContinuousPolicy(nn.Module):
    """Normaliser → body → head → the environment's range. It puts no extras into the rollout."""

    remembers = False
    """It cannot have a memory."""
    at_random: Tensor

    def __init__(
        self,
        settings: PolicyConfig,
        spec: EnvSpec,
        precision: Precision,
        *,
        algo: str,
        head: Callable[[int, int], nn.Module],
    ) -> None:
        """Draw the weights from torch's global generator.

        Args:
            settings: what surrounds the decision; no memory.
            spec: the environment, with `Bounded` actions.
            precision: arithmetic of convolutional networks.
            algo: who asks, for messages.
            head: number of features and size of an action to the head.

        Raises:
            UserError: other actions, or settings that have no use here.
        """
        super().__init__()
        if not isinstance(spec.action, Bounded):
            raise UserError(
                f"{algo} needs bounded continuous actions, and those of {spec.name} are discrete; "
                "use --algo ppo or --algo dqn"
            )
        settings.only_actor_critic(algo)
        if settings.memory.memory != "none":
            raise UserError(
                f"{algo} cannot learn a memory; leave out --memory {settings.memory.memory}, or use --algo ppo"
            )
        self.settings, self.precision = settings, precision
        self.normalizer = normalizer_of(settings, spec, precision)
        body = Body(settings, spec.obs, precision)
        self.size = math.prod(spec.action.shape)
        self.actor = ActionNetwork(body, head(body.features, self.size))
        self.interval = Interval(spec.action)
        # Saved with the weights and copied with them: whether actions are uniformly random, as before learning starts.
        self.register_buffer("at_random", torch.tensor(True))
        initialise(body, settings.initialisation, math.sqrt(2.0))
        initialise(self.actor.head, settings.initialisation, 0.01)

    def initial_state(self, num_envs: int) -> State:
        """Nothing: it has no memory."""
        return {}

    def to_unit(self, action: Tensor) -> Tensor:
        """Actions `[N, *shape]` in the environment's units to `[N, D]` within [-1, 1]."""
        low, high = self.interval.low, self.interval.high
        # A range of no width has one action; anything will do for it, but not 0 / 0.
        width = (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        return 2.0 * (action.reshape(len(action), -1) - low) / width - 1.0

    @torch.no_grad()
    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """One action per row: drawn (uniformly while `at_random`), or without a generator the greedy one."""
        decided: UnitActions = self.actor(self.normalizer(obs))
        unit = decided.mode() if generator is None else self._explore(decided, generator)
        return Decision(action=self.interval(unit), extras={}, state=state)

    def _explore(self, decided: UnitActions, generator: torch.Generator) -> Tensor:
        drawn = decided.sample(generator)
        uniform = torch.rand(drawn.shape, generator=generator, device=drawn.device, dtype=drawn.dtype) * 2.0 - 1.0
        return torch.where(self.at_random, uniform, drawn)

    def forward(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """The greedy action per row, in the environment's units, and the state (nothing)."""
        decided: UnitActions = self.actor(self.normalizer(obs))
        return self.interval(decided.mode()), state
