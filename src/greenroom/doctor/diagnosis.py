"""An environment, a network and this machine, measured: how fast, how far from the bound, and what is faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from greenroom.config import RunConfig
from greenroom.doctor.runs import OpenRuns
from greenroom.doctor.search import OPTIONS, WORTH_IT, Trial, beyond, changed, search, words
from greenroom.doctor.symptoms import Symptom, symptoms, watch
from greenroom.doctor.table import count, split_table
from greenroom.envs.choose import choose
from greenroom.errors import UserError
from greenroom.machine import available_cores
from greenroom.measure import Rate, bound, say_nothing
from greenroom.training import Say, taken_cores

_SEARCH_ENDS = 0.5
"""Share of the time given after which no further kind of setting is tried."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Other settings, and the rate that was measured with them in turn with the run's own."""

    options: dict[str, Any]
    words: str
    """To type behind `greenroom train ENV …`."""
    rate: Rate
    against: Rate
    """Of the run's own settings."""
    gain: float
    """How many times as fast."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found."""

    env: str
    algo: str
    cores: int
    stage: str
    """Where the run's own settings step its environments."""
    single: Rate
    """One simulator in a plain loop."""
    environment: Rate
    """The run's stage, nothing learned."""
    learner: Rate
    """Acting and learning without simulators."""
    own: Rate
    """The whole loop with the run's own settings."""
    bound: float
    """Steps per second of `environment` and `learner` in turn."""
    suggestion: Suggestion | None
    """What is faster and learns the same; None: nothing was found that is."""
    expected: Rate
    """Of the suggestion, or where there is none of the run's own settings: measured longest, and not in turn."""
    beyond: tuple[Suggestion, ...]
    """What is faster still, on top of the suggestion, and changes learning."""
    trials: tuple[Trial, ...]
    """Everything that was tried, or was to be."""
    complete: bool
    """Whether the search had time for every kind of setting."""
    symptoms: tuple[Symptom, ...]
    """What is known to hurt."""
    shortened: str
    """What stood for the run where its updates are too long to measure; else ""."""

    def to_json(self) -> dict[str, object]:
        """All of it as plain values; rates in agent steps per second."""
        rates = {name: getattr(self, name) for name in ("single", "environment", "learner", "own")}
        return {
            "env": self.env,
            "algo": self.algo,
            "cores": self.cores,
            "stage": self.stage,
            "rates": {name: dataclasses.asdict(rate) for name, rate in rates.items()},
            "bound": self.bound,
            "microseconds": self.own.microseconds,
            "suggestion": None if self.suggestion is None else dataclasses.asdict(self.suggestion),
            "expected": dataclasses.asdict(self.expected),
            "beyond": [dataclasses.asdict(one) for one in self.beyond],
            "complete": self.complete,
            "trials": [_plain(trial) for trial in self.trials],
            "symptoms": [dataclasses.asdict(one) for one in self.symptoms],
            "shortened": self.shortened,
        }

    def report(self) -> Group:
        """All of it for the terminal."""
        parts: list[RenderableType] = [
            self._rates(),
            split_table(self.own.microseconds, self.own.steps_per_second, "where your settings spend it"),
        ]
        if self.shortened:
            parts.append(Text(f"measured with {self.shortened}"))
        if self.trials:
            parts.append(self._trials())
        parts.append(Group(*(Text(line) for line in self._advice())))
        if self.symptoms:
            parts.append(Group(*self._symptoms()))
        return Group(*(part for each in parts for part in (each, Text())))

    def _rates(self) -> Table:
        table = Table("", "steps/s", "", box=None, title=f"{self.env} with {self.algo}", title_justify="left")
        share = 100 * self.own.steps_per_second / self.bound
        cores = f"× {self.cores} cores: {count(self.cores * self.single.steps_per_second)}"
        rows = [
            ("one environment alone", self.single.steps_per_second, cores),
            ("all environments, nothing learned", self.environment.steps_per_second, f"stage: {self.stage}"),
            ("acting and learning alone", self.learner.steps_per_second, ""),
            ("bound: the last two in turn", self.bound, ""),
            ("your settings", self.own.steps_per_second, f"{share:.0f} % of the bound"),
        ]
        for name, rate, note in rows:
            table.add_row(name, count(rate), note)
        return table

    def _trials(self) -> Table:
        table = Table("tried", "steps/s", "against", "", box=None, title="other settings", title_justify="left")
        for trial in self.trials:
            if isinstance(trial.found, UserError):
                table.add_row(words(trial.against, trial.config), "-", "-", escape(str(trial.found)))
            else:
                found, beat = trial.found.steps_per_second, trial.beat.steps_per_second
                table.add_row(words(trial.against, trial.config), count(found), count(beat), f"{trial.gain:.2f}×")
        return table

    def _advice(self) -> Iterator[str]:
        if not self.complete:
            yield "time was up before all settings were tried: a larger --budget tries more"
        if self.suggestion is None:
            yield "suggestion: keep your settings; nothing that learns the same was found to be faster"
        else:
            yield f"suggestion: {self.suggestion.words}"
            yield f"  {_promise(self.suggestion)}"
        yield f"  to expect: {count(self.expected.steps_per_second)} steps/s, measured once more by itself"
        for one in self.beyond:
            changes = "rounding" if "compile" in one.options else "learning"
            yield f"changes {changes}, so it is yours to decide: {one.words}"
            yield f"  {_promise(one)}"

    def _symptoms(self) -> Iterator[Text]:
        yield Text("what hurts")
        for one in self.symptoms:
            yield Text(f"  {one.what}: {one.measured}\n    → {one.remedy}")


