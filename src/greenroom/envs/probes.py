"""Probe tasks: the smallest environments that an algorithm with one particular mistake cannot learn.

Each isolates one ability and has an exactly known answer, so that a failing probe names the broken part. All have a
handful of situations; an episode starts in one of `starts`, each as likely, and nothing else is left to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greenroom.envs.model import State, Transition
from greenroom.spec import MASK, ActionSpec, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.types import Obs, map_obs

Outcome = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Situation int64 `[B]` and action `[B, …]` to reward `[B]` and next situation int64 `[B]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeModel:
    """A task with N situations, written as tables; a `Model`."""

    name: str
    """What it is called in the registry."""
    obs: Obs
    """`[N, ...]`: what is seen in each situation, and the mask if there is one."""
    action: ActionSpec
    """The actions on offer."""
    starts: tuple[int, ...]
    """Situations in which an episode may start."""
    outcome: Outcome
    """What an action brings."""
    final: tuple[int, ...] = ()
    """Situations that terminate the episode on leaving them, whatever the action."""
    horizon: int = 0
    """Steps until truncation; 0 for never."""

    @property
    def spec(self) -> EnvSpec:
        """What one environment looks like."""
        if isinstance(self.obs, dict):
            parts = {name: ArraySpec(shape=tuple(part.shape[1:])) for name, part in self.obs.items()}
            if MASK in parts:
                parts[MASK] = replace(parts[MASK], low=0.0, high=1.0)
            return EnvSpec(name=self.name, obs=parts, action=self.action)
        return EnvSpec(name=self.name, obs=ArraySpec(shape=tuple(self.obs.shape[1:])), action=self.action)

    @property
    def terminates(self) -> bool:
        """Whether any situation is final."""
        return bool(self.final)

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        """State: `situation` int64 `[B]`."""
        drawn = torch.randint(len(self.starts), (num_envs,), generator=generator, device=device)
        return {"situation": torch.tensor(self.starts, device=device)[drawn]}

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        """Look the outcome up; nothing here is left to chance."""
        situation = state["situation"]
        reward, following = self.outcome(situation, action)
        final = torch.tensor(self.final, device=situation.device)
        return Transition(
            state={"situation": following},
            reward=reward.float(),
            terminated=torch.isin(situation, final) if self.final else None,
            signals={},
        )

    def observe(self, state: State) -> Obs:
        """`[B, ...]`: the rows of `obs`."""
        situation = state["situation"]
        return map_obs(lambda part: part.to(situation.device)[situation], self.obs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A probe task and its exact answer in each of its N situations."""

    model: ProbeModel
    """The task."""
    value: Callable[[float], Tensor]
    """gamma to float32 `[N]`: what each situation is worth under the optimal policy."""
    best_action: Tensor | None
    """`[N, ...]`: the only optimal action in each, in the environment's units; None if any action is as good."""
    needs_memory: bool = False
    """Whether situations look alike and are told apart only by what was seen since the episode's first step."""


def _same(*values: float) -> Callable[[float], Tensor]:
    """Values that do not depend on gamma: episodes of one step."""
    return lambda gamma: torch.tensor(values)


def _rows(*rows: float) -> Tensor:
    """Observations of one number each."""
    return torch.tensor(rows)[:, None]


def constant() -> Probe:
    """Reward 1, then the end: V = 1. Fails if the value loss or its optimiser is broken."""
    model = ProbeModel(
        name="probe-constant",
        obs=_rows(0.0),
        action=Discrete(n=2),
        starts=(0,),
        final=(0,),
        outcome=lambda at, action: (torch.ones_like(at), at),
    )
    return Probe(model=model, value=_same(1.0), best_action=None)


def observation() -> Probe:
    """The reward is what is seen, −1 or 1, then the end: V(x) = x. Fails if observations and targets are shuffled."""
    model = ProbeModel(
        name="probe-observation",
        obs=_rows(-1.0, 1.0),
        action=Discrete(n=2),
        starts=(0, 1),
        final=(0, 1),
        outcome=lambda at, action: (2 * at - 1, at),
    )
    return Probe(model=model, value=_same(-1.0, 1.0), best_action=None)


