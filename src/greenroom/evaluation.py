"""How good a policy is: whole episodes in environments of its own, the same number from each, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import nn

from greenroom import seeding
from greenroom.envs.base import Environment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.maths import statistics
from greenroom.policy import Actor
from greenroom.types import Episodes, map_obs, restart

OnProgress = Callable[[int, int], None]
"""Called with the number of episodes finished and wanted, each time the first of them grows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Undiscounted returns of N whole episodes, in the environment's own rewards, and what they amount to."""

    mean: float
    std: float
    """Sample standard deviation (divisor N - 1); zero for one episode."""
    iqm: float
    """Interquartile mean."""
    ci95: tuple[float, float]
    """95 % percentile-bootstrap interval of the mean, over episodes. The spread between training runs is not in it."""
    cvar5: float
    """Mean of the worst 5 % of the episodes (at least one)."""
    episodes: int
    """N."""
    length_mean: float
    """Agent steps an episode."""
    signals: dict[str, float]
    """Mean over episodes of each named signal summed over its episode."""
    returns: NDArray[np.float64]
    """`[N]`: all of environment 0's episodes in the order in which they ended, then environment 1's, and so on."""
    lengths: NDArray[np.int64]
    """`[N]`: agent steps, in the same order."""
    lost: int = 0
    """Episodes that were given up because their environment failed, and others played in their place."""

    def to_json(self) -> dict[str, float | int | list[float]]:
        """The summary without the arrays, as one flat record; a signal is called `signals/NAME`."""
        return {
            "mean": self.mean,
            "std": self.std,
            "iqm": self.iqm,
            "ci95": list(self.ci95),
            "cvar5": self.cvar5,
            "episodes": self.episodes,
            "length_mean": self.length_mean,
            **({"lost": self.lost} if self.lost else {}),
            **{f"signals/{name}": value for name, value in self.signals.items()},
        }

    def table(self) -> Table:
        """The summary for the terminal."""
        table = Table(box=None, show_header=False, title=f"return over {self.episodes} episodes", title_justify="left")
        rows = {
            "mean": f"{self.mean:.6g}",
            "95 % interval": f"{self.ci95[0]:.6g} … {self.ci95[1]:.6g}",
            "standard deviation": f"{self.std:.6g}",
            "interquartile mean": f"{self.iqm:.6g}",
            "mean of the worst 5 %": f"{self.cvar5:.6g}",
            "mean length": f"{self.length_mean:.6g} steps",
        }
        if self.lost:
            rows["given up, for the environment failed"] = f"{self.lost} episodes more"
        for name, value in rows.items():
            table.add_row(name, value)
        for name, total in self.signals.items():
            table.add_row(escape(name), f"{total:.6g}")
        return table


