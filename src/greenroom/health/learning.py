"""Checks of how the learning goes: they read the algorithm's metrics. Where a metric is absent a check says nothing.

Every class with `on_…` is a check's config: thresholds, what to do about a finding, and `build`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greenroom.health import baseline
from greenroom.health.finding import Action, Check, Finding, Subject, found, metric, require_at_least
from greenroom.types import Progress, parts_of


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """NaN or infinity in a metric, in the policy's parameters, or in rewards and observations."""

    on_non_finite: Action = "warn"
    """NaN or infinity. With `warn` a run whose parameters hold any ends by itself, as diverged."""

    def build(self, subject: Subject) -> Check:
        """The check."""

        def check(progress: Progress) -> Finding | None:
            bad = [f"the metric {name}" for name, value in progress.metrics.items() if not math.isfinite(value)]
            rollout = progress.rollout
            world = {"a reward": [rollout.reward], "an observation": list(parts_of(rollout.obs).values())}
            parts = {**world, "a parameter of the policy": subject.parameters()}
            if _broken([part for kind in parts.values() for part in kind]):
                wrong = [name for name, kind in parts.items() if _broken(kind)]
                bad += [f"{name}{_place(world[name])}" if name in world else name for name in wrong]
            if not bad:
                return None
            message = (
                f"NaN or infinity in {', '.join(bad)}. If rewards or observations are sound, the update was too large: "
                "roll back with a lower learning rate"
            )
            return found(progress, "non_finite", "critical", message, value=math.nan, limit=0.0)

        return check


def _broken(tensors: list[Tensor]) -> bool:
    """Whether a number is not finite; one glance at the device for all."""
    parts = [part for part in tensors if part.is_floating_point() and part.numel()]
    if not parts or bool(torch.stack([part.sum() for part in parts]).isfinite().all()):
        return False
    # The sum of large numbers may be infinite where none of them is.
    return any(not bool(part.isfinite().all()) for part in parts)


def _place(parts: list[Tensor]) -> str:
    """Where in the rollout the first of them is: the parts are `[T, B, ...]`, or `[T+1, B, ...]`."""
    t, index = min(tuple((~part.isfinite()).nonzero()[0].tolist()[:2]) for part in parts if _broken([part]))
    return f" (environment {index}, time step {t} of the rollout)"


@dataclass(frozen=True, kw_only=True)
class EntropyCollapse:
    """The policy stops exploring before its time."""

    on_entropy_collapse: Action = "warn"
    """The policy stops exploring too early."""
    entropy_share: float = 0.02
    """Of discrete actions: less than this share of the entropy at first is a collapse."""
    entropy_leap: float = 0.1
    """Of discrete actions: less than this share of the entropy lately is one too."""
    entropy_nats: float = 4.0
    """Of continuous actions: so many nats per dimension less than at first is a collapse (4: a 50th of the spread)."""
    entropy_until: float = 0.5
    """Share of the run's steps after which a policy may be as certain as it likes."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Entropy(self, subject.total_steps)


class _Entropy:
    def __init__(self, config: EntropyCollapse, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self.memory: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> Finding | None:
        value = metric(progress, "entropy")
        if value is None or not math.isfinite(value):
            return None
        result = None
        if baseline.ready(self.memory) and progress.env_steps < self.config.entropy_until * self.total_steps:
            limit = self._limit(progress)
            if baseline.lasts(self.memory, value < limit, 3):
                message = (
                    f"the policy's entropy is {value:.3g} nats after {progress.env_steps / self.total_steps:.0%} of "
                    f"the run; it was {baseline.frozen(self.memory):.3g} at first (limit {limit:.3g}). It hardly "
                    "explores any more: raise entropy_coef (of SAC target_entropy), or lower the learning rate"
                )
                result = found(progress, "entropy_collapse", "warning", message, value=value, limit=limit)
        baseline.learn(self.memory, value)
        return result

    def _limit(self, progress: Progress) -> float:
        first, lately = baseline.frozen(self.memory), baseline.rolling(self.memory)
        action = progress.rollout.action
        if action.is_floating_point():
            dimensions = math.prod(action.shape[2:])
            return max(first, lately) - self.config.entropy_nats * dimensions
        return max(self.config.entropy_share * first, self.config.entropy_leap * lately)


@dataclass(frozen=True, kw_only=True)
class ValueReach:
    """The critic's estimates are beyond what the rewards seen so far allow."""

    on_value_reach: Action = "warn"
    """Estimated values are beyond what rewards allow."""
    value_margin: float = 2.0
    """So many times the largest possible return, largest reward / (1 - gamma), is beyond doubt."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Value(self.value_margin, subject)


class _Value:
    def __init__(self, margin: float, subject: Subject) -> None:
        self.margin, self.subject = margin, subject
        self.memory: dict[str, Any] = {"largest": torch.tensor(0.0)}

    def gather(self, progress: Progress) -> None:
        """Take in the largest reward, where it is: nobody waits for it before there is a look."""
        size = progress.rollout.reward.abs().amax()
        known = torch.as_tensor(self.memory["largest"], dtype=size.dtype).to(size.device)
        self.memory["largest"] = torch.where(size.isfinite(), torch.maximum(known, size), known)

    def __call__(self, progress: Progress) -> Finding | None:
        gamma, largest = self.subject.gamma, float(self.memory["largest"])
        value = self._value(progress)
        if value is None or gamma is None or gamma >= 1.0 or not largest:
            return None
        # SAC's values hold the entropy of all later actions too.
        bonus = (metric(progress, "temperature") or 0.0) * abs(metric(progress, "entropy") or 0.0)
        reach = (self.subject.reward_scale() * largest + bonus) / (1.0 - gamma)
        limit = self.margin * reach
        if not baseline.lasts(self.memory, value > limit, 2):
            return None
        message = (
            f"estimated values are {value:.3g} on average, and with gamma {gamma:g} no reward seen so far allows more "
            f"than {reach:.3g} (on the learner's scale). The critic feeds on itself: lower the learning rate, or "
            "follow the target network more slowly"
        )
        return found(progress, "value_reach", "critical", message, value=value, limit=limit)

    @staticmethod
    def _value(progress: Progress) -> float | None:
        """The mean size of the values that the rollout was acted with, or of those in the metrics."""
        if (value := progress.rollout.extras.get("value")) is not None:
            return float(value.abs().mean())
        mean = metric(progress, "q_mean")
        return None if mean is None else abs(mean)


@dataclass(frozen=True, kw_only=True)
class CriticBlind:
    """Explained variance below zero for long, while the critic errs as much as at first."""

    on_critic_blind: Action = "warn"
    """The critic explains nothing for long."""
    critic_patience: int = 40
    """So many looks in a row."""

    def __post_init__(self) -> None:
        require_at_least(1, critic_patience=self.critic_patience)

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Critic(self.critic_patience)


class _Critic:
    """A solved task's returns hardly differ, and then nothing explains the difference: only large errors count."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.memory: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> Finding | None:
        explained, loss = metric(progress, "explained_variance"), metric(progress, "value_loss")
        if explained is None or loss is None:
            return None
        ready = baseline.ready(self.memory)
        wrong = ready and explained < 0.0 and loss > baseline.frozen(self.memory)
        baseline.learn(self.memory, loss)
        if not baseline.lasts(self.memory, wrong, self.patience):
            return None
        message = (
            f"the critic has explained less than nothing of the returns for {self.memory['wrong']} looks (explained "
            f"variance now {explained:.3g}), with a loss of {loss:.3g} that was {baseline.frozen(self.memory):.3g} at "
            "first. Advantages are noise: look at the observations, raise value_coef, or scale rewards"
        )
        return found(progress, "critic_blind", "warning", message, value=explained, limit=0.0)


