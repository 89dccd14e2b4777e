"""Rollouts as an iterator: the only place where policy and environments meet.

One loop serves two modes. With one group of environments it is plain synchronous collection. With several, a group's
simulators work while the policy decides for the next one (double buffering); every action still comes from the same
weights, so that the data are exactly on-policy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from greenroom.envs.base import Environment, Snapshotable
from greenroom.errors import UserError
from greenroom.policy import Policy
from greenroom.seeding import derive, generator
from greenroom.types import Decision, Episodes, Obs, Rollout, cat_obs, map_obs


class Collector:
    """Endless iterator of rollouts `[T, B]`; owns where acting stands. B is the sum over the groups.

    The memory of a rollout is used again for the next one.
    """

    def __init__(
        self, groups: Sequence[Environment], policy: Policy, *, rollout_length: int, seed: int, device: torch.device
    ) -> None:
        self.groups, self.policy, self.length, self.device = tuple(groups), policy, rollout_length, device
        self.version = 0
        self.time_split = {"env": 0.0, "act": 0.0, "wait": 0.0}
        self._generator = generator(seed, "acting", device=device)
        bounds = [0]
        for group in self.groups:
            bounds.append(bounds[-1] + group.num_envs)
        self.num_envs = bounds[-1]
        self._columns = [slice(low, high) for low, high in itertools.pairwise(bounds)]
        self._seed = seed
        first = self._reset()
        self._obs = map_obs(lambda part: part.new_empty((rollout_length + 1, *part.shape)), first)
        self._write_obs(rollout_length, slice(None), first)
        self._arrays: dict[str, Tensor] = {}
        self._extras: dict[str, Tensor] = {}

    def _reset(self) -> Obs:
        """New episodes everywhere; those of a resumed run are not those that the run began with."""
        seeds = [derive(self._seed, "environments", number, self.version) for number in range(len(self.groups))]
        started = [group.reset(seed) for group, seed in zip(self.groups, seeds, strict=True)]
        return cat_obs([map_obs(lambda part: part.to(self.device), obs) for obs in started])

    def __iter__(self) -> Collector:
        return self

    def __next__(self) -> Rollout:
        """Act for T steps in every environment."""
        last = map_obs(lambda part: part[self.length], self._obs)
        self._write_obs(0, slice(None), last)
        numbers = range(len(self.groups))
        ended: list[tuple[Obs, Episodes]] = []
        for t in range(self.length):
            for number in numbers:
                if t:
                    ended.append(self._receive(number, t - 1))
                self._decide(number, t)
        ended += [self._receive(number, self.length - 1) for number in numbers]
        return Rollout(
            obs=self._obs,
            **self._arrays,
            final_obs=cat_obs([final_obs for final_obs, _ in ended]),
            extras=self._extras,
            version=self.version,
            episodes=self._joined([episodes for _, episodes in ended]),
        )

    def _decide(self, number: int, t: int) -> None:
        start = time.perf_counter()
        columns, group = self._columns[number], self.groups[number]
        decision = self.policy.act(map_obs(lambda part: part[t, columns], self._obs), self._generator)
        self._store(t, columns, decision)
        action = decision.action.to(group.device)
        between = time.perf_counter()
        group.send(action)
        self.time_split["act"] += between - start
        self.time_split["env"] += time.perf_counter() - between

    def _store(self, t: int, columns: slice, decision: Decision) -> None:
        if not self._arrays:
            self._allocate(decision)
        self._arrays["action"][t, columns] = decision.action
        for name, part in decision.extras.items():
            self._extras[name][t, columns] = part

    def _allocate(self, decision: Decision) -> None:
        lead = (self.length, self.num_envs)
        self._arrays = {
            "action": decision.action.new_empty((*lead, *decision.action.shape[1:])),
            "reward": torch.empty(lead, device=self.device),
            "terminated": torch.empty(lead, dtype=torch.bool, device=self.device),
            "truncated": torch.empty(lead, dtype=torch.bool, device=self.device),
        }
        self._extras = {name: part.new_empty((*lead, *part.shape[1:])) for name, part in decision.extras.items()}

    def _receive(self, number: int, t: int) -> tuple[Obs, Episodes]:
        """Take in one group's step t. What ended in it is returned in our own memory: the stage's is used again."""
        start = time.perf_counter()
        step = self.groups[number].recv()
        columns = self._columns[number]
        self._write_obs(t + 1, columns, step.obs)
        for name in ("reward", "terminated", "truncated"):
            self._arrays[name][t, columns] = getattr(step, name)
        # With one group nothing else could be done meanwhile: that is the environments' time. With more it is a wait.
        self.time_split["env" if len(self.groups) == 1 else "wait"] += time.perf_counter() - start
        index = step.episodes.index + columns.start
        final_obs = map_obs(lambda part: part.to(self.device, copy=True), step.final_obs)
        return final_obs, replace(step.episodes, index=index)

    def _write_obs(self, t: int, columns: slice, obs: Obs) -> None:
        if isinstance(obs, dict):
            assert isinstance(self._obs, dict)
            for name, part in obs.items():
                self._obs[name][t, columns] = part
        else:
            assert isinstance(self._obs, Tensor)
            self._obs[t, columns] = obs

    @staticmethod
    def _joined(parts: list[Episodes]) -> Episodes:
        return Episodes(
            index=torch.cat([part.index for part in parts]),
            returns=torch.cat([part.returns for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            signals={name: torch.cat([part.signals[name] for part in parts]) for name in parts[0].signals},
        )

    @property
    def can_snapshot(self) -> bool:
        """Whether a resumed run continues the very same episodes."""
        return all(isinstance(group, Snapshotable) and group.can_snapshot for group in self.groups)

    def state_dict(self) -> dict[str, Any]:
        """Where acting stands: generator, last observation and, where they can be copied, the environments."""
        state: dict[str, Any] = {"generator": self._generator.get_state(), "version": self.version}
        if self.can_snapshot:
            state["obs"] = map_obs(lambda part: part[self.length].clone(), self._obs)
            state["environments"] = [group.state_dict() for group in self.groups if isinstance(group, Snapshotable)]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; without saved environments, start new episodes."""
        self._generator.set_state(state["generator"])
        self.version = state["version"]
        if "environments" not in state:
            self._write_obs(self.length, slice(None), self._reset())
            return
        if not self.can_snapshot or len(state["environments"]) != len(self.groups):
            raise UserError(
                "the checkpoint's environments do not fit this stage; resume with the options of the original run"
            )
        for group, saved in zip(self.groups, state["environments"], strict=True):
            assert isinstance(group, Snapshotable)
            group.load_state_dict(saved)
        self._write_obs(self.length, slice(None), state["obs"])

    def close(self) -> None:
        """Close all environments."""
        for group in self.groups:
            group.close()