def evaluate(
    policy: Actor,
    environment: Environment,
    *,
    episodes: int,
    seed: int,
    greedy: bool = True,
    max_steps: int = 100_000,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Play whole episodes and summarise their returns. The same seed gives the same episodes.

    Every environment contributes exactly its first ⌈episodes / num_envs⌉ episodes. Taking whichever finish first would
    favour short ones. So N is `episodes` rounded up to a multiple of `num_envs`.

    Args:
        policy: a module acts in evaluation mode and without gradient, and gets its training mode back afterwards;
            anything else that acts (a classical rule) is used as it is, on the environment's device.
        environment: reset here; left open, in the middle of episodes. Not the one that is being trained on.
        episodes: how many at least, ≥ 1.
        seed: of the episodes, the sampled actions and the bootstrap. Not shared with training, even if the number is.
        greedy: take the policy's best action instead of a sampled one.
        max_steps: longest episode to wait for, in agent steps.
        on_progress: hears how far it has got.

    Raises:
        UserError: `episodes` or `max_steps` is below 1, or an episode is longer than `max_steps`.
        EnvironmentFault: an episode's return is not finite.
    """
    if episodes < 1 or max_steps < 1:
        raise UserError(f"evaluation needs episodes and max_steps of at least 1, not {episodes} and {max_steps}")
    tally = _Tally(environment.num_envs, math.ceil(episodes / environment.num_envs), environment.spec.signals)
    device = device_of(policy, environment.device)
    generator = seeding.generator(seed, "evaluation", device=device)
    # Not inference_mode: tensors made in it would stay in the environment's state and break whoever uses it next.
    with evaluation_mode(policy), torch.no_grad():
        obs = environment.reset(seeding.derive(seed, "evaluation", "environments"))
        state = initial = policy.initial_state(environment.num_envs)
        while not tally.complete:
            obs = map_obs(lambda part: part.to(device), obs)
            decision = policy.act(obs, state, None if greedy else generator)
            environment.send(decision.action.to(environment.device))
            step = environment.recv()
            state = restart(decision.state, initial, (step.terminated | step.truncated).to(device))
            before = tally.done
            tally.add(step.episodes)
            tally.forget([index for fault in step.faults for index in fault.restarted])
            if on_progress is not None and tally.done > before:
                on_progress(tally.done, tally.total)
            if tally.longest_running >= max_steps:
                raise UserError(
                    f"an evaluation episode of {environment.spec.name} (environment {tally.slowest}) has not ended "
                    f"after {max_steps} steps; give the environment a time limit"
                )
            obs = step.obs
    return _summarise(tally, np.random.default_rng(seeding.derive(seed, "evaluation", "bootstrap")))


class _Tally:
    """The first `quota` episodes of each of B environments, and how long each has been on its running one."""

    def __init__(self, num_envs: int, quota: int, signals: tuple[str, ...]) -> None:
        self.total = num_envs * quota
        self.done = self.lost = 0
        self.returns = np.zeros((num_envs, quota))
        self.lengths = np.zeros((num_envs, quota), dtype=np.int64)
        self.signals = {name: np.zeros((num_envs, quota)) for name in signals}
        self._quota = quota
        self._count = np.zeros(num_envs, dtype=np.int64)
        self._running = np.zeros(num_envs, dtype=np.int64)

    def add(self, ended: Episodes) -> None:
        """Count one step of every environment and the episodes that ended with it."""
        self._running += 1
        index = ended.index.cpu().numpy()
        if len(index) == 0:
            return
        self._running[index] = 0
        wanted = self._count[index] < self._quota
        env, place = index[wanted], self._count[index[wanted]]
        self.returns[env, place] = ended.returns.cpu().numpy()[wanted]
        self.lengths[env, place] = ended.lengths.cpu().numpy()[wanted]
        for name, kept in self.signals.items():
            kept[env, place] = ended.signals[name].cpu().numpy()[wanted]
        self._count[env] += 1
        self.done += len(env)

    def forget(self, index: Sequence[int]) -> None:
        """The running episodes of these environments came to nothing; others are waited for."""
        self._running[list(index)] = 0
        self.lost += sum(bool(self._count[one] < self._quota) for one in index)

    @property
    def complete(self) -> bool:
        """Every environment has filled its quota."""
        return self.done == self.total

    @property
    def slowest(self) -> int:
        """Which environment has been longest on one episode, among those whose episodes still count."""
        return int(np.where(self._count < self._quota, self._running, -1).argmax())

    @property
    def longest_running(self) -> int:
        """Steps that the slowest environment has spent on its running episode; zero when all is done."""
        return 0 if self.complete else int(self._running[self.slowest])


def _summarise(tally: _Tally, generator: np.random.Generator) -> Evaluation:
    broken = np.flatnonzero(~np.isfinite(tally.returns).all(axis=1))
    if len(broken):
        raise EnvironmentFault(
            f"environment {broken[0]} gave an episode whose return is not finite; look for NaN or infinite rewards"
        )
    returns = tally.returns.flatten()
    lengths = tally.lengths.flatten()
    return Evaluation(
        mean=float(statistics.mean(returns)),
        std=float(statistics.std(returns)),
        iqm=float(statistics.iqm(returns)),
        ci95=statistics.bootstrap_interval(statistics.mean, returns, generator=generator),
        cvar5=float(statistics.cvar(returns)),
        episodes=len(returns),
        length_mean=float(lengths.mean()),
        signals={name: float(kept.mean()) for name, kept in tally.signals.items()},
        returns=returns,
        lengths=lengths,
        lost=tally.lost,
    )


def device_of(policy: Actor, otherwise: torch.device) -> torch.device:
    """Where the policy's first parameter or buffer lives."""
    if isinstance(policy, nn.Module):
        for tensor in (*policy.parameters(), *policy.buffers()):
            return tensor.device
    return otherwise


@contextmanager
def evaluation_mode(policy: Actor) -> Iterator[None]:
    """Switch to evaluation mode; afterwards give each submodule its own mode back (a frozen part may differ)."""
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
