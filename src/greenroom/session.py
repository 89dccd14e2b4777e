"""A whole run in one call: everything that happens around the loop of `training.train`."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenroom import baselines, checkpoint, plots
from greenroom.config import OPTIMIZERS, RunConfig, dump, kind_of, load_file, to_dict
from greenroom.display import Display, interrupts
from greenroom.envs.base import Environment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.evaluation import Evaluation, evaluate
from greenroom.examination import evaluation_environment
from greenroom.folder import RunFolder, write_json, write_text
from greenroom.log import Kind, Record, Sink, make_sinks, require
from greenroom.machine import keep_freed_memory
from greenroom.policy import Policy
from greenroom.profiling import train_profiled
from greenroom.seeding import derive
from greenroom.training import Run, train
from greenroom.types import Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sitting came to."""

    folder: RunFolder
    """Where everything is."""
    finished: bool
    """False if someone stopped it first; `resume` continues it."""
    evaluation: Evaluation | None
    """The final greedy evaluation of a finished run."""
    comparison: baselines.BaselineReport | None
    """Beside the conventional methods, for environments that have some."""


def launch(
    config: RunConfig, *, run_dir: str | Path | None = None, quiet: bool = False, profile: bool = False
) -> Outcome:
    """Train from scratch, to the end or until interrupted.

    Args:
        config: everything that determines the run.
        run_dir: its folder, new or empty; None: a new one under `runs/`.
        quiet: print nothing.
        profile: record a few updates into `profile.json`, for Perfetto.

    Raises:
        UserError: something in `config` does not fit, or `run_dir` is taken. Nothing is overwritten.
    """
    require(config.sinks)
    text = dump(config)
    display = Display(config.total_steps, quiet=quiet)
    run = Run(config, say=display.say)
    try:
        path = None if run_dir is None else Path(run_dir)
        folder = RunFolder.create(path, env=config.env, algo=config.algo, seed=config.seed)
        write_text(folder.config, text)
        folder.write_environment()
        news = train_profiled(run, folder.profile, display.say) if profile else train(run)
        return _Session(run, folder, display, resumed_at=None).conduct(news)
    finally:
        run.close()


def resume(run_dir: str | Path, *, total_steps: int | None = None, quiet: bool = False) -> Outcome:
    """Continue a run from its newest readable checkpoint.

    Args:
        run_dir: the run's folder.
        total_steps: a new end; schedules that span the run stretch to it, and `config.yaml` is updated.
        quiet: print nothing.

    Raises:
        UserError: not a run, no readable checkpoint, or the run is already complete.
    """
    folder = RunFolder.open(Path(run_dir))
    config = load_file(folder.config)
    if total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    display = Display(config.total_steps, quiet=quiet)
    path, state = checkpoint.load_latest(folder.checkpoints, display.say)
    if state["run"]["env_steps"] >= config.total_steps:
        raise UserError(
            f"{folder.path} has taken all its {config.total_steps} steps; give a larger --total-steps to train on, "
            f"or see how good it is with: greenroom evaluate {folder.path}"
        )
    run = Run(config, say=display.say)
    try:
        _restore(run, state, path)
        if not run.collector.can_snapshot:
            display.say("these environments cannot be copied: new episodes begin, so the run is not bit-identical")
        write_text(folder.config, dump(config))
        folder.rewind(run.env_steps)
        session = _Session(run, folder, display, resumed_at=run.env_steps)
        session.load_state_dict(state["session"])
        return session.conduct(train(run))
    finally:
        run.close()


def _restore(run: Run, state: dict[str, Any], path: Path) -> None:
    """Continue from the checkpoint at `path`, which a config edited by hand may no longer fit."""
    checkpoint.describe_mismatch(run.algorithm.policy.state_dict(), state["run"]["algorithm"]["policy"], path)
    now = _kinds(run.config)
    if (before := state["session"].get("kinds", now)) != now:
        raise UserError(
            f"checkpoint {path} was trained with {' and '.join(before)}, config.yaml says {' and '.join(now)}"
        )
    try:
        run.load_state_dict(state["run"])
    except (KeyError, RuntimeError) as problem:
        raise UserError(
            f"checkpoint {path} does not fit config.yaml: {' '.join(str(problem).split())} "
            "Put back the settings it was trained with"
        ) from problem


