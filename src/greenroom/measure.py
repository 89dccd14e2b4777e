"""How fast is it: agent steps per second of a simulator, its stage, the learner, and the whole loop.

What is measured is a `Work`: an endless generator that does a little, says how many agent steps that was, and gives
everything back when it is closed. Whoever compares takes short slices of several in turn (`interleaved`), so that a
machine that others use slows all of them alike, and quotes ratios.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from greenroom.algorithms.replaying import with_drawing
from greenroom.config import RunConfig
from greenroom.envs.base import Environment
from greenroom.envs.check import RandomActor
from greenroom.envs.device import model_of
from greenroom.envs.factory import Factory
from greenroom.envs.native import native_for
from greenroom.errors import RAISED, EnvironmentFault, UserError
from greenroom.machine import available_cores, keep_freed_memory
from greenroom.seeding import derive, generator
from greenroom.spec import MASK
from greenroom.threads import limited
from greenroom.training import Run, Say, choose_device, make_groups, train
from greenroom.types import Obs, Rollout, map_obs, restart

_LEAD_IN = 0.1
"""Share of a slice that goes by before it is timed: caches fill, and what another measurement left running ends."""
_CHUNK_SECONDS = 1e-3
"""How long steps of a single simulator are taken between two looks at the clock of the slice."""
_ACTIONS = 64
"""How many random actions are drawn in advance, so that drawing them is not measured."""
_ENDLESS = 10**12
"""Agent steps that no measurement takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a measurement found."""

    steps_per_second: float
    """Agent steps a second, summed over environments: the median of the slices."""
    seconds: float
    """Time measured, all slices together."""
    repeats: int
    """Slices."""
    spread: float
    """Interquartile range of the slices' rates, as a share of their median."""
    split: dict[str, float] = field(default_factory=dict)
    """Share of the measured time in each of `env`, `act`, `learn`, `wait`; of a single simulator's in `reset`. What is
    missing to 1 is the loop's own; with `collect=overlap` parts run beside each other and add up to more."""
    slices: tuple[float, ...] = ()
    """The rate of every slice, in the order in which they were taken."""

    @property
    def microseconds(self) -> dict[str, float]:
        """What each part of the split costs an agent step."""
        return {name: 1e6 * share / self.steps_per_second for name, share in self.split.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A little work that was done."""

    steps: int
    """Agent steps, summed over environments."""
    split: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each part of the work."""


Work = Generator[Part, None, None]
"""Endless; the first `next` builds what it needs, `close` gives it back."""


def single_rate(env: str, kwargs: Mapping[str, Any] | None = None, *, seconds: float = 1.0, repeats: int = 5) -> Rate:
    """The rate of one simulator, stepped in a plain loop: see `single`, `interleaved`."""
    return _alone(single(env, kwargs), seconds, repeats)


def environment_rate(config: RunConfig, *, seconds: float = 1.0, repeats: int = 5) -> Rate:
    """The rate of a run's stage with nothing learned: see `environment`, `interleaved`."""
    return _alone(environment(config), seconds, repeats)


def learner_rate(config: RunConfig, *, seconds: float = 1.0, repeats: int = 5) -> Rate:
    """The rate of acting and learning without simulators: see `learner`, `interleaved`."""
    return _alone(learner(config), seconds, repeats)


def run_rate(config: RunConfig, *, seconds: float = 1.0, repeats: int = 5) -> Rate:
    """The rate of the whole loop, with its time split: see `whole`, `interleaved`."""
    return _alone(whole(config), seconds, repeats)


def bound(environment: float, learner: float) -> float:
    """Steps per second of simulating and learning in turn, from the rates of each alone: 1 / (1/env + 1/learner).

    Only what simulates and learns at the same time can be faster.
    """
    return 1.0 / (1.0 / environment + 1.0 / learner)


def parallel_bound(single: float) -> float:
    """Steps per second of all cores, each stepping one simulator at the rate `single`: cores × single."""
    return available_cores() * single


def interleaved(
    works: Mapping[str, Work], *, seconds: float, repeats: int, at_most: float = math.inf
) -> dict[str, Rate]:
    """Measure several works in turn, A B C A B C …, and close them.

    Every work has its own number of torch's threads; the caller's is as before afterwards, also after an error.

    Args:
        works: what to measure, by name.
        seconds: of each work, all slices together, their untimed beginnings not counted. It takes longer where one part
            of a work is longer than a slice.
        repeats: slices of each.
        at_most: seconds after which no further round of slices is begun, however few there have been.

    Returns:
        The median rate of each.
    """
    meters = {name: _Meter(work) for name, work in works.items()}
    begin = time.perf_counter()
    with ExitStack() as stack:
        for meter in meters.values():
            stack.callback(meter.close)
        for _ in range(repeats):
            for meter in meters.values():
                meter.take(seconds / repeats)
            if time.perf_counter() - begin > at_most:
                break
        return {name: meter.rate() for name, meter in meters.items()}


def _alone(work: Work, seconds: float, repeats: int) -> Rate:
    return interleaved({"it": work}, seconds=seconds, repeats=repeats)["it"]


class _Meter:
    """One measurement under way."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._threads = torch.get_num_threads()
        self._slices: list[tuple[float, Part]] = []

    def take(self, seconds: float) -> None:
        """One slice: at least one part of the work, and parts until `seconds` have passed."""
        with limited(self._threads):
            # The first of all begins with building what is measured, and warms up memory, threads and kernels.
            self._parts(_LEAD_IN * seconds if self._slices else seconds)
            self._slices.append(self._parts(seconds))
            self._threads = torch.get_num_threads()  # building a run sets it

    def _parts(self, seconds: float) -> tuple[float, Part]:
        _wait_for_device()
        steps, split = 0, dict[str, float]()
        begin = time.perf_counter()
        while not steps or time.perf_counter() - begin < seconds:
            part = next(self._work)
            steps += part.steps
            for name, spent in part.split.items():
                split[name] = split.get(name, 0.0) + spent
        _wait_for_device()
        return time.perf_counter() - begin, Part(steps=steps, split=split)

    def rate(self) -> Rate:
        """What the slices came to."""
        rates = np.array([part.steps / seconds for seconds, part in self._slices])
        low, median, high = np.percentile(rates, [25, 50, 75])
        total = sum(seconds for seconds, _ in self._slices)
        return Rate(
            steps_per_second=float(median),
            seconds=total,
            repeats=len(rates),
            spread=float((high - low) / median),
            split={
                name: sum(part.split[name] for _, part in self._slices) / total for name in self._slices[0][1].split
            },
            slices=tuple(rates.tolist()),
        )

    def close(self) -> None:
        with limited(torch.get_num_threads()):
            self._work.close()


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def single(env: str, kwargs: Mapping[str, Any] | None = None) -> Work:
    """One simulator in a plain loop, with random valid actions, reset by hand when an episode ends.

    A Gymnasium environment is stepped as it is, without greenroom in between; one that has no such form (native,
    device) on its own stage with num_envs 1. Actions are drawn beforehand, unless masks say what is allowed.
    """
    if model_of(env) or native_for(env):
        return environment(RunConfig(env=env, env_kwargs=dict(kwargs or {}), num_envs=1, device="cpu"))
    return _plain_loop(Factory(env=env, kwargs=dict(kwargs or {})))


def _plain_loop(factory: Factory) -> Work:
    simulator = factory.build()
    try:
        with blamed(factory.name):
            yield from _steps_of(simulator)
    finally:
        simulator.close()


@contextmanager
def blamed(env: str) -> Iterator[None]:
    """Say of any exception within, which comes from a user's simulator stepped as it is, whose it was.

    Raises:
        EnvironmentFault: in its place.
    """
    try:
        yield
    except UserError:
        raise
    except RAISED as error:
        raise EnvironmentFault(f"{env}, stepped by itself, raised {type(error).__name__}: {error}") from error


def _steps_of(simulator: gymnasium.Env[Any, Any]) -> Work:
    space = simulator.action_space
    space.seed(0)
    obs, info = simulator.reset(seed=0)
    if (mask := mask_of(obs, info)) is None:
        actions = itertools.cycle([space.sample() for _ in range(_ACTIONS)])
    while True:
        steps, resetting, until = 0, 0.0, time.perf_counter() + _CHUNK_SECONDS
        while time.perf_counter() < until:
            action = next(actions) if mask is None else space.sample(mask)
            obs, _, terminated, truncated, info = simulator.step(action)
            steps += 1
            if terminated or truncated:
                before = time.perf_counter()
                obs, info = simulator.reset()
                resetting += time.perf_counter() - before
            if mask is not None:
                mask = mask_of(obs, info)
        yield Part(steps=steps, split={"reset": resetting})


def mask_of(obs: Any, info: Any) -> Any:
    """The mask of allowed actions as Gymnasium's spaces take it, None where there is none."""
    found = obs.get(MASK) if isinstance(obs, dict) else None
    found = info.get(MASK) if found is None else found
    if found is None:
        return None
    return (
        tuple(np.asarray(part, np.int8) for part in found) if isinstance(found, tuple) else np.asarray(found, np.int8)
    )


def environment(config: RunConfig) -> Work:
    """A run's stage, all its groups, with random valid actions and nothing learned."""
    if config.threads:
        torch.set_num_threads(config.threads)
    groups = make_groups(config, choose_device(config), say_nothing)
    try:
        shown = [group.reset(derive(config.seed, "environments", number)) for number, group in enumerate(groups)]
        choose = [_random_actions(group, obs) for group, obs in zip(groups, shown, strict=True)]
        while True:
            for group, act, obs in zip(groups, choose, shown, strict=True):
                group.send(act(obs))
            shown = [group.recv().obs for group in groups]
            yield Part(steps=config.num_envs)
    finally:
        _close(groups)


def _random_actions(group: Environment, obs: Obs) -> Callable[[Obs], Tensor]:
    """Gives valid actions for observations `[B, ...]`; where nothing is forbidden they were drawn beforehand."""
    draw = RandomActor(group, 0)
    if isinstance(obs, dict) and MASK in obs:
        return draw
    drawn = itertools.cycle([draw(obs) for _ in range(_ACTIONS)])
    return lambda shown: next(drawn)


def learner(config: RunConfig) -> Work:
    """Acting and learning on one recorded rollout, again and again, without simulators and without collecting.

    The rollout is one that the run collects; `config.collect` makes no difference. A replay holds copies of it.
    """
    algorithm: Any = config.algorithm
    if getattr(algorithm, "target_kl", 0.0):  # on one rollout for ever it would soon end every update
        algorithm = replace(algorithm, target_kl=0.0)
    run = begun(replace(config, algorithm=algorithm, collect="sync", lag=1))
    try:
        rollout = next(run.collector)
        threads = torch.get_num_threads()
    finally:
        run.close()
    torch.set_num_threads(threads)  # the run's, which closing it gave back; `_Meter` remembers them
    policy, initial = run.algorithm.policy, run.algorithm.policy.initial_state(config.num_envs)
    source = generator(config.seed, "acting", device=run.device)
    while True:
        start = time.perf_counter()
        _act(policy, rollout, initial, source)
        acted = time.perf_counter()
        run.algorithm.learn(rollout)
        split = {"act": acted - start, "learn": time.perf_counter() - acted}
        yield Part(steps=rollout.reward.numel(), split=split)


def _act(policy: Any, rollout: Rollout, initial: Any, source: torch.Generator) -> None:
    """Decide on all of a rollout's observations, in the order of time."""
    state, cut = rollout.state, rollout.cut
    for t in range(len(cut)):
        decision = policy.act(_at(rollout.obs, t), state, source)
        state = restart(decision.state, initial, cut[t]) if state else state


def _at(obs: Obs, t: int) -> Obs:
    return map_obs(lambda part: part[t], obs)


def whole(config: RunConfig) -> Work:
    """The loop of `training.train`, as the run has it once warm; a part is one update."""
    run = begun(config)
    try:
        before = dict[str, float]()
        for progress in train(run):
            spent = {name: total - before.get(name, 0.0) for name, total in progress.time_split.items()}
            before = progress.time_split
            yield Part(steps=config.steps_per_update, split=spent)
    finally:
        run.close()


def begun(config: RunConfig, say: Say | None = None) -> Run:
    """The run without an end; one that learns from a replay does so at once, as it will most of its time.

    Args:
        config: of the run.
        say: hears which stage was chosen; None: nobody does.
    """
    keep_freed_memory()
    # Whole sequences have to be there before they can be learned from.
    memory, sequences = config.policy.memory.memory != "none", getattr(config.algorithm, "sequences", None)
    least = sequences.length * config.num_envs - 1 if memory and sequences is not None else 0
    algorithm = with_drawing(config.algorithm, learning_starts=least)
    return Run(replace(config, algorithm=algorithm, total_steps=_ENDLESS), say=say or say_nothing)


def _close(groups: Iterable[Environment]) -> None:
    for group in groups:
        group.close()


def say_nothing(line: str) -> None:
    """Where news of stages and precision go that nobody waits for."""