def delayed() -> Probe:
    """Reward 0, then 1, then the end: V = (gamma, 1). Fails if the discount or the order in time is wrong."""
    model = ProbeModel(
        name="probe-delayed",
        obs=_rows(0.0, 1.0),
        action=Discrete(n=2),
        starts=(0,),
        final=(1,),
        outcome=lambda at, action: (at, torch.ones_like(at)),
    )
    return Probe(model=model, value=lambda gamma: torch.tensor((gamma, 1.0)), best_action=None)


def action() -> Probe:
    """Reward 1 for the action that what is seen, −1 or 1, asks for (0 or 1), else −1; V = 1. Fails without a policy."""
    model = ProbeModel(
        name="probe-action",
        obs=_rows(-1.0, 1.0),
        action=Discrete(n=2),
        starts=(0, 1),
        final=(0, 1),
        outcome=lambda at, action: (1 - 2 * (action != at).float(), at),
    )
    return Probe(model=model, value=_same(1.0, 1.0), best_action=torch.tensor((0, 1)))


def truncation() -> Probe:
    """Cut after every single step; solvable only if a cut bootstraps from the true last observation.

    Nothing terminates. Rich (seen: 1) pays the action, 0 or 1, and stays rich; poor (−1) costs the action and stays
    poor. At the crossing (0), action 0 pays 1 and leads to poor; action 1 pays nothing and leads to rich.
    V(rich) = 1/(1−gamma), V(poor) = 0, and V(crossing) = gamma/(1−gamma) by action 1, for gamma > 1/2. Whoever takes a
    cut for an end, or bootstraps from the first observation of the next episode, prefers action 0 there.
    """

    def outcome(at: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        reward = torch.where(at == 2, 1 - action, torch.where(at == 1, action, -action))
        return reward, torch.where(at == 2, action, at)

    model = ProbeModel(
        name="probe-truncation",
        obs=_rows(-1.0, 1.0, 0.0),
        action=Discrete(n=2),
        starts=(0, 1, 2),
        horizon=1,
        outcome=outcome,
    )
    return Probe(
        model=model,
        value=lambda gamma: torch.tensor((0.0, 1.0, gamma)) / (1.0 - gamma),
        best_action=torch.tensor((0, 1, 1)),
    )


def termination() -> Probe:
    """Ended after every single step; solvable only if an end does not bootstrap.

    Rich (seen: 1) pays twice the action, 0 or 1. At the crossing (0), action 0 pays 1; action 1 pays nothing, but the
    last thing seen is rich. V(crossing) = 1 by action 0, V(rich) = 2. Whoever bootstraps from the last observation
    prefers action 1 at the crossing, for gamma > 1/3; whoever does from the next episode's first, overrates both.
    """
    model = ProbeModel(
        name="probe-termination",
        obs=_rows(0.0, 1.0),
        action=Discrete(n=2),
        starts=(0, 1),
        final=(0, 1),
        outcome=lambda at, action: (torch.where(at == 1, 2 * action, 1 - action), torch.maximum(at, action)),
    )
    return Probe(model=model, value=_same(1.0, 2.0), best_action=torch.tensor((0, 1)))


def continuous() -> Probe:
    """Two bounded numbers have a target each, set by what is seen, x = −1 or 1: 0.5·x and 1 − x.

    Then the end. The reward is minus the squared distance, so V = 0 at the target; a Gaussian around it is worth minus
    the sum of its variances. Bounds differ between the two and are not symmetric: fails if actions are scaled wrongly.
    """
    seen = _rows(-1.0, 1.0)
    target = torch.cat([0.5 * seen, 1.0 - seen], dim=1)
    model = ProbeModel(
        name="probe-continuous",
        obs=seen,
        action=Bounded(shape=(2,), low=(-1.0, -1.0), high=(1.0, 3.0)),
        starts=(0, 1),
        final=(0, 1),
        outcome=lambda at, action: (-(action - target.to(at.device)[at]).square().sum(1), at),
    )
    return Probe(model=model, value=_same(0.0, 0.0), best_action=target)


def multi_discrete() -> Probe:
    """Two choices, of 2 and of 3, each worth 1/2 if it is the one that what is seen asks for; then the end: V = 1."""
    wanted = torch.tensor([[0, 2], [1, 0]])
    model = ProbeModel(
        name="probe-multi-discrete",
        obs=_rows(-1.0, 1.0),
        action=MultiDiscrete(nvec=(2, 3)),
        starts=(0, 1),
        final=(0, 1),
        outcome=lambda at, action: ((action == wanted.to(at.device)[at]).float().mean(1), at),
    )
    return Probe(model=model, value=_same(1.0, 1.0), best_action=wanted)


def dict_observation() -> Probe:
    """What to do, 0 … 3, is in two parts of the observation, one bit each; reward 1 if right, then the end: V = 1."""
    wanted = torch.arange(4)
    model = ProbeModel(
        name="probe-dict",
        obs={"sign": _rows(-1.0, -1.0, 1.0, 1.0), "one_hot": torch.nn.functional.one_hot(wanted % 2, 2).float()},
        action=Discrete(n=4),
        starts=(0, 1, 2, 3),
        final=(0, 1, 2, 3),
        outcome=lambda at, action: (action == at, at),
    )
    return Probe(model=model, value=_same(1.0, 1.0, 1.0, 1.0), best_action=wanted)


def mask() -> Probe:
    """Cut after every single step; solvable only if masks are obeyed when acting, learning and bootstrapping.

    Nothing terminates, and every action leads to the narrow place (seen: 0), where action 2 is forbidden, action 1 is
    free and action 0 costs 1. In the open (−1 or 1) everything is allowed; action 2 pays 1, the others nothing. So
    V(narrow) = 0 by action 1, V(open) = 1 by action 2. What the open teaches about action 2 is true in between as well:
    in the narrow place, too, it would pay 1, which makes V = 1/(1−gamma) everywhere. Whoever acts without the mask
    takes it; whoever bootstraps from all of Q counts on it; and whoever compares an unmasked probability to a masked
    one (the ratio of PPO and V-trace) soon learns nothing there, because action 2 has nearly all of it.
    """
    pays = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    model = ProbeModel(
        name="probe-mask",
        obs={"seen": _rows(-1.0, 0.0, 1.0), MASK: torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])},
        action=Discrete(n=3),
        starts=(0, 1, 2),
        horizon=1,
        outcome=lambda at, action: (pays.to(at.device)[at, action], torch.ones_like(at)),
    )
    return Probe(model=model, value=_same(1.0, 0.0, 1.0), best_action=torch.tensor((2, 1, 2)))


