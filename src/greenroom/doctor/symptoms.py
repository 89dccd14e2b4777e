"""What is known to hurt: each symptom with the number that was measured and the remedy."""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from greenroom.config import RunConfig
from greenroom.doctor.search import Trial, changed
from greenroom.doctor.silence import silenced
from greenroom.envs.device import model_of
from greenroom.envs.factory import Factory
from greenroom.envs.gym import layout_of_env
from greenroom.envs.native import native_for
from greenroom.envs.spaces import Leaf
from greenroom.measure import Rate, blamed, mask_of

_STEPS = 200
"""Most steps that an environment is watched for, and …"""
_SECONDS = 0.3
"""… how long at most."""
_HUGE_BYTES = 64 * 1024
"""An Atari game's four frames take 28 KB."""
_PICTURE = 16
"""From how many rows and columns on an array is taken for a picture."""
_SMALL_MINIBATCH = 64
"""Steps."""
_RESET_SHARE, _COPY_SHARE, _WASTE_SHARE = 0.1, 0.1, 0.05
"""Of a simulator's time: what is worth a word."""
_FEWER_THREADS, _MORE_ACTORS = 1.1, 1.2
"""How many times as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """Something that costs time."""

    what: str
    """In a few words."""
    measured: str
    """The number."""
    remedy: str
    """What to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One array of an observation as the environment gives it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As given; greenroom keeps `kept`."""
    kept: str
    kept_bytes: int
    contiguous: bool
    write_seconds: float
    """To copy it, checked and converted, to where the learner reads it."""
    plain_seconds: float
    """To copy as much without looking."""

    @property
    def pixels(self) -> bool:
        """Whether it looks like a picture."""
        return len(self.shape) in (2, 3) and sum(length >= _PICTURE for length in self.shape) >= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What watching one environment for a moment showed."""

    parts: tuple[Seen, ...]
    steps: int
    printed: int
    """Bytes written to standard output and standard error."""


def watch(env: str, kwargs: Mapping[str, Any]) -> Vitals | None:
    """Step one environment with random actions and look; None for native and device environments, which hide nothing.

    Raises:
        UserError: it cannot be built, or fails.
    """
    if model_of(env) or native_for(env):
        return None
    simulator = Factory(env=env, kwargs=dict(kwargs)).build()
    try:
        layout = layout_of_env(simulator, 0)
        with silenced() as silence, blamed(env):
            obs, info = simulator.reset(seed=0)
            steps, until = 0, time.perf_counter() + _SECONDS
            while steps < _STEPS and time.perf_counter() < until:
                action = simulator.action_space.sample(mask_of(obs, info))
                obs, _, terminated, truncated, info = simulator.step(action)
                steps += 1
                if terminated or truncated:
                    obs, info = simulator.reset()
            printed = silence.written()
        leaves = [leaf for number, leaf in enumerate(layout.leaves) if number != layout.mask]
        return Vitals(parts=tuple(_seen(leaf, obs, info) for leaf in leaves), steps=steps, printed=printed)
    finally:
        simulator.close()


def _seen(leaf: Leaf, obs: Any, info: Any) -> Seen:
    value = obs
    for key in leaf.path:
        value = value[key]
    given = np.asarray(value)
    row = np.empty(leaf.shape, leaf.dtype)
    alike = row.copy()
    return Seen(
        name=leaf.name,
        shape=given.shape,
        dtype=str(given.dtype),
        kept=leaf.dtype,
        kept_bytes=row.nbytes,
        contiguous=given.flags.c_contiguous,
        write_seconds=_seconds_of(lambda: leaf.write(row, obs, info)),
        plain_seconds=_seconds_of(lambda: np.copyto(row, alike)),
    )


def _seconds_of(call: Callable[[], object]) -> float:
    """The least of some tries."""
    return min(timeit.repeat(call, number=20, repeat=5)) / 20


def symptoms(
    config: RunConfig, vitals: Vitals | None, single: Rate, own: Rate, trials: Sequence[Trial]
) -> list[Symptom]:
    """All that was found.

    Args:
        config: the run's own.
        vitals: of its environment, where it can be watched.
        single: rate of one simulator alone.
        own: rate of the whole loop with the run's own settings.
        trials: other settings that were measured.
    """
    found = [*_resets(single), *_threads(config, trials), *_actors(config, own, trials)]
    if vitals is not None:
        found += _printing(vitals)
        for part in vitals.parts:
            found += _observation(config, part, 1.0 / single.steps_per_second)
    return found


