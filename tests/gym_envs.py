"""Small Gymnasium environments for the tests of the stages: predictable, talkative, or broken on purpose."""

from __future__ import annotations

import collections
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps; reward 10 × episode + step. Even episodes terminate after `length` steps, odd are truncated."""

    observation_space = spaces.Box(0, 1000, (2,), np.float32)
    action_space = spaces.Discrete(3, start=5)
    metadata = {"signals": ("cost", "action")}  # noqa: RUF012  # Gymnasium's own convention

    def __init__(self, length: int = 3) -> None:
        self.length, self.episode, self.t = length, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.t = 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.t += 1
        ended, even = self.t == self.length, self.episode % 2 == 0
        info = {"cost": 0.5, "action": int(action)}
        obs = np.array([self.episode, self.t], np.float32)
        return obs, 10.0 * self.episode + self.t, ended and even, ended and not even, info


class Faulty(Counter):
    """A Counter of long episodes that does something wrong at step `at`, if the seed it was given is `victim`'s."""

    def __init__(self, fault: str, at: int, victim: int) -> None:
        super().__init__(length=10**6)
        self.fault, self.at, self.victim, self.broken = fault, at, victim, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.broken = seed == self.victim
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if not self.broken or self.t != self.at:
            return obs, reward, terminated, truncated, info
        match self.fault:
            case "raise":
                raise ValueError("the conveyor jammed")
            case "nan":
                obs[1] = np.nan
            case "nan_reward":
                reward = float("nan")
            case "huge_reward":
                reward = -1e39
            case "huge_signal":
                info["cost"] = 1e300
            case "shape":
                obs = np.zeros(3, np.float32)
            case "scalar_shape":
                obs = np.zeros((), np.float32)
            case "reward_shape":
                reward = np.zeros(1)  # type: ignore[assignment]
            case "signal":
                del info["cost"]
            case "old_api":
                return obs, reward, terminated, info
            case "exit":
                os._exit(3)
            case "hang":
                time.sleep(60)
        return obs, reward, terminated, truncated, info


class Everything(gymnasium.Env[Any, Any]):
    """Every supported observation space, nested, and a MultiDiscrete action with a start."""

    observation_space = spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (2, 3, 1), np.uint8),
            "inner": spaces.Dict({"level": spaces.Discrete(3, start=-1), "bits": spaces.MultiBinary((2, 2))}),
            "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 2.0, (), np.float64))),
            "bytes": spaces.Box(0, 255, (2,), np.uint8),
        }
    )
    action_space = spaces.MultiDiscrete(np.array([[2, 3]]), start=np.array([[1, -1]]))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(np.array([[1, -1]])), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return self._observe(action), float(action.sum()), False, False, {}

    def _observe(self, action: Any) -> dict[str, Any]:
        return {
            "pixels": self.np_random.integers(256, size=(2, 3, 1)).astype(np.uint8),
            "inner": {"level": int(action[0, 1]), "bits": np.array([[0, 1], [1, 0]], np.int8)},
            "pair": (np.array([1, 2]), np.float64(0.25)),
            "bytes": np.array([7, 255], np.uint8),
        }