@dataclass(frozen=True, kw_only=True)
class PolicyLag:
    """The acting weights are further behind than they were told to be."""

    on_policy_lag: Action = "warn"
    """The acting weights are too far behind."""

    def build(self, subject: Subject) -> Check:
        """The check."""

        def check(progress: Progress) -> Finding | None:
            if progress.lag <= subject.lag:
                return None
            message = (
                f"the rollout came from weights {progress.lag} updates old, and the bound is {subject.lag}. This is a "
                "fault of the collector, not of the learner: please report it"
            )
            lag, limit = float(progress.lag), float(subject.lag)
            return found(progress, "policy_lag", "warning", message, value=lag, limit=limit)

        return check


@dataclass(frozen=True, kw_only=True)
class ThroughputDrop:
    """The run has become slow."""

    on_throughput_drop: Action = "warn"
    """Throughput falls. It depends on the clock: an action that changes the run makes it one that does not repeat."""
    throughput_share: float = 0.5
    """Less than this share of the steps per second that were normal, lately or at first, is a drop."""
    throughput_seconds: float = 10.0
    """Seconds of training between two measurements; three in a row must be low."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return _Throughput(self)


class _Throughput:
    def __init__(self, config: ThroughputDrop) -> None:
        self.config = config
        self._start: tuple[int, float] | None = None
        self._rates: dict[str, Any] = {}  # of this sitting: the next one may have another machine

    def __call__(self, progress: Progress) -> Finding | None:
        learning = metric(progress, "grad_norm") is not None  # a replay that fills is quick
        if self._start is None or not learning or progress.seconds < self._start[1]:
            self._start = (progress.env_steps, progress.seconds)
            return None
        seconds = progress.seconds - self._start[1]
        if seconds < self.config.throughput_seconds:
            return None
        rate = (progress.env_steps - self._start[0]) / seconds
        self._start = (progress.env_steps, progress.seconds)
        seen = self._rates.setdefault("all", [])
        result = None
        if len(seen) >= 6:
            lately, first = sorted(seen[-ROLLING_RATES:]), sorted(seen[1:6])
            normal = max(lately[len(lately) // 2], first[2])
            limit = self.config.throughput_share * normal
            if baseline.lasts(self._rates, rate < limit, 3):
                message = (
                    f"{rate:.4g} steps a second, and {normal:.4g} were normal. Look for other processes on this "
                    "machine, for heat, or for an environment that has become slow: greenroom doctor tells where the "
                    "time goes"
                )
                result = found(progress, "throughput_drop", "warning", message, value=rate, limit=limit)
        seen.append(rate)
        return result


ROLLING_RATES = 12
"""Measurements of throughput that the rolling baseline reaches back."""
