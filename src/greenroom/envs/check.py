"""`check_environment`: every contract of `Environment`, stated once and tried on a live one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from greenroom.envs.base import Environment, Snapshotable
from greenroom.errors import EnvironmentFault
from greenroom.spec import ActionSpec, ArraySpec, Discrete, MultiDiscrete
from greenroom.types import Obs, Step, map_obs

_TOLERANCE = 1e-4  # for ranges and sums of float32, relative to their size


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What the check saw, so that a caller can tell a thorough check from an idle one."""

    episodes: int
    """Episodes that ended during the first run."""
    random: bool
    """Whether another seed gave another course of events."""
    snapshot: bool
    """Whether a snapshot was taken, loaded and continued."""


def check_environment(
    environment: Environment, *, steps: int = 200, seed: int = 0, own_reward: bool = True
) -> CheckReport:
    """Drive an environment with random actions, verify every contract, and close it.

    Args:
        environment: Of any stage; closed afterwards.
        steps: Steps of each run; more than an episode lasts, or ends are not seen.
        seed: Of the environment and of the actions.
        own_reward: Whether `Step.reward` is the environment's own; False for a stage told to clip rewards, whose
            episode returns cannot be recomputed from what the learner sees.

    Raises:
        EnvironmentFault: A contract is broken; the message says which, where, and what was seen.
    """
    check = _Check(environment, own_reward)
    try:
        actions = random_actions(environment, steps, seed)
        first = check.run(seed, actions)
        check.same(first, check.run(seed, actions), "the same seed and the same actions gave different")
        alike = [action[:1].expand_as(action).contiguous() for action in actions]
        one, other = check.run(seed, alike), check.run(seed + 1, alike)
        is_random = _difference(one, other) != ""
        check.seeds_differ(one, is_random)
        check.final_is_last(first)
        saved = check.snapshot(actions)
    finally:
        environment.close()
    environment.close()
    return CheckReport(episodes=sum(len(s.episodes.index) for s in first.steps), random=is_random, snapshot=saved)


def random_actions(environment: Environment, steps: int, seed: int) -> list[Tensor]:
    """Uniform random actions for every step, on the environment's device."""
    source = torch.Generator().manual_seed(seed)
    spec, batch = environment.spec.action, environment.num_envs
    return [_random_action(spec, batch, source).to(environment.device) for _ in range(steps)]


def _random_action(spec: ActionSpec, batch: int, source: torch.Generator) -> Tensor:
    if isinstance(spec, Discrete):
        return torch.randint(spec.n, (batch,), generator=source)
    if isinstance(spec, MultiDiscrete):
        return torch.stack([torch.randint(n, (batch,), generator=source) for n in spec.nvec], dim=1)
    low, high = torch.tensor(spec.low), torch.tensor(spec.high)
    return (low + (high - low) * torch.rand(batch, len(spec.low), generator=source)).reshape(batch, *spec.shape)


@dataclass(frozen=True, kw_only=True)
class _Course:
    """A run, copied out of the stage's memory."""

    start: Obs
    steps: list[Step]


