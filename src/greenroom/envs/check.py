"""`check_environment`: every contract of `Environment`, stated once and tried on a live one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from greenroom.envs.base import Environment, Snapshotable
from greenroom.errors import EnvironmentFault
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, MultiDiscrete
from greenroom.types import Obs, Step, map_obs, parts_of

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
    masked: bool
    """Whether a mask forbade an action during the first run."""


def check_environment(
    environment: Environment, *, steps: int = 200, seed: int = 0, own_reward: bool = True
) -> CheckReport:
    """Drive an environment with random actions that its masks allow, verify every contract, and close it.

    Args:
        environment: Of any stage; closed afterwards.
        steps: Steps of each run; more than an episode lasts, or ends are not seen.
        seed: Of the environment and of the actions.
        own_reward: Whether `Step.reward` is the environment's own; False for a stage told to clip rewards, whose
            episode returns cannot be recomputed from what the learner sees.

    Raises:
        EnvironmentFault: A contract is broken; the message says which, where, and what was seen.
    """
    check = _Check(environment, steps, own_reward)
    try:
        check.mask_fits()
        first, again = (check.run(seed, RandomActor(environment, seed)) for _ in range(2))
        check.same(first, again, "the same seed and the same actions gave different")
        one, other = (check.run(each, RandomActor(environment, seed, alike=True)) for each in (seed, seed + 1))
        is_random = _difference(one, other) != ""
        check.seeds_differ(one, is_random)
        check.final_is_last(first)
        check.stacks_move_on(first)
        saved = check.snapshot(RandomActor(environment, seed))
    finally:
        environment.close()
    environment.close()
    masks = [obs[MASK] for obs in first.shown if isinstance(obs, dict) and MASK in obs]
    return CheckReport(
        episodes=sum(len(step.episodes.index) for step in first.steps),
        random=is_random,
        snapshot=saved,
        masked=not all(bool(mask.all()) for mask in masks),
    )


class RandomActor:
    """Uniform random actions among the allowed ones; the n-th depends on the seed and on the n-th mask alone.

    Args:
        environment: Tells the form of the actions and where they go.
        seed: Of the actions.
        alike: Whether all environments draw the same: where their masks agree, so do their actions.
    """

    def __init__(self, environment: Environment, seed: int, *, alike: bool = False) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self._spec, self._batch, self._device = environment.spec.action, environment.num_envs, environment.device
        self._alike = alike

    def __call__(self, obs: Obs) -> Tensor:
        """Actions on observations `[B, ...]`."""
        spec = self._spec
        if isinstance(spec, Bounded):
            low, high = torch.tensor(spec.low), torch.tensor(spec.high)
            action = (low + (high - low) * self._draw(len(spec.low))).reshape(self._batch, *spec.shape)
        else:
            count = _choices(spec)
            drawn = self._draw(sum(count))
            if isinstance(obs, dict) and MASK in obs:
                drawn = drawn.masked_fill(obs[MASK].cpu() == 0, -1.0)  # below all others
            best = [part.argmax(1) for part in drawn.split(count, dim=1)]
            action = best[0] if isinstance(spec, Discrete) else torch.stack(best, dim=1)
        return action.to(self._device)

    def _draw(self, size: int) -> Tensor:
        rows = torch.rand(1 if self._alike else self._batch, size, generator=self.source)
        return rows.expand(self._batch, -1)


def _choices(spec: Discrete | MultiDiscrete) -> tuple[int, ...]:
    return (spec.n,) if isinstance(spec, Discrete) else spec.nvec


@dataclass(frozen=True, kw_only=True)
class _Course:
    """A run, copied out of the stage's memory."""

    start: Obs
    steps: list[Step]

    @property
    def shown(self) -> list[Obs]:
        """Every observation that was to be acted on."""
        return [self.start, *(step.obs for step in self.steps)]


