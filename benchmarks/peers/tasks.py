"""greenroom's own task as a batch of numpy, for peers that cannot step tensors: with Gymnasium's vector interface."""

from __future__ import annotations

import gymnasium
import numpy as np


class LostSales:
    """greenroom's `lost-sales` with its defaults: Poisson demand of 5, holding cost 1, penalty 4, lead time 4.

    Reset convention: same-step, as greenroom's. All episodes begin together and end together.
    """

    MEAN, HOLDING, PENALTY, LEAD_TIME, LARGEST_ORDER, HORIZON = 5.0, 1.0, 4.0, 4, 12, 200

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(0.0, np.inf, (self.LEAD_TIME,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(self.LARGEST_ORDER + 1)
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int | None = None):
        """Start B episodes: y uniform on 0 … 15, every q on 0 … 10. Returns obs float32 `[B, 4]` and an empty info."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.inventory = self._rng.integers(0, 11, (self.num_envs, self.LEAD_TIME)).astype(np.float32)
        self.inventory[:, 0] = self._rng.integers(0, 16, self.num_envs)
        self._age = 0
        return self._observe(), {}

    def step(self, action):
        """One period: obs, reward, terminated, truncated, info, `[B, ...]` each."""
        reward = -self.advance(np.asarray(action), self._rng.poisson(self.MEAN, self.num_envs))
        self._age += 1
        ended = np.full(self.num_envs, self._age == self.HORIZON)
        info = {}
        if self._age == self.HORIZON:
            info = {"final_obs": self._observe()}
            self.reset()
        return self._observe(), reward, np.zeros(self.num_envs, bool), ended, info

    def advance(self, order, demand):
        """Move the inventory `[B, L]` on by one period and return its costs `[B]`."""
        balance = self.inventory[:, 0] - demand
        left = np.maximum(balance, 0.0)
        self.inventory[:, :-1] = self.inventory[:, 1:]
        self.inventory[:, -1] = order
        self.inventory[:, 0] += left
        return self.HOLDING * left + self.PENALTY * (left - balance)

    def _observe(self):
        return (self.inventory / self.MEAN).astype(np.float32)