class _Check:
    def __init__(self, environment: Environment, own_reward: bool) -> None:
        self._environment, self._own_reward = environment, own_reward
        self._spec, self._batch = environment.spec, environment.num_envs
        self._device = environment.device

    def run(self, seed: int, actions: Sequence[Tensor]) -> _Course:
        """Reset, act, and check every answer by itself and against the episodes so far."""
        start = self._environment.reset(seed)
        self._obs(start, self._batch, "the observation of reset")
        start = map_obs(torch.clone, start)
        return _Course(start=start, steps=self._go_on(actions, start))

    def _go_on(self, actions: Sequence[Tensor], before: Obs | None) -> list[Step]:
        book = _Book(self._batch, self._spec.signals) if before is not None else None
        taken: list[Step] = []
        for number, action in enumerate(actions):
            self._environment.send(action)
            step = self._environment.recv()
            copy = _copy(step)
            self._step(step, number)
            if number < 3:
                time.sleep(0.002)  # long enough for a stage that runs ahead to be caught
            if difference := _step_difference(copy, _copy(step)):
                raise self._broken(f"step {number}: {difference} changed before the next send")
            if book is not None and (mistake := book.mistake(copy, self._own_reward)):
                raise self._broken(f"step {number}: {mistake}")
            taken.append(copy)
        return taken

    def same(self, first: _Course, second: _Course, what: str) -> None:
        """Raise unless two courses are equal bit for bit."""
        if difference := _difference(first, second):
            raise self._broken(f"{what} {difference}")

    def seeds_differ(self, course: _Course, is_random: bool) -> None:
        """Under equal actions all environments may agree throughout only if there is no chance in them."""
        if not is_random or self._batch < 2:
            return
        parts = [course.start, *(step.obs for step in course.steps)]
        arrays = [part for obs in parts for part in (obs.values() if isinstance(obs, dict) else [obs])]
        rewards = [step.reward for step in course.steps]
        if all(torch.equal(array, array[:1].expand_as(array)) for array in [*arrays, *rewards]):
            raise self._broken("all environments draw the same random numbers; each needs a seed of its own")

    def final_is_last(self, course: _Course) -> None:
        """Same-step reset: where episodes end, `final_obs` is not what the next episode begins with."""
        ends = alike = still = 0
        before = course.start
        for step in course.steps:
            cut = step.terminated | step.truncated
            still += int(_rows_equal(before, step.obs)[~cut].sum())
            alike += int(_rows_equal(map_obs(partial(_rows, which=cut), step.obs), step.final_obs).sum())
            ends += int(cut.sum())
            before = step.obs
        moves = len(course.steps) * self._batch - ends
        if ends >= 3 and alike == ends and still * 10 < moves:
            raise self._broken("final_obs equals the first observation of the next episode at every end")

    def snapshot(self, actions: Sequence[Tensor]) -> bool:
        """Save in the middle, go on, load, go on again: the same twice."""
        stage = self._environment
        if not isinstance(stage, Snapshotable) or not stage.can_snapshot:
            return False
        half = len(actions) // 2
        self._environment.reset(7)
        self._go_on(actions[:half], None)
        state = stage.state_dict()
        first = self._go_on(actions[half:], None)
        stage.load_state_dict(state)
        second = self._go_on(actions[half:], None)
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            if difference := _step_difference(one, other):
                raise self._broken(
                    f"{number + 1} steps after loading a snapshot, {difference} differs from the original"
                )
        return True

    def _step(self, step: Step, number: int) -> None:
        at = f"step {number}:"
        self._array(step.reward, (self._batch,), torch.float32, f"{at} reward")
        self._array(step.terminated, (self._batch,), torch.bool, f"{at} terminated")
        self._array(step.truncated, (self._batch,), torch.bool, f"{at} truncated")
        self._obs(step.obs, self._batch, f"{at} obs")
        ended = (step.terminated | step.truncated).nonzero().squeeze(1)
        count = len(ended)
        self._obs(step.final_obs, count, f"{at} final_obs (one row per end)")
        if not torch.isfinite(step.reward).all():
            raise self._broken(f"{at} reward is not finite")
        if not torch.equal(step.episodes.index.to(ended.device), ended):
            raise self._broken(
                f"{at} episodes.index is {step.episodes.index.tolist()}, but these ended, in order: {ended.tolist()}"
            )
        self._array(step.episodes.returns, (count,), torch.float32, f"{at} episodes.returns")
        self._array(step.episodes.lengths, (count,), torch.int64, f"{at} episodes.lengths")
        for what, signals, size in (
            ("signals", step.signals, self._batch),
            ("episodes.signals", step.episodes.signals, count),
        ):
            if tuple(signals) != self._spec.signals:
                raise self._broken(f"{at} {what} has {tuple(signals)}, the spec has {self._spec.signals}")
            for name, value in signals.items():
                self._array(value, (size,), torch.float32, f"{at} {what}[{name!r}]")

    def _obs(self, obs: Obs, batch: int, what: str) -> None:
        spec = self._spec.obs
        if isinstance(obs, dict) != isinstance(spec, dict):
            raise self._broken(f"{what} is a {type(obs).__name__}, the spec says {type(spec).__name__}")
        parts, specs = (obs, spec) if isinstance(obs, dict) else ({"": obs}, {"": spec})
        assert isinstance(specs, dict)
        if tuple(parts) != tuple(specs):
            raise self._broken(f"{what} has the parts {tuple(parts)}, the spec has {tuple(specs)}")
        for name, part in parts.items():
            one = specs[name]
            assert isinstance(one, ArraySpec)
            title = f"{what}{f' part {name!r}' if name else ''}"
            self._array(part, (batch, *one.shape), one.dtype, title)
            self._range(part, one, title)

    def _range(self, part: Tensor, spec: ArraySpec, what: str) -> None:
        if part.numel() == 0:
            return
        low, high = float(part.min()), float(part.max())
        slack_low, slack_high = (_TOLERANCE * max(1.0, abs(x)) for x in (spec.low, spec.high))
        if not (low >= spec.low - slack_low and high <= spec.high + slack_high):
            raise self._broken(f"{what} spans {low:g} … {high:g}, outside the spec's {spec.low:g} … {spec.high:g}")
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise self._broken(f"{what} is not finite")

    def _array(self, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
        if tuple(value.shape) != shape or value.dtype != dtype or value.device.type != self._device.type:
            seen = f"{value.dtype} {tuple(value.shape)} on {value.device}"
            raise self._broken(f"{what} is {seen}; it must be {dtype} {shape} on {self._device}")

    def _broken(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._spec.name} breaks the contract of Environment: {what}")


class _Book:
    """Returns, lengths and signals of the running episodes, summed again from what the steps say."""

    def __init__(self, batch: int, signals: tuple[str, ...]) -> None:
        self._returns, self._lengths = torch.zeros(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.int64)
        self._signals = {name: torch.zeros(batch, dtype=torch.float64) for name in signals}

    def mistake(self, step: Step, own_reward: bool) -> str:
        """Count one step; what is wrong with its episodes, or nothing."""
        self._returns += step.reward.cpu()
        self._lengths += 1
        sums = {"returns": (self._returns, step.episodes.returns)} if own_reward else {}
        for name, total in self._signals.items():
            total += step.signals[name].cpu()
            sums[f"signals[{name!r}]"] = (total, step.episodes.signals[name])
        ended = step.episodes.index.cpu()
        if not torch.equal(self._lengths[ended], step.episodes.lengths.cpu()):
            return f"episodes.lengths is {step.episodes.lengths.tolist()}, counted {self._lengths[ended].tolist()}"
        for name, (total, told) in sums.items():
            if not torch.allclose(total[ended], told.cpu().double(), rtol=_TOLERANCE, atol=_TOLERANCE):
                return f"episodes.{name} is {told.tolist()}, the steps sum to {total[ended].tolist()}"
            total[ended] = 0
        self._lengths[ended] = 0
        return ""


def _copy(step: Step) -> Step:
    return Step(
        obs=map_obs(torch.clone, step.obs),
        reward=step.reward.clone(),
        terminated=step.terminated.clone(),
        truncated=step.truncated.clone(),
        final_obs=map_obs(torch.clone, step.final_obs),
        episodes=step.episodes,
        signals={name: value.clone() for name, value in step.signals.items()},
    )


def _difference(one: _Course, other: _Course) -> str:
    """The first thing in which two courses differ, in words, or nothing."""
    if not _obs_equal(one.start, other.start):
        return "observations at reset"
    for number, (first, second) in enumerate(zip(one.steps, other.steps, strict=True)):
        if difference := _step_difference(first, second):
            return f"{difference} at step {number}"
    return ""


def _step_difference(one: Step, other: Step) -> str:
    for name in ("obs", "final_obs"):
        if not _obs_equal(getattr(one, name), getattr(other, name)):
            return name
    for name in ("reward", "terminated", "truncated"):
        if not torch.equal(getattr(one, name), getattr(other, name)):
            return name
    for name in ("index", "returns", "lengths"):
        if not torch.equal(getattr(one.episodes, name), getattr(other.episodes, name)):
            return f"episodes.{name}"
    changed = [name for name, value in one.signals.items() if not torch.equal(value, other.signals[name])]
    return f"signal {changed[0]!r}" if changed else ""


def _rows(array: Tensor, which: Tensor) -> Tensor:
    return array[which]


def _obs_equal(one: Obs, other: Obs) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _rows_equal(one: Obs, other: Obs) -> Tensor:
    """bool `[N]`: which rows of two observations of the same structure are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return torch.stack([_rows_equal(one[name], other[name]) for name in one]).all(0)
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return (one == other).flatten(1).all(1) if one.dim() > 1 else one == other
