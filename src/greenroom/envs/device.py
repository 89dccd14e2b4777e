"""The device stage: B environments as one set of tensors, stepped by tensor code where the learner lives.

`DeviceEnvironment` adds to a `Model` what every environment needs: resets, time limits, episode sums, seeds, snapshots.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor

from greenroom import seeding
from greenroom.envs.base import EpisodeTracker
from greenroom.envs.cartpole import CartPole
from greenroom.envs.factory import Factory, Source
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.lost_sales import LostSales
from greenroom.envs.model import Model, State, Transition
from greenroom.envs.native import native_for
from greenroom.envs.probes import PROBES
from greenroom.envs.rows import Rows, broken, finite
from greenroom.errors import EnvironmentFault, Fault, UserError, nearest
from greenroom.imports import module_of
from greenroom.spec import Bounded, EnvSpec, MultiDiscrete
from greenroom.types import Obs, Step, map_obs, parts_of, restart


class DeviceEnvironment:
    """A batched model behind the `Environment` protocol; always `Snapshotable`.

    Chance inside a step and chance at a reset come from two generators: what happens to an actor depends on the seed
    and on the time step alone, so two policies under one seed can be compared pair by pair.
    """

    def __init__(
        self, model: Model, num_envs: int, device: torch.device | str = "cpu", faults: FaultConfig = BY_DEFAULT
    ) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs must be at least 1, not {num_envs}")
        self.model = model
        self.spec, self.num_envs, self.device = model.spec, num_envs, torch.device(device)
        # Without termination every end is known from counting alone. The ages then live on the host, so that asking
        # "did anything end?" never waits for the device.
        clock_device = self.device if model.terminates else torch.device("cpu")
        self._age = torch.zeros(num_envs, dtype=torch.int64, device=clock_device)
        self._nowhere = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._tracker = EpisodeTracker(num_envs, self.spec.signals, self.device)
        self._dynamics, self._resets = torch.Generator(self.device), torch.Generator(self.device)
        self._state: State = {}
        self._action: Tensor | None = None
        self._rows = Rows(num_envs, faults)
        # Elsewhere than on the CPU every look is a wait for the device; who wants restarts wants it to be paid.
        self._looks = self.device.type == "cpu" or faults.restarts

    @property
    def can_snapshot(self) -> bool:
        """Tensors can always be copied."""
        return True

    @property
    def state(self) -> State:
        """The current states `[B, ...]`, for rules that read the state rather than the observation."""
        return self._state

    def reset(self, seed: int) -> Obs:
        """Start B new episodes; the same seed gives the same chance events, whatever the actions. Obs `[B, ...]`."""
        self._dynamics = seeding.generator(seed, "environment", device=self.device)
        self._resets = seeding.generator(seed, "environment", "resets", device=self.device)
        self._state = self.model.initial(self.num_envs, self._resets, self.device)
        self._check_state()
        self._action = None
        self._age.zero_()
        self._tracker.reset()
        self._rows.started(seed)
        return self._first_obs()

    def send(self, action: Tensor) -> None:
        """Hand over one action per environment; the step itself is computed in `recv`."""
        if not self._state:
            raise RuntimeError("send before reset: call reset(seed) first")
        if self._action is not None:
            raise RuntimeError("send was called twice without recv in between")
        self._check_action(action)
        self._action = action

    @torch.no_grad()
    def recv(self) -> Step:
        """Compute the step for the last `send`.

        Raises:
            EnvironmentFault: the model raised or broke its contract, or a row holds NaN or infinity.
        """
        if self._action is None:
            raise RuntimeError("recv without send: hand over an action first")
        transition, obs = self._advance(self._action)
        self._age += 1
        self._rows.stepped()
        truncated = self._age == self.model.horizon
        lost, faults = self._failed(transition, obs)
        if lost is not None:
            transition = self._mended(transition, lost)
            obs = self.model.observe(transition.state)
            truncated = truncated | lost.to(truncated.device)
        self._state, self._action = transition.state, None
        terminated = self._nowhere if transition.terminated is None else transition.terminated
        ended = truncated if transition.terminated is None else truncated | terminated
        finished = ended if lost is None else ended & ~lost.to(ended.device)
        episodes = self._tracker.update(transition.reward, finished, transition.signals)
        self._tracker.forget([index for fault in faults for index in fault.restarted])
        # Where ends are known on the device alone, these numbers are what is waited for, once a step.
        over = episodes.index if lost is None else ended.nonzero().squeeze(1).to(self.device)
        final_obs = map_obs(lambda part: part.index_select(0, over), obs)
        if some_ended := len(over) > 0:
            obs = self._restart(ended)
            if self._looks:
                self._rows.finished(finished)
        return Step(
            obs=obs,
            reward=transition.reward,
            terminated=terminated,
            truncated=truncated.to(self.device) if some_ended else self._nowhere,
            final_obs=final_obs,
            episodes=episodes,
            signals=transition.signals,
            faults=faults,
        )

    def _advance(self, action: Tensor) -> tuple[Transition, Obs]:
        """One step of the model, and what is seen then."""
        name = self.spec.name
        try:
            transition = self.model.step(self._state, action, self._dynamics)
            obs = self.model.observe(transition.state)
        except Exception as error:
            raise EnvironmentFault(f"{name}: a step raised {type(error).__name__}: {error}") from error
        if (transition.terminated is None) == self.model.terminates:
            raise EnvironmentFault(
                f"{name}: Transition.terminated must be None exactly when the model's `terminates` is False"
            )
        numbers = {"the reward": transition.reward, "terminated": transition.terminated, **transition.signals}
        for what, part in numbers.items():
            if part is not None and part.shape != (self.num_envs,):
                raise EnvironmentFault(f"{name}: {what} has shape {list(part.shape)}, not [{self.num_envs}]")
        return transition, obs

    def _failed(self, transition: Transition, obs: Obs) -> tuple[Tensor | None, tuple[Fault, ...]]:
        """Whose answers are no numbers, and what is to be told of it; see `Rows.failed`."""
        if not self._looks:
            return None, ()
        answer = (obs, transition.reward, transition.signals)
        return self._rows.failed(*answer, step_of=lambda index: int(self._age[index]), beside=self._before)

    def _before(self, index: int) -> str:
        """What led to the step that is being taken: all that a model goes by, but for chance."""
        assert self._action is not None
        state = {name: part[index].tolist() for name, part in self._state.items()}
        return f"it was given the action {self._action[index].tolist()} in the state {reprlib.repr(state)}"

    def _mended(self, transition: Transition, lost: Tensor) -> Transition:
        """`transition` with nothing left of the steps of the rows `lost`, bool `[B]`, but that they were taken."""
        fresh = self.model.initial(self.num_envs, self._resets, self.device)
        return dataclasses.replace(
            transition,
            state=restart(transition.state, fresh, lost),
            reward=transition.reward.masked_fill(lost, 0.0),
            terminated=None if transition.terminated is None else transition.terminated & ~lost,
            signals={name: part.masked_fill(lost, 0.0) for name, part in transition.signals.items()},
        )

    def _first_obs(self) -> Obs:
        """What is seen now, just after some have begun new episodes; begun once more they would be no better."""
        obs = self.model.observe(self._state)
        if self._looks and not finite(obs):
            for index in broken(parts_of(obs).values()).nonzero().flatten().tolist():
                what = f"environment {index}: the first observation of an episode holds NaN or infinity"
                raise EnvironmentFault(what, index=index)
        return obs

    def _restart(self, ended: Tensor) -> Obs:
        """Begin new episodes where `ended`; as many draws as for all B, so that chance does not depend on who ended."""
        self._age.masked_fill_(ended, 0)
        fresh = self.model.initial(self.num_envs, self._resets, self.device)
        self._state = restart(self._state, fresh, ended.to(self.device))
        return self._first_obs()

    def close(self) -> None:
        """Nothing to give back."""

    def state_dict(self) -> dict[str, object]:
        """States, ages, running sums and both generators."""
        if self._action is not None:
            raise RuntimeError("state_dict between send and recv")
        return {
            "state": {name: part.clone() for name, part in self._state.items()},
            "age": self._age.clone(),
            "tracker": self._tracker.state_dict(),
            "dynamics": seeding.generator_state(self._dynamics),
            "resets": seeding.generator_state(self._resets),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state`, which may have been saved on another device."""
        saved, age, tracker = state["state"], state["age"], state["tracker"]
        dynamics, resets = state["dynamics"], state["resets"]
        assert isinstance(saved, dict) and isinstance(tracker, dict)
        assert isinstance(age, Tensor) and isinstance(dynamics, Tensor) and isinstance(resets, Tensor)
        if age.shape != self._age.shape:
            raise UserError(f"{self.spec.name}: the snapshot has {len(age)} environments, not {self.num_envs}")
        self._state = {name: part.to(self.device, copy=True) for name, part in saved.items()}
        self._age.copy_(age)
        self._tracker.load_state_dict(tracker)
        seeding.restore(self._dynamics, dynamics)
        seeding.restore(self._resets, resets)
        self._action = None
        self._rows.started(None)

    def _check_action(self, action: Tensor) -> None:
        match self.spec.action:
            case Bounded(shape=trailing):
                dtype = torch.float32
            case MultiDiscrete(nvec=nvec):
                trailing, dtype = (len(nvec),), torch.int64
            case _:
                trailing, dtype = (), torch.int64
        if action.shape != (self.num_envs, *trailing) or action.dtype != dtype:
            raise ValueError(
                f"{self.spec.name}: actions must be {dtype} {[self.num_envs, *trailing]}, "
                f"not {action.dtype} {list(action.shape)}"
            )

    def _check_state(self) -> None:
        for name, part in self._state.items():
            if part.shape[:1] != (self.num_envs,):
                raise EnvironmentFault(
                    f"{self.spec.name}: state {name!r} has shape {list(part.shape)}; "
                    f"its leading axis must be num_envs = {self.num_envs}"
                )