def memory() -> Probe:
    """The first of three steps shows −1, 0 or 1, which is to be remembered: the others show 0.

    At every step the action that the first one asked for (0, 1, 2) pays 1, any other costs 1, so that
    V = (1 + gamma + gamma², 1 + gamma, 1) whatever was shown. Without memory there is but one answer for all that shows
    0. An episode that begins with 0 looks like the last one going on: whoever keeps the state beyond an episode's end
    answers what that one asked for.
    """
    steps, cues = 3, 3
    seen = torch.zeros(cues, steps)
    seen[:, 0] = torch.tensor((-1.0, 0.0, 1.0))
    model = ProbeModel(
        name="probe-memory",
        obs=seen.reshape(-1, 1),
        action=Discrete(n=cues),
        starts=tuple(range(0, cues * steps, steps)),
        final=tuple(range(steps - 1, cues * steps, steps)),
        outcome=lambda at, action: (
            1 - 2 * (action != at // steps).float(),
            torch.where(at % steps < steps - 1, at + 1, at),
        ),
    )
    return Probe(
        model=model,
        value=lambda gamma: torch.tensor((1 + gamma + gamma**2, 1 + gamma, 1.0)).repeat(cues),
        best_action=torch.arange(cues).repeat_interleave(steps),
        needs_memory=True,
    )


PROBES: dict[str, Probe] = {
    probe.model.name: probe
    for probe in (
        constant(),
        observation(),
        delayed(),
        action(),
        truncation(),
        termination(),
        continuous(),
        multi_discrete(),
        dict_observation(),
        mask(),
        memory(),
    )
}
"""All probes by the name under which the device stage knows them."""
