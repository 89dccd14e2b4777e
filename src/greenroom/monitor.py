"""A run's health: looks at it every so many updates, keeps what it finds, and does what the config says about it.

The loop does not know of it, and the session calls `look`. What changes a run must not depend on the clock, or runs
would not repeat: looks are due by the number of updates.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from greenroom.algorithms.rewards import Rewards
from greenroom.config import leaves
from greenroom.control import Request
from greenroom.errors import UserError
from greenroom.evaluation import Evaluation
from greenroom.health.finding import ACTING, Finding, Gathering, Remembering, Severity, Subject, found
from greenroom.health.settings import Watched
from greenroom.health.world import Returns
from greenroom.training import Run
from greenroom.types import Progress

Intervene = Callable[[Request, str], None]
"""Carries out a request in somebody's name, or raises a UserError."""


class Monitor:
    """Watches one run.

    Args:
        run: the run, just built.
        intervene: changes the run.
        record: keeps a finding.
        say: tells the person.
    """

    def __init__(
        self,
        run: Run,
        *,
        intervene: Intervene,
        record: Callable[[Mapping[str, object]], None],
        say: Callable[[str], None],
    ) -> None:
        config = run.config
        self.config = config.monitor
        self._every = self.config.every(config.total_steps // config.steps_per_update)
        self._watched = {one.name: one for one in self.config.watch(_subject(run))}
        # Asking a Protocol takes long, so it is asked once.
        self._gathering = [one for one in self._watched.values() if isinstance(one.check, Gathering)]
        # Going back from NaN only helps before the environments have been fed with it.
        self._always = [self._watched[name] for name in ("non_finite",) if self._goes_back(name)]
        self._alarms = {name: Alarm(self.config.cooldown) for name in self._watched}
        self._run, self._intervene, self._record, self._say = run, intervene, record, say

    def _goes_back(self, name: str) -> bool:
        return name in self._watched and self._watched[name].action == "rollback"

    def look(self, progress: Progress) -> None:
        """Take in one update's news; if a look is due, examine them, and do something about what is found.

        Afterwards the run may be elsewhere: rolled back.
        """
        if not self._watched:
            return
        for one in self._gathering:
            self._guarded(one, progress, one.check.gather)
        due = self._always if progress.updates % self._every else list(self._watched.values())
        if not due:
            return
        seen = dataclasses.replace(progress, metrics=on_cpu(progress.metrics))
        for one in due:
            finding = self._guarded(one, seen, one.check)
            if self._alarms[one.name].rings(finding is not None) and finding is not None:
                self._report(finding, one)
                if self._run.updates != progress.updates:
                    return  # rolled back: the rest of these news is of a future that is forgotten

    def evaluated(self, evaluation: Evaluation) -> None:
        """Take in an evaluation; the next look reports what follows from it, and after the last update this does."""
        one = self._watched.get("return_collapse")
        if one is None:
            return
        assert isinstance(one.check, Returns)
        one.check.evaluated(evaluation)
        if not self._run.finished:
            return
        finding = one.check.compare(self._run.env_steps, self._run.updates)
        if finding is not None and self._alarms[one.name].rings(True):
            told = one.action if one.action == "record" else "warn"  # too late for anything else
            self._report(finding, dataclasses.replace(one, action=told))

    def diverged(self, message: str) -> None:
        """Keep it that the run ends because its parameters hold NaN or infinity."""
        one = self._watched.get("non_finite")
        if one is not None and not self._alarms[one.name].active:
            clock = {"env_steps": self._run.env_steps, "updates": self._run.updates}
            finding = Finding(check=one.name, severity="critical", message=message, value=math.nan, limit=0.0, **clock)
            self._keep(finding, "ended")

    def _guarded(self, one: Watched, progress: Progress, call: Callable[[Progress], Any]) -> Any:
        """What `call` says. A user's check that fails is told of once, and then left alone."""
        if not one.own:
            return call(progress)
        alarm = self._alarms[one.name]
        if alarm.broken:
            return None
        try:
            finding = call(progress)
            if finding is not None:
                finding = _plain(finding)
        except Exception as problem:
            alarm.broken = True
            text = f"the check {one.name} has failed and is off now: {type(problem).__name__}: {problem}"
            finding = found(progress, one.name, "warning", text, value=math.nan, limit=math.nan)
            self._report(finding, dataclasses.replace(one, action="warn"))
            return None
        return None if finding is None else dataclasses.replace(finding, check=one.name)

    def _report(self, finding: Finding, one: Watched) -> None:
        """Keep it, tell it, and act."""
        alarm, action = self._alarms[one.name], one.action
        if action in ("slow", "rollback") and alarm.acted >= self.config.most_interventions:
            finding = dataclasses.replace(
                finding, message=f"{finding.message} ({action} has been tried {alarm.acted} times, so the run stops)"
            )
            action = "stop"
        self._keep(finding, action)
        if action != "record":
            self._say(f"health: {finding.check} ({finding.severity}): {finding.message}")
        if action not in ACTING:
            return
        try:
            self._act(action, finding)
            alarm.acted += 1
        except UserError as problem:
            self._say(f"health: {finding.check}: {action} is not possible: {problem}")
        if finding.check == "non_finite":
            alarm.active = False  # has no aftermath that passes
        else:
            alarm.rest()

    def _act(self, action: str, finding: Finding) -> None:
        user = f"check {finding.check}"
        match action:
            case "slow":
                self._intervene(Request(verb="set", factor=self.config.slow_factor, reason=finding.message), user)
            case "rollback":
                factor = self.config.rollback_factor
                change = f"then the learning rate × {factor:g}" if factor < 1.0 else "then on with nothing changed"
                self._intervene(Request(verb="rollback", reason=f"{finding.message}; {change}"), user)
                if factor < 1.0:
                    # A rollback also brings back the rate of that time: each further one has to go lower than the last.
                    lower = factor ** (self._alarms[finding.check].acted + 1)
                    try:
                        self._intervene(Request(verb="set", factor=lower, reason=f"after the rollback, {change}"), user)
                    except UserError as problem:
                        self._say(f"health: {finding.check}: rolled back, but {problem}")
            case "pause" | "stop":
                verb: Any = action
                self._intervene(Request(verb=verb, reason=finding.message), user)

    def _keep(self, finding: Finding, done: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._record({"time": now, **dataclasses.asdict(finding), "done": done})

    def state_dict(self) -> dict[str, Any]:
        """What the checks remember, and which troubles are being told of."""
        checks = {name: one.check for name, one in self._watched.items()}
        return {
            "checks": {name: copy.deepcopy(c.memory) for name, c in checks.items() if isinstance(c, Remembering)},
            "alarms": {name: alarm.state_dict() for name, alarm in self._alarms.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. What has been done is not undone by a rollback: it counts on."""
        for name, memory in state.get("checks", {}).items():
            one = self._watched.get(name)
            if one is not None and isinstance(one.check, Remembering):
                one.check.memory = copy.deepcopy(memory)
        for name, saved in state.get("alarms", {}).items():
            if name in self._alarms:
                self._alarms[name].load_state_dict(saved)


def _plain(finding: object) -> Finding:
    """What a user's check returned, if it is a finding, with plain numbers.

    Raises:
        TypeError, ValueError: it is none, or of no known severity.
    """
    if not isinstance(finding, Finding):
        raise TypeError(f"it returned {finding!r}, not a Finding or None")
    if finding.severity not in (known := typing.get_args(Severity)):
        raise ValueError(f"severity {finding.severity!r} is none of {', '.join(known)}")
    return dataclasses.replace(
        finding,
        message=str(finding.message),
        value=float(finding.value),
        limit=float(finding.limit),
        env_steps=int(finding.env_steps),
        updates=int(finding.updates),
    )


class Alarm:
    """Makes one finding of one trouble, however many looks see it."""

    def __init__(self, cooldown: int) -> None:
        self.cooldown = cooldown
        self.active = False
        """Whether the trouble has been told and is not over."""
        self.quiet = 0
        """Looks until the trouble counts as over, or as back after something was done about it."""
        self.acted = 0
        """How often the run was changed because of it."""
        self.broken = False
        """A user's check has failed."""
        self.resting = False
        """Whether something was done about it just now: what is seen meanwhile may be its aftermath."""

    def rings(self, trouble: bool) -> bool:
        """Whether to tell of it, having looked once more."""
        if not self.active:
            self.active, self.quiet = trouble, self.cooldown
            return trouble
        # While it lasts it is old news; after an action it had its time to pass, and is told again.
        self.quiet = self.cooldown if trouble and not self.resting else self.quiet - 1
        if self.quiet <= 0:
            self.active = self.resting = False
        return False

    def rest(self) -> None:
        """Something was done about it."""
        self.active, self.resting, self.quiet = True, True, self.cooldown

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {name: getattr(self, name) for name in ("active", "quiet", "acted", "broken", "resting")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; never forgets that something was done."""
        acted, broken = max(self.acted, state["acted"]), self.broken or state["broken"]
        for name, value in state.items():
            setattr(self, name, value)
        self.acted, self.broken = acted, broken


def on_cpu(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scalars, brought over in one go: waiting for the device once costs as much as once for each."""
    if not metrics or all(value.device.type == "cpu" for value in metrics.values()):
        return metrics
    device = next(value.device for value in metrics.values() if value.device.type != "cpu")
    stacked = torch.stack([value.to(device, torch.float64) for value in metrics.values()])
    return dict(zip(metrics, stacked.cpu().unbind(), strict=True))


def _subject(run: Run) -> Subject:
    config = run.config
    return Subject(
        parameters=lambda: list(run.algorithm.policy.state_dict().values()),
        num_envs=config.num_envs,
        total_steps=config.total_steps,
        lag=config.lag if config.collect == "overlap" else 0,
        gamma=_leaf(config.algorithm, "gamma"),
        learning_rate=_leaf(config.algorithm, "learning_rate"),
        reward_scale=lambda: _reward_scale(run),
    )


def _leaf(config: Any, name: str) -> Any:
    """The field `name` somewhere in a tree of configs; None if there is none."""
    return next((value for found, value in leaves(config) if found == name), None)


def _reward_scale(run: Run) -> float:
    """What the learner multiplies rewards with now."""
    rewards = getattr(run.algorithm, "rewards", None)  # which an algorithm of a user's own may use for anything
    fixed = float(_leaf(run.config.algorithm, "reward_scale") or 1.0)
    return fixed * rewards.scale if isinstance(rewards, Rewards) else fixed