def _probe(name: str) -> Model:
    return PROBES[name].model


DEVICE_ENVIRONMENTS: dict[str, Callable[..., Model]] = {
    "lost-sales": LostSales,
    "cartpole": CartPole,
    **{name: partial(_probe, name) for name in PROBES},
}
"""Name → what makes the model: a frozen dataclass of parameters, or a function without any."""


def model_of(env: Source) -> Callable[..., Model] | None:
    """What makes the model of a device environment; None where `env` is of another kind.

    Args:
        env: a key of `DEVICE_ENVIRONMENTS`, or a class of one's own that has the methods of a `Model`, by name
            (`package.module:Class`) or itself.

    Raises:
        UserError: the module cannot be imported.
    """
    found: Any = env
    if isinstance(env, str):
        if env in DEVICE_ENVIRONMENTS:
            return DEVICE_ENVIRONMENTS[env]
        module, colon, name = env.rpartition(":")
        if not colon or native_for(env):
            return None
        found = getattr(module_of(module, env), name, None)
    if not isinstance(found, type) or issubclass(found, gymnasium.Env):
        return None
    model: Any = found
    return model if all(callable(getattr(model, name, None)) for name in ("initial", "step", "observe")) else None


def make_device(
    env: Source,
    num_envs: int,
    kwargs: Mapping[str, object] | None = None,
    device: torch.device | str = "cpu",
    faults: FaultConfig = BY_DEFAULT,
) -> DeviceEnvironment:
    """Build a device environment with B actors.

    Args:
        env: what `model_of` knows.
        num_envs: B, at least 1.
        kwargs: the model's own arguments; the rest keep their defaults.
        device: where its tensors are to live.
        faults: whether a row that holds NaN or infinity ends the run, or is started anew.

    Raises:
        UserError: unknown name, unknown keyword, a value that the environment refuses, or what is no model.
    """
    maker, name = model_of(env), Factory(env=env).name
    if maker is None:
        own = ", and no class with the methods initial, step and observe" if ":" in name else ""
        raise UserError(f"no device environment {name!r}{own or nearest(name, DEVICE_ENVIRONMENTS)}")
    known = inspect.signature(maker).parameters
    for key in kwargs or {}:
        if key not in known:
            raise UserError(f"{name} has no parameter {key!r}{nearest(key, known)}")
    try:
        model = maker(**(kwargs or {}))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} could not be built: {type(error).__name__}: {error}") from error
    for part, kind in (("spec", EnvSpec), ("horizon", int), ("terminates", bool)):
        if not isinstance(getattr(model, part, None), kind):
            raise UserError(f"{name}: a model needs {part!r}, of type {kind.__name__}; see greenroom.envs.model.Model")
    return DeviceEnvironment(model, num_envs, device, faults)
