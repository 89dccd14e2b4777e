"""A scripted environment and a policy that tells what it saw: small enough that every number can be written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greenroom.acting import Collector, Empty
from greenroom.envs.base import Environment, EpisodeTracker
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.types import Decision, Obs, State, Step


class ScriptedEnvironment:
    """Environment `number` sees (number, episode, t) and earns 10 × number + t, whatever it does.

    Its episodes last `lengths[number]` steps; they terminate, are truncated, and do both, in turn. Like a real stage it
    writes every step into the same memory.
    """

    def __init__(self, numbers: Sequence[int], lengths: Sequence[int]) -> None:
        self.numbers, self.lengths = torch.tensor(numbers), torch.tensor(lengths)
        self.spec = EnvSpec(
            name="scripted", obs=ArraySpec(shape=(3,)), action=Discrete(n=1000), signals=("earned", "steps")
        )
        self.num_envs, self.device = len(numbers), torch.device("cpu")
        self.seeds: list[int] = []
        self.actions: list[list[int]] = []
        self.is_closed = False
        self._obs = torch.zeros(self.num_envs, 3)
        self._final_obs = torch.zeros(self.num_envs, 3)
        self._reward = torch.zeros(self.num_envs)
        self._ends = torch.zeros(2, self.num_envs, dtype=torch.bool)
        self._tracker = EpisodeTracker(self.num_envs, self.spec.signals)
        self._waiting = False

    def reset(self, seed: int) -> Obs:
        self.seeds.append(seed)
        self.episode, self.t = torch.zeros(self.num_envs), torch.zeros(self.num_envs)
        self._tracker.reset()
        self._waiting = False
        return self._observe()

    def _observe(self) -> Tensor:
        self._obs.copy_(torch.stack([self.numbers.float(), self.episode, self.t], dim=1))
        return self._obs

    def send(self, action: Tensor) -> None:
        assert not self._waiting, "send was called twice"
        assert action.shape == (self.num_envs,)
        self.actions.append(action.tolist())
        self._waiting = True
        # What the last step showed is no longer valid.
        for memory in (self._obs, self._final_obs, self._reward):
            memory.fill_(float("nan"))

    def recv(self) -> Step:
        assert self._waiting, "recv without send"
        self._waiting = False
        self.t += 1
        ended = self.t == self.lengths
        kind = self.episode % 3
        self._ends[0], self._ends[1] = ended & (kind != 1), ended & (kind != 0)
        self._reward.copy_(10 * self.numbers + self.t)
        signals = {"earned": self._reward.clone(), "steps": torch.ones(self.num_envs)}
        episodes = self._tracker.update(self._reward, ended, signals)
        final_obs = self._final_obs[: int(ended.sum())]
        final_obs.copy_(self._observe()[ended])
        self.episode += ended
        self.t[ended] = 0
        return Step(
            obs=self._observe(),
            reward=self._reward,
            terminated=self._ends[0],
            truncated=self._ends[1],
            final_obs=final_obs,
            episodes=episodes,
            signals=signals,
        )

    def close(self) -> None:
        self.is_closed = True


class CopyableEnvironment(ScriptedEnvironment):
    """The same, `Snapshotable`."""

    can_snapshot = True

    def state_dict(self) -> dict[str, object]:
        assert not self._waiting
        return {"episode": self.episode.clone(), "t": self.t.clone(), "tracker": self._tracker.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        episode, t, tracker = state["episode"], state["t"], state["tracker"]
        assert isinstance(episode, Tensor) and isinstance(t, Tensor) and isinstance(tracker, dict)
        self.episode, self.t = episode.clone(), t.clone()
        self._tracker.load_state_dict(tracker)


class TalkingPolicy:
    """Action: 100 × number + 10 × episode + t, plus a draw from 0 … `spread`; extras: what it saw, drew and remembers.

    It remembers how many actions it has taken in the episode, counting from 5 so that a state of zeros is wrong.
    """

    remembers = False

    def __init__(self, spread: int = 0) -> None:
        self.spread = spread

    def initial_state(self, num_envs: int) -> State:
        return {"count": torch.full((num_envs,), 5)}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        greedy = (obs @ torch.tensor([100.0, 10.0, 1.0])).long()
        drawn = torch.zeros(len(obs), dtype=torch.int64)
        if generator is not None:
            drawn = torch.randint(self.spread + 1, (len(obs),), generator=generator)
        extras = {"seen": obs.clone(), "drawn": drawn, "count": state["count"].clone()}
        return Decision(action=greedy + drawn, extras=extras, state={"count": state["count"] + 1})


def collector(groups: list[Environment], policy: Any, *, memories: int, empty: Empty) -> Collector:
    """Rollouts of four steps."""
    cpu = torch.device("cpu")
    return Collector(groups, policy, rollout_length=4, seed=0, device=cpu, memories=memories, empty=empty)
