"""Checks of what comes from the world: rewards, returns, signals, observations, and what becomes of the actions."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greenroom.errors import UserError, nearest
from greenroom.evaluation import Evaluation
from greenroom.health import baseline
from greenroom.health.finding import Action, Check, Finding, Subject, found, require_at_least
from greenroom.spec import MASK
from greenroom.types import Progress, Rollout, parts_of

_NORMAL95 = 1.96
_ONE_SIGN = 0.9
"""Mean reward as a share of the mean size of rewards, from which on they count as of one sign."""


@dataclass(frozen=True, kw_only=True)
class RewardShift:
    """Rewards have changed their size or their sign from one look to the next."""

    on_reward_shift: Action = "warn"
    """Rewards change their size or sign at once."""
    reward_leap: float = 100.0
    """So many times the mean size of rewards lately, or at first, is too much."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Rewards(self.reward_leap)


class _Rewards:
    def __init__(self, leap: float) -> None:
        self.leap = leap
        self.memory: dict[str, Any] = {"size": {}, "mean": {}}

    def __call__(self, progress: Progress) -> Finding | None:
        reward = progress.rollout.kept(progress.rollout.reward.flatten())
        size, mean = torch.stack([reward.abs().mean(), reward.mean()]).tolist()
        result = self._leapt(progress, size, reward) or self._turned(progress, mean, reward)
        baseline.learn(self.memory["size"], size)
        baseline.learn(self.memory["mean"], mean)
        return result

    def _leapt(self, progress: Progress, size: float, reward: Tensor) -> Finding | None:
        memory = self.memory["size"]
        if not baseline.ready(memory):
            return None
        lately, first = baseline.rolling(memory), baseline.frozen(memory)
        limit = self.leap * max(lately, first)
        # One large reward among many small ones is a goal that was reached, not another scale.
        if not 0.0 < limit < size or float(reward[reward != 0.0].abs().median()) < limit:
            return None
        message = (
            f"rewards are {size:.3g} in size on average; {lately:.3g} lately and {first:.3g} at first were normal. "
            "Has the environment changed its units? If not, look into it before training goes on"
        )
        return found(progress, "reward_shift", "critical", message, value=size, limit=limit)

    def _turned(self, progress: Progress, mean: float, reward: Tensor) -> Finding | None:
        """Whether rewards that clearly had one sign have the other one now, in about the same size."""
        memory = self.memory["mean"]
        if not baseline.ready(memory):
            return None
        lately, spread = baseline.rolling(memory), baseline.spread(memory)
        # A game that is won and lost has rewards of both signs, and their mean turns when it is learned.
        steady = abs(lately) > max(5.0 * spread, _ONE_SIGN * baseline.rolling(self.memory["size"]))
        if not (steady and mean * lately < 0.0 and abs(mean) > 0.5 * abs(lately)):
            return None
        if float(reward[reward != 0.0].sign().mean()) * mean < 0.0:
            return None  # most have the sign that they had
        message = (
            f"the mean reward is {mean:.3g}, and was {lately:.3g} with a spread of {spread:.2g} until the look before: "
            "it has changed its sign. Look into the environment"
        )
        return found(progress, "reward_shift", "critical", message, value=mean, limit=0.0)


@dataclass(frozen=True, kw_only=True)
class ReturnCollapse:
    """What had been learned is lost, by more than chance explains."""

    on_return_collapse: Action = "warn"
    """Most of what was learned is lost."""
    collapse_share: float = 0.8
    """So much of the way from the first returns to the best ones has to be lost."""
    collapse_episodes: int = 100
    """How many training episodes are compared with as many at their best (with fewer actors: at least so many)."""

    def __post_init__(self) -> None:
        require_at_least(2, collapse_episodes=self.collapse_episodes)

    def build(self, subject: Subject) -> Returns:
        """The check."""
        return Returns(self.collapse_share, max(self.collapse_episodes, subject.num_envs))