def _resets(single: Rate) -> Iterator[Symptom]:
    share = single.split.get("reset", 0.0)
    if share > _RESET_SHARE:
        yield Symptom(
            what="slow resets",
            measured=f"{100 * share:.0f} % of the simulator's time, with random actions",
            remedy="keep what does not change between episodes, and rebuild only what does; in workers the others wait",
        )


def _threads(config: RunConfig, trials: Sequence[Trial]) -> Iterator[Symptom]:
    fewer = [trial for trial in trials if changed(trial.against, trial.config).keys() == {"threads"}]
    best = max(fewer, key=lambda trial: trial.gain, default=None)
    if best is not None and best.gain > _FEWER_THREADS and best.config.threads < (config.threads or math.inf):
        yield Symptom(
            what="too many threads",
            measured=f"{best.gain:.2f}× as fast with {best.config.threads}",
            remedy=f"--threads {best.config.threads}",
        )


def _actors(config: RunConfig, own: Rate, trials: Sequence[Trial]) -> Iterator[Symptom]:
    more = [trial for trial in trials if changed(trial.against, trial.config).keys() == {"num_envs"}]
    best = max(more, key=lambda trial: trial.gain, default=None)
    if best is not None and best.gain > _MORE_ACTORS:
        cost = own.microseconds.get("act", 0.0)
        yield Symptom(
            what="num_envs is small for the batch",
            measured=f"{config.num_envs} actors: acting costs {cost:.0f} µs a step; "
            f"{best.gain:.2f}× as fast with {best.config.num_envs}",
            remedy=f"--num-envs {best.config.num_envs}, if the data of more actors suit: it changes learning",
        )
    if hasattr(config.algorithm, "minibatches") and config.steps_per_gradient < _SMALL_MINIBATCH:
        yield Symptom(
            what="small minibatches",
            measured=f"{config.steps_per_gradient} steps each; "
            f"learning costs {own.microseconds.get('learn', 0.0):.0f} µs a step",
            remedy="fewer --minibatches, or a longer --rollout-length: it changes learning",
        )


def _printing(vitals: Vitals) -> Iterator[Symptom]:
    if vitals.printed:
        yield Symptom(
            what="the environment prints",
            measured=f"{vitals.printed} bytes in {vitals.steps} steps",
            remedy="take the output out, or behind an argument that is off by default",
        )


def _observation(config: RunConfig, part: Seen, step_seconds: float) -> Iterator[Symptom]:
    """What is wrong with one array of the observation."""
    called = f"observation {part.name!r}" if part.name else "the observation"
    size = f"{part.kept_bytes / 1024:.0f} KB"
    if part.pixels and part.kept != "uint8":
        yield Symptom(
            what=f"{called} looks like pixels and is not kept as uint8",
            measured=f"{part.dtype} {list(part.shape)}: {size} each, {part.kept_bytes / 4096:.0f} KB as uint8",
            remedy="give uint8, 0 … 255, with three axes, and a Box of that type; greenroom scales where it computes",
        )
    if part.kept_bytes > _HUGE_BYTES:
        rollout = part.kept_bytes * config.num_envs * (config.rollout_length + 1)
        yield Symptom(
            what=f"{called} is huge",
            measured=f"{size} each; a rollout holds {rollout / 1e6:.0f} MB",
            remedy="shrink it inside the environment, to grey and 84 × 84"
            if part.pixels
            else "leave out what is not needed",
        )
    wasted = (part.write_seconds - part.plain_seconds) / step_seconds
    if part.dtype != part.kept and wasted > _WASTE_SHARE:
        yield Symptom(
            what=f"{called} is {part.dtype} and becomes {part.kept}",
            measured=f"{1e6 * part.write_seconds:.1f} µs a step, {1e6 * part.plain_seconds:.1f} µs without converting",
            remedy=f"give {part.kept}, and a Box of that type",
        )
    elif not part.contiguous and wasted > _WASTE_SHARE:
        yield Symptom(
            what=f"{called} is a view in another order",
            measured=f"{1e6 * part.write_seconds:.1f} µs a step to copy, {1e6 * part.plain_seconds:.1f} µs in order",
            remedy="make the array in the order that its space says, without transposing or flipping it",
        )
    elif (share := part.plain_seconds / step_seconds) > _COPY_SHARE:
        yield Symptom(
            what=f"copying {called} counts",
            measured=f"{1e6 * part.plain_seconds:.1f} µs a step, {100 * share:.0f} % of the simulator's own time",
            remedy="make it smaller; every copy that the environment itself makes costs as much again",
        )