def _kinds(config: RunConfig) -> list[str]:
    """Names of the components whose state another one cannot take over, and whose tensors do not give them away."""
    parts = vars(config.algorithm).values()
    return [config.algo, *(kind_of(part) for part in parts if kind_of(part) in OPTIMIZERS)]


class _Session:
    """One sitting: what happens around each update."""

    def __init__(self, run: Run, folder: RunFolder, display: Display, *, resumed_at: int | None) -> None:
        self.run, self.config, self.folder, self.display = run, run.config, folder, display
        self._window = _Window(self.config)
        self._examiner = _Examiner(self.config)
        self._best = -math.inf if resumed_at is None else checkpoint.best_score(folder.checkpoints, until=resumed_at)
        self._resumed_at = resumed_at
        self._saved: Path | None = None
        self._sinks: tuple[Sink, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """What the log lines depend on, and whether another sitting may go on from here."""
        return {"window": self._window.state_dict(), "kinds": _kinds(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the log."""
        self._window.load_state_dict(state["window"])

    def conduct(self, news: Iterator[Progress]) -> Outcome:
        """Train until the steps are taken or someone asks to stop, then report.

        Args:
            news: what `train(run)` yields.
        """
        keep_freed_memory()
        names = ("jsonl", *self.config.sinks)
        self._sinks = make_sinks(names, self.folder, to_dict(self.config), resumed_at=self._resumed_at)
        try:
            with self.display, interrupts(self.display.say) as stop:
                before = self.run.env_steps
                for progress in news:
                    self._window.add(progress)
                    record: dict[str, object] = {}
                    if self._window.due or self.run.finished or stop.requested:
                        self._write("metrics", record := self._window.record())
                        self._check_finite()
                    self.display.update(progress.env_steps, record)
                    if _passed(self.config.eval_every, before, progress.env_steps) and not self.run.finished:
                        self._evaluate()
                    if _passed(self.config.save_interval, before, progress.env_steps):
                        self._save()
                    before = progress.env_steps
                    if stop.requested:
                        break
                # Saved before the evaluation too: that may take long, or be impossible.
                self._save()
                evaluation = self._evaluate() if self.run.finished else None
                comparison = self._report(evaluation) if evaluation is not None else None
        except EnvironmentFault:
            self._check_finite()  # a diverged policy's actions may well be the reason
            raise
        finally:
            for sink in self._sinks:
                with suppress(OSError):  # every line was flushed when it was written; a full disk has been told of
                    sink.close()
            self._examiner.close()
        return Outcome(folder=self.folder, finished=self.run.finished, evaluation=evaluation, comparison=comparison)

    def _write(self, kind: Kind, record: Record) -> None:
        try:
            for sink in self._sinks:
                sink.write(kind, record)
        except OSError as problem:
            raise UserError(
                f"cannot write {kind} into {self.folder.path}: {problem.strerror}; free some space, then continue from "
                f"the newest checkpoint with: greenroom resume {self.folder.path}"
            ) from problem

    def _evaluate(self) -> Evaluation:
        run = self.run
        result = self._examiner.examine(run.algorithm.policy)
        clock = {"env_steps": run.env_steps, "updates": run.updates, "seconds": run.seconds}
        self._write("evaluations", {**clock, **result.to_json()})
        if result.mean > self._best:
            self._best = result.mean
            checkpoint.mark_best(self.folder.checkpoints, self._save(), self._best, keep=self.config.keep)
        return result

    def _check_finite(self) -> None:
        """Stop a run that has diverged: from here on it would only waste time."""
        for name, tensor in self.run.algorithm.policy.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                newest = checkpoint.latest(self.folder.checkpoints)
                raise UserError(
                    f"training has diverged: after {self.run.env_steps} steps the policy's {name} holds NaN or infinity"
                    "; start anew with a lower --learning-rate or --max-grad-norm, or with --scale-rewards"
                    + (f"; the newest sound checkpoint is {newest}" if newest else "")
                )

    def _save(self) -> Path:
        """The checkpoint of this moment, written unless it already is."""
        if self._saved is None or checkpoint.env_steps_of(self._saved) != self.run.env_steps:
            self._check_finite()
            self._saved = checkpoint.save(
                self.folder.checkpoints,
                {"run": self.run.state_dict(), "session": self.state_dict()},
                env_steps=self.run.env_steps,
                updates=self.run.updates,
                keep=self.config.keep,
            )
        return self._saved

    def _report(self, evaluation: Evaluation) -> baselines.BaselineReport | None:
        config = self.config
        comparison = baselines.report(
            self.run.algorithm.policy, config.env, config.env_kwargs, seed=config.seed, device=self.run.device
        )
        if comparison is not None:
            write_json(self.folder.path / "baselines.json", comparison.to_json())
        plots.learning_curve(self.folder.path)
        return comparison


def _passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of `interval` lies in (before, now]; never for an interval of 0."""
    return interval > 0 and now // interval > before // interval


class _Window:
    """What happened since the last line of metrics, and the newest finished episodes."""

    def __init__(self, config: RunConfig) -> None:
        self._least = config.log_seconds
        newest = max(100, config.num_envs)
        self._returns: deque[float] = deque(maxlen=newest)
        self._lengths: deque[int] = deque(maxlen=newest)
        self._signals: dict[str, deque[float]] = {}
        self._newest = newest
        self._episodes = 0
        self._latest: Progress | None = None
        self._start = (0, 0.0)
        self._split: dict[str, float] = {}

    def add(self, progress: Progress) -> None:
        """Take in one update."""
        if self._latest is None:
            # The first update of a sitting also pays for warming up; its rate is measured from the next line on.
            self._start = (progress.env_steps, progress.seconds)
            self._split = dict.fromkeys(progress.time_split, 0.0)
        self._latest = progress
        ended = progress.episodes
        self._returns.extend(ended.returns.tolist())
        self._lengths.extend(ended.lengths.tolist())
        for name, total in ended.signals.items():
            self._signals.setdefault(name, deque(maxlen=self._newest)).extend(total.tolist())
        self._episodes += len(ended.index)

    @property
    def due(self) -> bool:
        """Whether enough time has passed for another line."""
        return self._latest is not None and self._latest.seconds - self._start[1] >= self._least

    def record(self) -> dict[str, object]:
        """The line, and a new window."""
        latest = self._latest
        assert latest is not None
        steps, seconds = latest.env_steps - self._start[0], latest.seconds - self._start[1]
        split = {f"time/{name}": total - self._split[name] for name, total in latest.time_split.items()}
        self._start, self._split = (latest.env_steps, latest.seconds), dict(latest.time_split)
        losses = {name: float(value) for name, value in latest.metrics.items()}
        return {
            "env_steps": latest.env_steps,
            "updates": latest.updates,
            "seconds": latest.seconds,
            "steps_per_second": steps / seconds if seconds > 0 else None,
            "lag": latest.lag,
            "episodes": self._episodes,
            "return_mean": _mean(self._returns),
            "length_mean": _mean(self._lengths),
            **{f"signal/{name}": _mean(values) for name, values in self._signals.items()},
            **split,
            **{f"loss/{name}": value for name, value in losses.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """The newest episodes and their count."""
        return {
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "signals": {name: list(values) for name, values in self._signals.items()},
            "episodes": self._episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._signals = {name: deque(values, maxlen=self._newest) for name, values in state["signals"].items()}
        self._episodes = state["episodes"]


def _mean(values: deque[Any]) -> float | None:
    return sum(values) / len(values) if values else None


class _Examiner:
    """Evaluates with environments and a seed of its own; its environments are built at the first evaluation."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._environment: Environment | None = None

    def examine(self, policy: Policy) -> Evaluation:
        """Greedy evaluation: the same episodes every time."""
        if self._environment is None:
            self._environment = evaluation_environment(self._config, self._config.eval_episodes)
        seed = derive(self._config.seed, "evaluation")
        return evaluate(policy, self._environment, episodes=self._config.eval_episodes, seed=seed)

    def close(self) -> None:
        """Close its environments."""
        if self._environment is not None:
            self._environment.close()