class Returns:
    """Compares evaluations with the best one, and training's returns with their best stretch, interval by interval."""

    def __init__(self, share: float, window: int) -> None:
        self.share, self.window = share, window
        self.memory: dict[str, Any] = {"recent": [], "fresh": 0, "training": {}, "evaluation": {}}

    def gather(self, progress: Progress) -> None:
        """Take in the episodes that ended."""
        if ended := progress.rollout.episodes.returns.tolist():
            self.memory["recent"] = [*self.memory["recent"], *ended][-self.window :]
            self.memory["fresh"] += len(ended)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Take in an evaluation."""
        self._take(self.memory["evaluation"], evaluation.mean, *evaluation.ci95)

    @staticmethod
    def _take(memory: dict[str, Any], mean: float, low: float, high: float) -> None:
        if not math.isfinite(mean):
            return
        now = [mean, low, high]
        memory.setdefault("first", now)
        memory["now"] = now
        if mean > memory.setdefault("best", now)[0]:
            memory["best"] = now

    def __call__(self, progress: Progress) -> Finding | None:
        """Compare."""
        recent = self.memory["recent"]
        # Half a window of new episodes at least, so that no stretch is compared with itself.
        if len(recent) == self.window and self.memory["fresh"] >= self.window // 2:
            self.memory["fresh"] = 0
            mean, error = statistics.fmean(recent), statistics.stdev(recent) / math.sqrt(len(recent))
            self._take(self.memory["training"], mean, mean - _NORMAL95 * error, mean + _NORMAL95 * error)
        return self.compare(progress.env_steps, progress.updates)

    def compare(self, env_steps: int, updates: int) -> Finding | None:
        """What was taken in last, of evaluations and of training, beside the best."""
        return self._compare("evaluation", env_steps, updates) or self._compare("training", env_steps, updates)

    def _compare(self, kind: str, env_steps: int, updates: int) -> Finding | None:
        memory = self.memory[kind]
        if not memory:
            return None
        (best, low, high), (now, _, reach) = memory["best"], memory["now"]
        # The first evaluation comes when much may have been learned already: what had to be gained shows in training.
        first = min(known["first"][0] for known in (memory, self.memory["training"]) if known)
        # Where nothing was learned yet, chance alone is what the fall has to exceed.
        limit = min(best - self.share * (best - first), best - 4.0 * (high - low))
        if not (now < limit and reach < low):
            return None
        message = (
            f"the mean return of {kind} is {now:.5g}, and was {best:.5g} at best ({low:.5g} … {high:.5g}) and "
            f"{first:.5g} at first: more is lost than chance explains. Roll back to the best checkpoint, with a lower "
            "learning rate; if it comes back, look for a change in the environment"
        )
        return Finding(
            check="return_collapse",
            severity="critical",
            message=message,
            value=now,
            limit=limit,
            env_steps=env_steps,
            updates=updates,
        )


@dataclass(frozen=True, kw_only=True)
class ConstraintCost:
    """An environment's named signal, summed per episode, is above its budget."""

    on_constraint_cost: Action = "warn"
    """A constraint's cost is over its budget."""
    constraint_episodes: int = 100
    """The newest episodes that count."""

    def __post_init__(self) -> None:
        require_at_least(2, constraint_episodes=self.constraint_episodes)