def diagnose(config: RunConfig, *, seconds: float = 40.0, say: Say = say_nothing) -> Diagnosis:
    """Measure a run that has not begun, look for faster settings that learn the same, and say what hurts.

    Args:
        config: of the run. A replay is taken to have begun learning.
        seconds: about how long to take; starting environments, and compiling, comes on top.
        say: hears what is being done.

    Raises:
        UserError: the run cannot be built as it is.
    """
    cores = available_cores()
    own, stage = _resolved(config)
    say("watching one environment …")
    vitals = watch(own.env, own.env_kwargs)
    with OpenRuns(seconds) as runs:
        own, shortened = runs.measurable(own)
        own = runs.settled(own)
        say("trying other settings …")
        best, trials, complete = search(own, runs.trial, cores=cores, in_time=lambda: runs.elapsed < _SEARCH_ENDS)
        say("measuring one environment, all of them, the learner and the whole loop, each alone …")
        alone = runs.alone(own)
        say("measuring what was found, in turn with your settings …")
        more = list(beyond(best, cores))
        found, best_found, *more_found = runs.verdict([own, best], more)
        own_rate, best_rate = _sound(found), _sound(best_found)
        better = best != own and best_rate.steps_per_second > WORTH_IT * own_rate.steps_per_second
        say("measuring what is suggested once more, by itself …")
        expected = runs.steady(best if better else own)
    whole = dataclasses.replace(own, rollout_length=config.rollout_length)
    ventured = [
        Trial(config=other, against=best, found=rate, beat=best_rate)
        for other, rate in zip(more, more_found, strict=True)
    ]
    return Diagnosis(
        env=config.env,
        algo=config.algo,
        cores=cores,
        stage=stage,
        single=alone["single"],
        environment=alone["environment"],
        learner=alone["learner"],
        own=alone["own"],
        bound=bound(alone["environment"].steps_per_second, alone["learner"].steps_per_second),
        suggestion=_suggestion(config, best, best_rate, own_rate) if better else None,
        expected=expected,
        beyond=tuple(
            _suggestion(config, trial.config, trial.found, own_rate)
            for trial in ventured
            if isinstance(trial.found, Rate) and trial.gain > WORTH_IT
        ),
        trials=(*trials, *ventured),
        complete=complete,
        symptoms=tuple(symptoms(whole, vitals, alone["single"], alone["own"], [*trials, *ventured])),
        shortened=shortened,
    )


def _sound(found: Rate | UserError) -> Rate:
    if isinstance(found, UserError):
        raise found
    return found


def _suggestion(config: RunConfig, other: RunConfig, rate: Rate, own: Rate) -> Suggestion:
    return Suggestion(
        options=changed(config, other),
        words=words(config, other),
        rate=rate,
        against=own,
        gain=rate.steps_per_second / own.steps_per_second,
    )


def _resolved(config: RunConfig) -> tuple[RunConfig, str]:
    """The run with a particular stage in place of `auto`, and what people call it."""
    groups = 2 if config.collect == "double" else 1
    num_envs, workers = config.num_envs // groups, config.num_workers or None
    taken = taken_cores(config)
    chosen = choose(config.env, num_envs, config.stage, workers, config.env_kwargs, config.faults, taken)
    if chosen.stage in ("native", "device"):
        return config, chosen.title
    number = 0 if chosen.stage == "inline" else chosen.num_workers
    return dataclasses.replace(config, stage=chosen.stage, num_workers=number), chosen.title


def _promise(one: Suggestion) -> str:
    yours = count(one.against.steps_per_second)
    return f"{count(one.rate.steps_per_second)} steps/s where yours reach {yours}: {one.gain:.2f}× as fast"


def _plain(trial: Trial) -> dict[str, object]:
    """A trial for JSON."""
    found = trial.found
    return {
        "options": changed(trial.against, trial.config),
        "against": {name: getattr(trial.against, name) for name in OPTIONS},
        "steps_per_second": None if isinstance(found, UserError) else found.steps_per_second,
        "against_steps_per_second": trial.beat.steps_per_second,
        "problem": str(found) if isinstance(found, UserError) else None,
    }
