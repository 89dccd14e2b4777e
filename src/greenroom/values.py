"""A policy that knows what each action is worth, and takes the best one.

The head may be dueling (Wang et al. 2016), may describe the whole distribution of the return (`Categories`,
`Quantiles`) and may explore by noisy weights (Fortunato et al. 2018); Rainbow (Hessel et al. 2018) is all three.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from greenroom.errors import UserError
from greenroom.linear import Linear
from greenroom.maths.values import (
    categorical_projection,
    dueling,
    epsilon_greedy,
    quantile_huber,
    quantile_midpoints,
)
from greenroom.networks import Initialisation, initialise
from greenroom.policy import Body, PolicyConfig, Precision, allowed, forbid, normalizer_of, one_step
from greenroom.spec import Discrete, EnvSpec
from greenroom.types import Decision, Obs, State


class Returns(Protocol):
    """How the head describes the return of an action, by Z numbers; an `nn.Module`."""

    atoms: int
    """Z."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected return: `[..., Z]` to `[...]`."""
        ...

    def loss(self, outputs: Tensor, successor: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """How far `outputs` are from `reward + discount · successor`.

        Args:
            outputs: float `[N, Z]`, differentiable.
            successor: float `[N, Z]`.
            reward: float `[N]`.
            discount: float `[N]`.

        Returns:
            Loss and absolute error, the priority in replay; float `[N]` both.
        """
        ...


class Expectation(nn.Module):
    """The expected return alone."""

    atoms = 1

    def __init__(self, loss: Literal["huber", "squared"]) -> None:
        super().__init__()
        self.rule = loss

    def mean(self, outputs: Tensor) -> Tensor:
        """The number itself."""
        return outputs.squeeze(-1)

    def loss(self, outputs: Tensor, successor: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """Half the squared error; with `huber`, linear from 1 on (Mnih et al. 2015). The error is the difference."""
        value, target = outputs.squeeze(-1), reward + discount * successor.squeeze(-1)
        error = (value - target).detach().abs()
        if self.rule == "huber":
            return functional.huber_loss(value, target, reduction="none"), error
        return 0.5 * (value - target).square(), error


class Categories(nn.Module):
    """Probabilities of evenly spaced returns: C51 (Bellemare et al. 2017)."""

    support: Tensor

    def __init__(self, atoms: int, low: float, high: float) -> None:
        super().__init__()
        self.atoms = atoms
        self.register_buffer("support", torch.linspace(low, high, atoms), persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        """Expectation under the softmax of the outputs."""
        return outputs.softmax(-1) @ self.support

    def loss(self, outputs: Tensor, successor: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy with the projected target; it is the error, too, as in Rainbow."""
        target = categorical_projection(successor.softmax(-1), self.support, reward, discount)
        loss = -(target * outputs.log_softmax(-1)).sum(-1)
        return loss, loss.detach()


class Quantiles(nn.Module):
    """Evenly spaced quantiles of the return: QR-DQN (Dabney et al. 2018)."""

    levels: Tensor

    def __init__(self, atoms: int) -> None:
        super().__init__()
        self.atoms = atoms
        self.register_buffer("levels", quantile_midpoints(atoms), persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the quantiles."""
        return outputs.mean(-1)

    def loss(self, outputs: Tensor, successor: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """Quantile Huber loss; the error is that of the means."""
        target = reward.unsqueeze(-1) + discount.unsqueeze(-1) * successor
        error = (outputs.mean(-1) - target.mean(-1)).detach().abs()
        return quantile_huber(outputs, target, self.levels), error


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What a policy says about each action, and how."""

    dueling: bool = False
    """Split values into that of the situation and the advantages of actions (Wang et al. 2016)."""
    distribution: Literal["none", "c51", "quantile"] = "none"
    """Learn the whole distribution of returns, as `c51`'s probabilities or as quantiles, and act by its mean."""
    atoms: int = 51
    """Numbers that describe a distribution."""
    v_min: float = -10.0
    """`c51`: the lowest return there is; what is lower counts as this."""
    v_max: float = 10.0
    """`c51`: the highest return."""
    noisy: bool = False
    """Explore by noise on the head's weights (Fortunato et al. 2018); ε-greedy, unless ε is 0, comes on top."""
    loss: Literal["huber", "squared"] = "huber"
    """Without a distribution: half the error's square, or from an error of 1 on linear."""

    def __post_init__(self) -> None:
        if self.atoms < 2 or not self.v_min < self.v_max:
            raise UserError(
                f"atoms must be at least 2 and v_min less than v_max, not {self.atoms}, {self.v_min} and {self.v_max}"
            )
        if self.distribution != "none" and self.loss != "huber":
            raise UserError(f"loss={self.loss} is for distribution=none; {self.distribution} has a loss of its own")
        if self.distribution != "c51" and (self.v_min, self.v_max) != (-10.0, 10.0):
            raise UserError(f"v_min and v_max are for distribution=c51, not for {self.distribution}; leave them out")

    def returns(self) -> Returns:
        """What describes the return of an action."""
        if self.distribution == "c51":
            return Categories(self.atoms, self.v_min, self.v_max)
        return Quantiles(self.atoms) if self.distribution == "quantile" else Expectation(self.loss)


class Dense(nn.Module):
    """A linear layer, which may be noisy: factorised Gaussian noise on weights and biases (Fortunato et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, *, noisy: bool) -> None:
        super().__init__()
        self.mean = Linear(inputs, outputs)
        self.scale = Linear(inputs, outputs) if noisy else None

    def initialise(self, rule: Initialisation, gain: float) -> None:
        """Set the means by the rule, and all scales to σ₀/√inputs with the paper's σ₀ = 0.5."""
        initialise(self.mean, rule, gain)
        if self.scale is not None:
            for part in self.scale.parameters():
                nn.init.constant_(part, 0.5 / math.sqrt(self.scale.in_features))

    def forward(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """`[N, inputs]` to `[N, outputs]`; every row with noise of its own, or without generator with the means."""
        if self.scale is None or generator is None:
            return self.mean(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped
        # The noise of weight (o, i) is out[o] · into[i], that of bias o is out[o]: rank one, so no row needs a matrix.
        into, out = (_noise(len(x), size, generator) for size in (x.shape[1], self.mean.out_features))
        return self.mean(x) + out * self.scale(x * into)  # type: ignore[no-any-return]  # as above


def _noise(rows: int, size: int, generator: torch.Generator) -> Tensor:
    draw = torch.randn(rows, size, generator=generator, device=generator.device)
    return draw.sign() * draw.abs().sqrt()


class Stream(nn.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(self, *sizes: int, noisy: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Dense(*pair, noisy=noisy) for pair in itertools.pairwise(sizes))

    def initialise(self, rule: Initialisation) -> None:
        """Gains: √2 before a ReLU, 1 at the end."""
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, Dense)
            layer.initialise(rule, 1.0 if number == len(self.layers) else math.sqrt(2.0))

    def forward(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """`[N, first size]` to `[N, last size]`."""
        for number, layer in enumerate(self.layers):
            x = layer(x.relu() if number else x, generator)
        return x


class ValueHead(nn.Module):
    """Features to action values. A dueling head has two streams with a hidden layer as wide as the features each."""

    def __init__(self, features: int, actions: int, atoms: int, *, dueling: bool, noisy: bool) -> None:
        super().__init__()
        self.atoms = atoms
        hidden = (features,) if dueling else ()
        self.advantage = Stream(features, *hidden, actions * atoms, noisy=noisy)
        self.value = Stream(features, *hidden, atoms, noisy=noisy) if dueling else None

    def initialise(self, rule: Initialisation) -> None:
        """Set all weights."""
        for stream in (self.advantage, self.value):
            if stream is not None:
                stream.initialise(rule)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """`[N, F]` to `[N, A, Z]`."""
        advantage = self.advantage(features, generator).unflatten(-1, (-1, self.atoms))
        if self.value is None:
            return advantage  # type: ignore[no-any-return]  # nn.Module's call is untyped
        return dueling(self.value(features, generator).unsqueeze(1), advantage)


class QPolicy(nn.Module):
    """Values of discrete actions. It explores ε-greedily, each actor with an ε of its own, and by the head's noise.

    Extras in the rollout: `q`, float `[A]`. The algorithm sets `epsilon`.
    """

    epsilon: Tensor

    def __init__(
        self,
        config: PolicyConfig,
        spec: EnvSpec,
        precision: Precision,
        *,
        head: HeadConfig,
        epsilon: Sequence[float],
    ) -> None:
        """Draw the weights from torch's global generator.

        Args:
            config: what surrounds the head.
            spec: the environment.
            precision: of the encoder.
            head: what is said about each action.
            epsilon: probabilities of a random action; actor i has the one at i modulo their number.

        Raises:
            UserError: actions are not discrete.
        """
        super().__init__()
        if not isinstance(spec.action, Discrete):
            raise UserError(
                f"{spec.name} does not have discrete actions, and values of actions are learned for a finite number of "
                f"them; use --algo ppo or a2c, or with continuous actions sac"
            )
        self.normalizer = normalizer_of(config, spec, precision)
        self.body = Body(config, spec.obs, precision)
        self.returns = head.returns()
        self.head = ValueHead(
            self.body.features, spec.action.n, self.returns.atoms, dueling=head.dueling, noisy=head.noisy
        )
        self.register_buffer("epsilon", torch.tensor(epsilon))
        initialise(self.body, config.initialisation, math.sqrt(2.0))
        self.head.initialise(config.initialisation)

    @property
    def remembers(self) -> bool:
        """Whether it has a memory."""
        return self.body.memory is not None

    def initial_state(self, num_envs: int) -> State:
        """What every episode starts with: the memory's zeros, and the actor's number, which tells its ε."""
        return {**self.body.initial_state(num_envs), "actor": torch.arange(num_envs, device=self.epsilon.device)}

    def explore(self, epsilon: Sequence[float]) -> None:
        """Set the probabilities of a random action, as many as there were."""
        # Pinned, so that the processor need not wait for the copy.
        self.epsilon.copy_(torch.tensor(epsilon, pin_memory=self.epsilon.is_cuda), non_blocking=True)

    def evaluate(
        self, obs: Obs, state: State, cut: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, list[State]]:
        """Look at sequences, differentiably.

        Args:
            obs: `[L, N, ...]`.
            state: the memory before the first step, `[N, ...]` each; empty without one.
            cut: bool `[L, N]`: the episode ended after this step; None: nowhere.
            generator: of the noise; None: mean weights.

        Returns:
            The head's outputs float `[L·N, A, Z]` over rows in the order of time; Q-values float `[L·N, A]`, lowest
            where an action is forbidden; and the memory after each step, not yet started anew.
        """
        features, after = self.body(self.normalizer(obs), state, cut)
        outputs = self.head(features, generator)
        mask = _choice(obs)
        q = forbid(self.returns.mean(outputs), None if mask is None else mask.flatten(0, 1))
        return outputs, q, after

    def values(self, obs: Obs, state: State, cut: Tensor | None) -> Tensor:
        """Q-values float `[L·N, A]`: see `evaluate`."""
        return self.evaluate(obs, state, cut)[1]

    @torch.no_grad()
    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """One action per row: exploring, or without a generator the best one."""
        _, q, after = self.evaluate(one_step(obs), state, None, generator)
        if generator is None:
            action = q.argmax(-1)
        else:
            epsilon = self.epsilon[state["actor"] % len(self.epsilon)]
            action = epsilon_greedy(q, _choice(obs), epsilon, generator)
        return Decision(action=action, extras={"q": q}, state=state | after[-1])

    def forward(self, obs: Obs, state: State) -> tuple[Tensor, State]:
        """The best action per row, and the next state."""
        _, q, after = self.evaluate(one_step(obs), state, None)
        return q.argmax(-1), state | after[-1]


def _choice(obs: Obs) -> Tensor | None:
    """bool `[..., A]`: which actions may be taken; all, where none is allowed: Q-values of a last observation count."""
    mask = allowed(obs)
    return None if mask is None else mask | ~mask.any(-1, keepdim=True)