class Continuous(gymnasium.Env[Any, Any]):
    """Says what action it was given, of a float64 Box of shape `[2, 1]`."""

    observation_space = spaces.Box(-5.0, 5.0, (2, 1), np.float64)
    action_space = spaces.Box(np.array([[-2.0], [0.0]]), np.array([[2.0], [5.0]]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros((2, 1)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return action, float(action[0, 0]), False, False, {}


@dataclass
class Order:
    """Something that moves through the warehouse."""

    due: int
    place: np.ndarray[Any, np.dtype[np.float64]]


class Warehouse(gymnasium.Env[Any, Any]):
    """State of many kinds, sizes that change, and things known under two names: hard to capture."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.orders: list[Order] = []
        self.recent: collections.deque[float] = collections.deque([0.0], maxlen=3)
        self.stock = {("a", 1): 3, "b": 5}
        self.belt = self.np_random.normal(size=3)
        self.same_belt = self.belt
        self.latest: Order | None = None
        self.seen: set[int] = set()
        if seed is not None:
            self.chance = np.random.default_rng(seed).random  # the generator itself has no name of its own
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return count

        self.tick = tick
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action:
            self.latest = Order(due=int(self.np_random.integers(9)), place=self.np_random.normal(size=2))
            self.orders.append(self.latest)
        for order in self.orders:
            order.due -= 1
            order.place += self.same_belt[:2]
        self.orders = [order for order in self.orders if order.due > 0]
        self.belt += self.np_random.normal(size=3)
        self.recent.append(float(self.belt.sum()))
        self.stock["b"] += len(self.orders)
        self.seen.add(self.stock["b"])
        over = bool(self.chance() < 0.05)
        return self._observe(), float(self.tick()), over, False, {}

    def _observe(self) -> Any:
        place = float(self.latest.place.sum()) if self.latest else 0.0
        return np.array([self.stock["b"], sum(self.recent), place, len(self.seen)], np.float64)


class Opaque(Counter):
    """Holds a Python generator: its state cannot be captured."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.process = (x for x in range(10))
        return super().reset(seed=seed)


class OwnState(Continuous):
    """Opaque, but offers `get_state` and `set_state`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.process, self.total = (x for x in range(10)), np.zeros(2)
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.total += self.np_random.normal(size=2)
        return action, float(self.total.sum()), bool(self.np_random.random() < 0.02), False, {}

    def get_state(self) -> dict[str, Any]:
        """What there is to know."""
        return {"total": self.total, "note": "fine"}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        assert state["note"] == "fine"
        self.total = state["total"].copy()


class Slow(Counter):
    """A step takes two milliseconds."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.002)
        return super().step(action)


class HasTorch(gymnasium.Env[Any, Any]):
    """Observes whether torch is loaded in its process."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.array([float("torch" in sys.modules)]), {}


class Spaces(gymnasium.Env[Any, Any]):
    """Has whatever spaces, and whatever info at a reset, it is given; cannot be stepped."""

    def __init__(self, obs: Any = None, action: Any = None, info: dict[str, Any] | None = None) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,)) if obs is None else obs
        self.action_space = spaces.Discrete(2) if action is None else action
        self.info = info or {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), self.info


class Masked(gymnasium.Env[Any, Any]):
    """Forbids action `(episode + t) % 4` of four, and everything in the last observation; refuses forbidden actions.

    The mask is in the observation, of the given `space`, or without one in the info. At step `at` the environment
    whose seed is `victim` gives the mask `wrong` instead, or none at all if that is None.
    """

    action_space = spaces.Discrete(4, start=2)

    def __init__(self, space: Any = None, length: int = 3, at: int = -1, victim: int = -1, wrong: Any = None) -> None:
        self.observation_space: Any = spaces.Box(0, 1e6, (2,), np.float32)
        if space is not None:
            self.observation_space = spaces.Dict({"action_mask": space, "seen": self.observation_space})
        self.in_info, self.length, self.at, self.victim, self.wrong = space is None, length, at, victim, wrong
        self.episode, self.t, self.seed = -1, 0, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed
        self.episode, self.t = 0 if seed is not None else self.episode + 1, 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        assert action - 2 != (self.episode + self.t) % 4, f"action {action} is forbidden"
        self.t += 1
        ended, even = self.t == self.length, self.episode % 2 == 0
        obs, info = self._shown()
        return obs, 1.0, ended and even, ended and not even, info

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        seen = np.array([self.episode, self.t], np.float32)
        mask: Any = np.full(4, self.t < self.length, np.int8)
        mask[(self.episode + self.t) % 4] = 0
        if self.seed == self.victim and self.t == self.at:
            mask = self.wrong
        if self.in_info:
            return seen, {} if mask is None else {"action_mask": mask}
        return {"seen": seen, "action_mask": mask}, {}


class MaskedPair(gymnasium.Env[Any, Any]):
    """Two choices, of 2 and of 3; their masks are a tuple, as Gymnasium's own spaces take them."""

    observation_space = spaces.Dict({"level": spaces.Discrete(2)})
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"level": 0}, self._info(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action[0] == 1 and action[1] != 1, action
        level = int(self.np_random.integers(2))
        return {"level": level}, float(action.sum()), False, False, self._info(level)

    def _info(self, level: int) -> dict[str, Any]:
        return {"action_mask": (np.array([0, 1], np.int8), np.array([1, 0, 1], np.int8))}


def stacked_cartpole(turned: bool = False, limit: int = 0) -> gymnasium.Env[Any, Any]:
    """CartPole with a short time limit and the last three observations: wrappers with state of their own.

    With `turned` another wrapper shows the newest first; with `limit` one that leaves it as it is comes last.
    """
    env: Any = gymnasium.make("CartPole-v1", max_episode_steps=30, disable_env_checker=True)
    env = gymnasium.wrappers.FrameStackObservation(env, 3)
    if turned:
        env = gymnasium.wrappers.TransformObservation(env, np.flipud, env.observation_space)
    return gymnasium.wrappers.TimeLimit(env, limit) if limit else env


def broken_factory() -> gymnasium.Env[Any, Any]:
    """Raises."""
    raise RuntimeError("no licence for the simulator")


def not_an_env() -> int:
    """Returns something else."""
    return 3


def needs_argument(size: int, speed: float = 1.0) -> gymnasium.Env[Any, Any]:
    """A factory with an argument that has no default."""
    return Counter(length=size)


class Furnished(Counter):
    """Puts a number into the list that it was given."""

    metadata = {"render_modes": []}  # noqa: RUF012  # what Gymnasium's registry asks for

    def __init__(self, parts: list[int], weights: Any = np.ones(2)) -> None:  # noqa: B008  # an array as a default
        super().__init__()
        parts.append(len(parts))
        self.parts, self.weights = parts, weights


gymnasium.register("Furnished-v0", f"{__name__}:Furnished", kwargs={"parts": []})
gymnasium.register("Misspelt-v0", f"{__name__}:Furnisht")
gymnasium.register("Raising-v0", "raises_on_import:Env")