class _Check:
    def __init__(self, environment: Environment, steps: int, own_reward: bool) -> None:
        self._environment, self._steps, self._own_reward = environment, steps, own_reward
        self._spec, self._batch = environment.spec, environment.num_envs
        self._device = environment.device

    def mask_fits(self) -> None:
        """Raise if the spec's mask does not go with its actions."""
        spec, action = self._spec.obs, self._spec.action
        if not isinstance(spec, dict) or MASK not in spec:
            return
        if isinstance(action, Bounded):
            raise self._broken(f"the spec has a part {MASK!r}, but continuous actions cannot be masked")
        proper = ArraySpec(shape=(sum(_choices(action)),), low=0.0, high=1.0)
        if spec[MASK] != proper:
            raise self._broken(f"the spec's part {MASK!r} is {spec[MASK]}; for {action} it must be {proper}")

    def run(self, seed: int, act: RandomActor) -> _Course:
        """Reset, act, and check every answer by itself and against the episodes so far."""
        start = self._start(seed)
        return _Course(start=start, steps=self._go_on(act, start, self._steps, _Book(self._batch, self._spec.signals)))

    def _start(self, seed: int) -> Obs:
        start = self._environment.reset(seed)
        self._obs(start, self._batch, "the observation of reset")
        self._choice(start, "the observation of reset")
        return map_obs(torch.clone, start)

    def _go_on(self, act: RandomActor, obs: Obs, steps: int, book: _Book | None = None) -> list[Step]:
        """Act from `obs` on; with a book, from the beginning of all episodes."""
        taken: list[Step] = []
        for number in range(steps):
            self._environment.send(act(obs))
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
            obs = copy.obs
        return taken

    def same(self, first: _Course, second: _Course, what: str) -> None:
        """Raise unless two courses are equal bit for bit."""
        if difference := _difference(first, second):
            raise self._broken(f"{what} {difference}")

    def seeds_differ(self, course: _Course, is_random: bool) -> None:
        """Under equal actions all environments may agree throughout only if there is no chance in them."""
        if not is_random or self._batch < 2:
            return
        arrays = [part for obs in course.shown for part in parts_of(obs).values()]
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

    def stacks_move_on(self, course: _Course) -> None:
        """Each step moves the frames of a stack on by one; only the next episode's first observation is another."""
        specs = parts_of(self._spec.obs)
        for name, spec in [(name, spec) for name, spec in specs.items() if spec.stack > 1]:
            frame = spec.shape[0] // spec.stack
            for number, (before, step) in enumerate(zip(course.shown, course.steps, strict=False)):
                reached = parts_of(step.obs)[name].clone()
                reached[step.terminated | step.truncated] = parts_of(step.final_obs)[name]
                if not torch.equal(reached[:, :-frame], parts_of(before)[name][:, frame:]):
                    title = f"obs{f' part {name!r}' if name else ''}"
                    raise self._broken(f"step {number}: the {spec.stack} frames of {title} did not move on by one")

    def snapshot(self, act: RandomActor) -> bool:
        """Save in the middle, go on, load, go on again: the same twice."""
        stage = self._environment
        if not isinstance(stage, Snapshotable) or not stage.can_snapshot:
            return False
        half = self._steps // 2
        obs = self._start(7)
        for step in self._go_on(act, obs, half):
            obs = step.obs
        state, drawn = stage.state_dict(), act.source.get_state()
        first = self._go_on(act, obs, self._steps - half)
        stage.load_state_dict(state)
        act.source.set_state(drawn)
        second = self._go_on(act, obs, self._steps - half)
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
        self._choice(step.obs, f"{at} obs")
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
        parts, specs = parts_of(obs), parts_of(spec)
        if tuple(parts) != tuple(specs):
            raise self._broken(f"{what} has the parts {tuple(parts)}, the spec has {tuple(specs)}")
        for name, part in parts.items():
            one = specs[name]
            title = f"{what}{f' part {name!r}' if name else ''}"
            self._array(part, (batch, *one.shape), one.dtype, title)
            self._range(part, one, title)
            if name == MASK and not bool(((part == 0) | (part == 1)).all()):
                raise self._broken(f"{title} holds other numbers than 0 (forbidden) and 1 (allowed)")

    def _choice(self, obs: Obs, what: str) -> None:
        """Raise if an observation that is to be acted on forbids everything."""
        action = self._spec.action
        if not isinstance(obs, dict) or MASK not in obs or isinstance(action, Bounded):
            return
        free = [part.any(1) for part in obs[MASK].split(_choices(action), dim=1)]
        stuck = (~torch.stack(free).all(0)).nonzero().squeeze(1)
        if len(stuck):
            raise self._broken(f"{what} part {MASK!r} allows no action in environments {stuck.tolist()}")

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