class Constraint:
    """`limits`: signal → the most that it may be per episode on average."""

    def __init__(self, limits: dict[str, float], episodes: int) -> None:
        self.limits, self.episodes = limits, episodes
        self.memory: dict[str, Any] = {name: [] for name in limits}

    def gather(self, progress: Progress) -> None:
        """Take in the episodes that ended.

        Raises:
            UserError: the environment has no signal of a constraint's name.
        """
        signals = progress.rollout.episodes.signals
        for name in self.limits:
            if name not in signals:
                raise UserError(f"--constraint: the environment has no signal {name!r}{nearest(name, signals)}")
            if ended := signals[name].tolist():
                self.memory[name] = [*self.memory.get(name, []), *ended][-self.episodes :]

    def __call__(self, progress: Progress) -> Finding | None:
        """Compare the interval's lower end with the budget, so that noise does not trigger it."""
        for name, limit in self.limits.items():
            costs = self.memory.get(name, [])  # a constraint may be newer than the checkpoint
            if len(costs) < max(2, self.episodes // 5):
                continue
            mean = statistics.fmean(costs)
            if mean - _NORMAL95 * statistics.stdev(costs) / math.sqrt(len(costs)) > limit:
                message = (
                    f"the last {len(costs)} episodes had {name} {mean:.4g} on average, and its budget is {limit:g}. "
                    "Let the reward charge more for it, or forbid the actions that cause it"
                )
                return found(progress, "constraint_cost", "warning", message, value=mean, limit=limit)
        return None


@dataclass(frozen=True, kw_only=True)
class ActionLimits:
    """Actions are clipped at their bounds, or forbidden by masks, too often."""

    on_action_limits: Action = "warn"
    """Actions are clipped or masked too often."""
    clipped_share: float = 0.95
    """Share of the policy's draws outside the bounds, on average over 32 looks, that is too much."""
    masked_share: float = 0.98
    """Share of forbidden actions that is too much."""
    limits_drift: float = 0.9
    """So much more than at first is too much in any case."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Limits(self)


class _Limits:
    def __init__(self, config: ActionLimits) -> None:
        self.config = config
        self.memory: dict[str, Any] = {"clipped": {}, "masked": {}}

    def __call__(self, progress: Progress) -> Finding | None:
        shares = {"clipped": clipped(progress.rollout), "masked": masked(progress.rollout)}
        limits = {"clipped": self.config.clipped_share, "masked": self.config.masked_share}
        result = None
        for kind, share in shares.items():
            if share is None:
                continue
            memory = self.memory[kind]
            baseline.learn(memory, share)
            if not baseline.ready(memory) or result is not None:
                continue
            lately, first = statistics.fmean(memory["rolling"]), baseline.frozen(memory)
            limit = min(limits[kind], first + self.config.limits_drift)
            if lately > limit:
                message = (
                    f"{lately:.0%} of the actions were {kind} lately, and {first:.0%} at first. "
                    + ("The policy pushes against its bounds: are they too narrow?" if kind == "clipped" else "")
                    + ("Hardly anything is allowed any more: is the mask right?" if kind == "masked" else "")
                )
                result = found(progress, "action_limits", "warning", message, value=lately, limit=limit)
        return result


def clipped(rollout: Rollout) -> float | None:
    """Share of continuous actions that were drawn outside their bounds; None where there are none."""
    sample = rollout.extras.get("sample")
    if sample is None or not sample.is_floating_point():
        return None
    return float((sample.abs() > 1.0).float().mean())  # in units of half the range: `policy.BoundedGaussian`


def masked(rollout: Rollout) -> float | None:
    """Share of actions that were forbidden; None where nothing ever is."""
    if not isinstance(rollout.obs, dict) or MASK not in rollout.obs:
        return None
    return float((rollout.obs[MASK][:-1] <= 0.5).float().mean())


@dataclass(frozen=True, kw_only=True)
class StandStill:
    """Observations that used to change do not change any more: of most environments, or of some among others."""

    on_frozen_observations: Action = "warn"
    """Most environments' observations stand still."""
    on_dead_actor: Action = "warn"
    """Some environments stand still, or their episodes never end, while others go on."""
    still_looks: int = 5
    """So many looks in a row."""
    still_steps: int = 100
    """So many steps of an environment at least."""
    endless: float = 10.0
    """An episode is endless if it is so many times as long as the longest of the last hundred."""

    def __post_init__(self) -> None:
        require_at_least(1, still_looks=self.still_looks, still_steps=self.still_steps)

    def build(self, subject: Subject) -> tuple[Check, Check]:
        """Both checks: frozen observations, and dead actors."""
        seen = Stillness()
        return _Frozen(self, seen), _Dead(self, seen)


def still(rollout: Rollout) -> Tensor:
    """bool `[B]`: the environment's observations at the rollout's start, after a step and at its end are the same."""
    same = torch.ones(rollout.reward.shape[1], dtype=torch.bool, device=rollout.reward.device)
    for name, part in parts_of(rollout.obs).items():
        if name != MASK:
            first = part[0].flatten(1)
            same = same & (part[1].flatten(1) == first).all(1) & (part[-1].flatten(1) == first).all(1)
    return same.cpu()


class Stillness:
    """`still`, computed once for both checks."""

    def __init__(self) -> None:
        self._latest: tuple[Progress, Tensor] | None = None

    def __call__(self, progress: Progress) -> Tensor:
        """bool `[B]`."""
        if self._latest is None or self._latest[0] is not progress:
            self._latest = (progress, still(progress.rollout))
        return self._latest[1]


class _Frozen:
    """Silent where observations never changed: a task may have just one."""

    def __init__(self, config: StandStill, seen: Stillness) -> None:
        self.config, self.seen = config, seen
        self.memory: dict[str, Any] = {"before": 0}

    def __call__(self, progress: Progress) -> Finding | None:
        share = float(self.seen(progress).float().mean())
        memory, since = self.memory, progress.env_steps // progress.rollout.reward.shape[1]
        baseline.learn(memory, share)
        wrong = share > 0.5 and baseline.ready(memory) and baseline.frozen(memory) < 0.25
        if not wrong:
            memory["before"] = since
        if (
            not baseline.lasts(memory, wrong, self.config.still_looks)
            or since - memory["before"] < self.config.still_steps
        ):
            return None
        message = (
            f"the observations of {share:.0%} of the environments have not changed for {since - memory['before']} "
            "steps, and at first they did. Look into the simulator, or into whatever reads its sensors: nothing can "
            "be learned now"
        )
        return found(progress, "frozen_observations", "critical", message, value=share, limit=0.5)


class _Dead:
    def __init__(self, config: StandStill, seen: Stillness) -> None:
        self.config, self.seen = config, seen
        self.memory: dict[str, Any] = {"lengths": [], "began": None}

    def gather(self, progress: Progress) -> None:
        """Take in after how many steps each environment's running episode began, to a rollout's length."""
        memory, ended = self.memory, progress.rollout.episodes
        if memory["began"] is None:
            memory["began"] = torch.zeros(progress.rollout.reward.shape[1], dtype=torch.int64)
        if len(ended.index):
            memory["began"][ended.index] = progress.env_steps // len(memory["began"])
            memory["lengths"] = [*memory["lengths"], *ended.lengths.tolist()][-100:]

    def __call__(self, progress: Progress) -> Finding | None:
        """Few among many."""
        memory, rollout, config = self.memory, progress.rollout, self.config
        now = self.seen(progress)
        since = progress.env_steps // len(now)
        if bool(now.any()):
            now = now & (rollout.reward == rollout.reward[0]).all(0).cpu()
            stood = memory["looks"] if "looks" in memory else torch.zeros_like(memory["began"])
            moved = memory["moved"] if "moved" in memory else torch.full_like(stood, since)
            memory["looks"], memory["moved"] = torch.where(now, stood + 1, 0), torch.where(now, moved, since)
            dead = (memory["looks"] >= config.still_looks) & (since - memory["moved"] >= config.still_steps)
        else:
            memory.pop("looks", None)
            memory.pop("moved", None)
            dead = torch.zeros_like(now)
        if len(memory["lengths"]) == 100:
            dead = dead | (since - memory["began"] > max(1000.0, config.endless * max(memory["lengths"])))
        if not 0.0 < float(dead.float().mean()) <= 0.25:
            return None
        which = dead.nonzero().squeeze(1).tolist()
        message = (
            f"environment {', '.join(map(str, which[:8]))}{' …' if len(which) > 8 else ''} stands still, or its "
            "episode never ends, while others go on. Look into that simulator: it only feeds the learner the "
            "same thing again"
        )
        return found(progress, "dead_actor", "warning", message, value=float(len(which)), limit=0.0)
