"""What is looked for in a run, and what is done about it: the part of its config that `monitor.Monitor` goes by."""

from __future__ import annotations

import importlib.metadata
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import tyro

from greenroom.errors import UserError, nearest
from greenroom.health.finding import Action, Check, Subject
from greenroom.health.leaps import GradientExplosion, KlSpike, RateLeap
from greenroom.health.learning import (
    CriticBlind,
    EntropyCollapse,
    NonFinite,
    PolicyLag,
    ThroughputDrop,
    ValueReach,
)
from greenroom.health.world import (
    ActionLimits,
    Constraint,
    ConstraintCost,
    ReturnCollapse,
    RewardShift,
    StandStill,
)
from greenroom.imports import missing, module_of

ENTRY_POINTS = "greenroom.checks"
"""The group of entry points under which installed packages bring checks of their own."""

Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One check of a run, and what is done about its findings."""

    name: str
    check: Any
    """A `Check`; perhaps `Gathering` or `Remembering` too."""
    action: Action
    own: bool = False
    """A user's: its errors are not greenroom's."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Which troubles a run is watched for, and what is done about each: docs/health.md."""

    health: bool = True
    """Watch the run's health."""
    look_every: int = 0
    """Updates between two looks; 0: some 250 looks a run, and never more than 64 updates apart."""
    cooldown: int = 50
    """Looks for which a check has to be content before the same trouble is told again, or acted upon again."""
    slow_factor: float = 0.5
    """What `slow` multiplies the learning rate with."""
    rollback_factor: float = 0.5
    """What `rollback` multiplies the learning rate with, once it is back."""
    most_interventions: int = 3
    """How often a check may slow or roll back a run; the next time it stops it."""
    constraint: Several = ()
    """NAME=LIMIT: the most that an episode's signal NAME may be on average; may be repeated."""
    check: Several = ()
    """Your own: package.module:function, or the name of an installed one, and perhaps =ACTION; may be repeated."""
    on_own_check: Action = "warn"
    """A check of your own finds something."""
    non_finite: NonFinite = field(default_factory=NonFinite)
    """NaN and infinity."""
    gradient_explosion: GradientExplosion = field(default_factory=GradientExplosion)
    """Too large gradients."""
    kl_spike: KlSpike = field(default_factory=KlSpike)
    """Too large updates."""
    rate_leap: RateLeap = field(default_factory=RateLeap)
    """A slipped learning rate."""
    entropy_collapse: EntropyCollapse = field(default_factory=EntropyCollapse)
    """Too little exploration."""
    value_reach: ValueReach = field(default_factory=ValueReach)
    """Impossible values."""
    critic_blind: CriticBlind = field(default_factory=CriticBlind)
    """Useless values."""
    return_collapse: ReturnCollapse = field(default_factory=ReturnCollapse)
    """Forgotten skills."""
    policy_lag: PolicyLag = field(default_factory=PolicyLag)
    """Old weights."""
    throughput_drop: ThroughputDrop = field(default_factory=ThroughputDrop)
    """Slowness."""
    constraint_cost: ConstraintCost = field(default_factory=ConstraintCost)
    """Constraints."""
    action_limits: ActionLimits = field(default_factory=ActionLimits)
    """Bounds and masks."""
    reward_shift: RewardShift = field(default_factory=RewardShift)
    """Changed rewards."""
    stand_still: StandStill = field(default_factory=StandStill)
    """Dead simulators."""

    def __post_init__(self) -> None:
        for name in ("slow_factor", "rollback_factor"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UserError(f"{name} must lie in (0, 1], not {getattr(self, name)}")
        if self.look_every < 0 or self.cooldown < 1 or self.most_interventions < 0:
            raise UserError("look_every and most_interventions must not be negative, and cooldown must be at least 1")
        _ = self.limits, [_split(given, self.on_own_check) for given in self.check]

    @property
    def limits(self) -> dict[str, float]:
        """The constraints' budgets by their signals' names."""
        found: dict[str, float] = {}
        for given in self.constraint:
            name, equals, limit = given.rpartition("=")
            try:
                found[name] = float(limit)
            except ValueError:
                equals = ""
            if not (name and equals and math.isfinite(found[name])):
                raise UserError(f"--constraint {given!r}: give NAME=LIMIT, such as cost=25")
        return found

    def every(self, updates: int) -> int:
        """Updates between two looks in a run of so many."""
        return self.look_every or max(1, min(64, updates // 250))

    def watch(self, subject: Subject) -> list[Watched]:
        """All checks that are on, built for one run.

        Raises:
            UserError: a check of the user's own cannot be loaded.
        """
        if not self.health:
            return []
        built = dict(self._build(subject))
        if self.limits:
            built["constraint_cost"] = Constraint(self.limits, self.constraint_cost.constraint_episodes)
        watched = [Watched(name=name, check=check, action=self._action(name)) for name, check in built.items()]
        return [one for one in [*watched, *self.own()] if one.action != "off"]

    def own(self) -> list[Watched]:
        """The user's own checks.

        Raises:
            UserError: one cannot be loaded or made.
        """
        return own_checks(self.check, self.on_own_check) if self.health else []

    def _build(self, subject: Subject) -> Iterator[tuple[str, Check]]:
        for name in (item.name for item in fields(self)):
            part: Any = getattr(self, name)
            if name == "stand_still":
                yield from zip(("frozen_observations", "dead_actor"), part.build(subject), strict=True)
            elif hasattr(part, "build"):
                yield name, part.build(subject)

    def _action(self, name: str) -> Action:
        part = self.stand_still if name in ("frozen_observations", "dead_actor") else getattr(self, name)
        action: Action = getattr(part, f"on_{name}")
        return action


def _split(given: str, otherwise: Action) -> tuple[str, Action]:
    """`NAME=ACTION` in two."""
    name, equals, action = given.partition("=")
    known = typing.get_args(Action)
    if equals and action not in known:
        raise UserError(f"--check {given!r}: no action {action!r}{nearest(action, known)}")
    return name, typing.cast("Action", action) if equals else otherwise


def own_checks(given: tuple[str, ...], otherwise: Action) -> list[Watched]:
    """Checks of the user's own: those of installed packages, and those that are named.

    Raises:
        UserError: one cannot be loaded or made.
    """
    points = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    actions = dict.fromkeys(points, otherwise) | dict(_split(one, otherwise) for one in given)
    watched: list[Watched] = []
    for name, action in actions.items():
        if action == "off":
            continue
        try:
            loaded = points[name].load() if name in points else _named(name, list(points))
        except (ImportError, AttributeError) as problem:
            raise UserError(f"--check {name}: cannot load it: {problem}") from problem
        try:
            # A class stands for checks that remember: every run has one of its own.
            check = loaded() if isinstance(loaded, type) else loaded
        except Exception as problem:  # whatever a user's own code raises
            raise UserError(f"--check {name}: {type(problem).__name__}: {problem}") from problem
        if not callable(check):
            raise UserError(f"--check {name} is not a function of a Progress; see docs/health.md")
        watched.append(Watched(name=name, check=check, action=action, own=True))
    return watched


def _named(name: str, known: list[str]) -> Any:
    place, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"--check: no installed check {name!r}{nearest(name, known)}, or give package.module:function")
    module = module_of(place, f"--check {name}")
    if not hasattr(module, attribute):
        raise missing(module, attribute, "function")
    return getattr(module, attribute)
