"""One sitting of a run: what happens around each update of `training.train`.

Whoever intervenes in a live run, an operator at the socket or a check of its health, makes a `control.Request` of it;
`Sitting.intervene` is the one place where these are carried out and recorded.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from greenroom import checkpoint
from greenroom.algorithms import change_learning_rate
from greenroom.budget import Spending
from greenroom.config import to_dict
from greenroom.control import Control, Pending, Request, control, name_of
from greenroom.display import Display, Interrupts, interrupts
from greenroom.errors import DiskError, EnvironmentFault, ExitCode, UserError
from greenroom.evaluation import Evaluation
from greenroom.examination import Examiner
from greenroom.folder import RunFolder, as_word
from greenroom.journal import Complaint, Journal
from greenroom.lines import read_log
from greenroom.monitor import Monitor
from greenroom.outcome import Ending, Outcome, report
from greenroom.postmortem import Postmortems
from greenroom.recovery import choose, divergence, evaluated, kinds, restore
from greenroom.training import Run
from greenroom.types import Progress
from greenroom.window import Window

_UNTRIED = 60.0
"""Seconds from a save that the disk refused to the next attempt."""
_PAUSE_GLANCE = 0.2
"""Seconds, while paused, between two looks at signals and budgets."""


class Sitting:
    """One sitting: what happens around each update."""

    def __init__(self, run: Run, folder: RunFolder, display: Display, *, resumed_at: int | None) -> None:
        self.run, self.config, self.folder, self.display = run, run.config, folder, display
        self.paused = False
        self.ending: Ending | None = None
        """Set, it ends the sitting after this update."""
        self._window = Window(self.config)
        self._examiner = Examiner(self.config)
        self._postmortems = Postmortems(folder, self.config, display.say)
        names = ("jsonl", *self.config.sinks)
        self._journal = Journal(names, folder, to_dict(self.config), display.say, resumed_at=resumed_at)
        self._best = -math.inf if resumed_at is None else checkpoint.best_score(folder.checkpoints, until=resumed_at)
        self._saved: Path | None = None
        self._evaluated = -1
        """At how many steps an earlier sitting made its last evaluation."""
        self._saving = Complaint(display.say)
        self._spending = Spending(folder.spent)
        keep = partial(self._journal.write, "findings")
        self._monitor = Monitor(run, intervene=self._intervene_for_health, record=keep, say=display.say)

    def state_dict(self) -> dict[str, Any]:
        """What the log lines depend on, and whether another sitting may go on from here."""
        parts = {"window": self._window.state_dict(), "monitor": self._monitor.state_dict()}
        return parts | {"kinds": kinds(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the log."""
        self._window.load_state_dict(state["window"])
        self._monitor.load_state_dict(state.get("monitor", {}))  # checkpoints of version 0.1.0 have none

    def take_up(self, path: Path) -> None:
        """The run is at the checkpoint `path`, which may have been found the best just before the run was killed."""
        self._saved = path
        if (mean := evaluated(self.folder, self.run.env_steps)) is not None:
            self._evaluated = self.run.env_steps
            self._judge(mean)

    def conduct(self, news: Iterator[Progress]) -> Outcome:
        """Train until the steps are taken or something ends it first, then report.

        Args:
            news: what `train(run)` yields.
        """
        evaluation = None
        try:
            with (
                self.display,
                interrupts(self.display.say) as signals,
                control(self.folder.path, self.display.say) as line,
            ):
                before = self.run.env_steps
                for progress in news:
                    self._postmortems.note(progress.rollout.faults)
                    self._monitor.look(progress)
                    if self.run.updates != progress.updates:  # rolled back: this is of a future that is forgotten
                        before = self.run.env_steps
                        continue
                    self._window.add(progress)
                    self._log(progress.env_steps, due=self._window.due or self.run.finished)
                    if _passed(self.config.eval_every, before, progress.env_steps) and not self.run.finished:
                        self._evaluate()
                    if _passed(self.config.save_interval, before, progress.env_steps) or self._saving.waited(_UNTRIED):
                        self._save()
                    if not self.run.finished:
                        self._attend(line, signals)
                    before = self.run.env_steps  # a rollback may have moved it
                    if self.ending is not None:
                        break
                self._log(self.run.env_steps, due=self._window.unlogged)
                # Saved before the evaluation too: that may take long, or be impossible.
                self._save()
                if self.run.finished:
                    self.ending, evaluation = None, self._evaluate()
        except EnvironmentFault as error:
            self._check_finite()  # a diverged policy's actions may well be the reason
            self._postmortems.conclude(error)
            raise
        finally:
            self._spending.note()
            self._journal.close()
            self._examiner.close()
        # After all else: a run with a curve is complete, whenever it is killed.
        with interrupts(self.display.say):
            comparison = report(self.run, self.folder, self.display.say) if self.run.finished else None
        return Outcome(
            folder=self.folder,
            finished=self.run.finished,
            ending=self.ending,
            unsaved=self._unsaved(),
            evaluation=evaluation,
            comparison=comparison,
            findings=tuple(read_log(self.folder.findings)),
        )

    def _log(self, env_steps: int, *, due: bool) -> None:
        record: dict[str, object] = {}
        if due:
            self._journal.write("metrics", record := self._window.record())
            self._check_finite()
        self.display.update(env_steps, record)

    def _attend(self, line: Control, signals: Interrupts) -> None:
        """Carry out what was asked since the last update; a paused run waits here to be asked to go on."""
        while self.ending is None:
            if signals.signal is not None:
                code = ExitCode.STOPPED if signals.signal is signal.SIGINT else ExitCode.PREEMPTED
                self._end(Ending(code=code, reason=signals.signal.name))
            elif exceeded := self.config.budget.exceeded(self._spending.seconds):
                self._end(Ending(code=ExitCode.BUDGET, reason=exceeded))
            elif (asked := line.take(_PAUSE_GLANCE if self.paused else 0.0)) is not None:
                self._answer(asked)
            elif not self.paused:
                return

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        self._note(Request(verb="stop", reason=ending.reason), name_of(os.getuid()), {"exit_code": ending.code})

    def _answer(self, asked: Pending) -> None:
        try:
            asked.answer(**self.intervene(asked.request, user=asked.user))
        except UserError as problem:
            asked.refuse(str(problem))
        except BaseException:
            asked.refuse("the run has failed")
            raise

    def intervene(self, request: Request, *, user: str) -> dict[str, Any]:
        """Carry out what someone asks, and keep a record of it; to be called between two updates.

        Args:
            request: what is asked.
            user: who asks: a person's name, or that of a check.

        Returns:
            What came of it, plain values.

        Raises:
            UserError: it cannot be done; that is recorded too.
        """
        if request.verb == "status":
            return self._status()
        before = self.run.env_steps
        try:
            outcome = self._carry_out(request, f"by {user}" + (f": {request.reason}" if request.reason else ""))
        except UserError as problem:
            self._note(request, user, {"refused": str(problem)}, before)
            raise
        self._note(request, user, outcome, before)
        return outcome

    def _intervene_for_health(self, request: Request, user: str) -> None:
        self.intervene(request, user=user)
        if self.ending is not None:
            self.ending = dataclasses.replace(self.ending, code=ExitCode.UNHEALTHY)

    def _note(self, request: Request, user: str, outcome: Mapping[str, object], env_steps: int | None = None) -> None:
        steps = self.run.env_steps if env_steps is None else env_steps
        self._journal.intervene({**request.record(user), "env_steps": steps, "outcome": outcome})

    def _carry_out(self, request: Request, whose: str) -> dict[str, Any]:
        match request.verb:
            case "pause":
                self.paused = True
                self.display.say(f"paused {whose}; go on with: greenroom resume-live {as_word(self.folder.path)}")
            case "resume":
                if not self.paused:
                    raise UserError("the run is not paused")
                self.paused = False
                self.display.say(f"going on {whose}")
            case "stop":
                self.ending = Ending(code=ExitCode.STOPPED, reason=f"stopped {whose}")
            case "checkpoint":
                if (path := self._save()) is None:
                    raise DiskError(self._saving.trouble)
                return {"checkpoint": path.name}
            case "rollback":
                path = self._roll_back(request.to)
                self.display.say(f"rolled back {whose}, to {path}")
                return {"checkpoint": path.name}
            case "set":
                rate = change_learning_rate(self.run.algorithm, to=request.learning_rate, by=request.factor)
                self._saved = None  # a checkpoint of this very moment has the old one
                self.display.say(f"learning rate set to {rate:g} {whose}")
                return {"learning_rate": rate}
        return {}

    def _roll_back(self, to: int | None) -> Path:
        """Go back to the checkpoint of `to` steps, or the newest good one (`recovery.choose`): files, then the run.

        It is as if the run had been killed right after that checkpoint, and resumed: what came later is forgotten, but
        for the interventions and for what was spent.
        """
        path = choose(self.folder, to)
        state = checkpoint.load(path, say=self.display.say)
        checkpoint.retreat(self.folder.checkpoints, path)
        self._saved = None  # it may have been deleted
        try:
            self._journal.rewind(checkpoint.env_steps_of(path))
        except OSError as problem:
            raise DiskError(f"cannot roll back the log in {self.folder.path}: {problem.strerror or problem}") from None
        restore(self.run, state, path, self.display.say)
        self.load_state_dict(state["session"])
        self._best = checkpoint.best_score(self.folder.checkpoints, until=self.run.env_steps)
        self._evaluated = -1
        self.take_up(path)
        return path

    def _status(self) -> dict[str, Any]:
        """What only the live run knows; the files tell the rest (`status.look`)."""
        updaters = getattr(self.run.algorithm, "updaters", ())
        return {
            "state": "paused" if self.paused else "running",
            "env_steps": self.run.env_steps,
            "updates": self.run.updates,
            "seconds": self.run.seconds,
            "spent": self._spending.seconds,
            "learning_rate": updaters[0].learning_rate if updaters else None,
            "unsaved": self._saving.trouble,
            "waiting_lines": self._journal.waiting,
        }

    def _evaluate(self) -> Evaluation:
        run = self.run
        result = self._examiner.examine(run.algorithm.policy, self.display.evaluating)
        clock = {"env_steps": run.env_steps, "updates": run.updates, "seconds": run.seconds}
        if self._evaluated != run.env_steps:
            self._journal.write("evaluations", {**clock, **result.to_json()})
        self._monitor.evaluated(result)  # before it may be saved as the best
        self._judge(result.mean)
        return result

    def _judge(self, mean: float) -> None:
        """Mark this moment's checkpoint as the best if none was evaluated as well."""
        if mean > self._best and (path := self._save()) is not None:
            try:
                checkpoint.mark_best(self.folder.checkpoints, path, mean, keep=self.config.keep)
                self._best = mean
            except DiskError as problem:
                self._saving.complain(str(problem))

    def _check_finite(self) -> None:
        """Stop a run that has diverged."""
        if problem := divergence(self.run, self.folder):
            self._monitor.diverged(problem)
            raise UserError(problem)

    def _save(self) -> Path | None:
        """The checkpoint of this moment, written unless it already is; None if the disk refuses."""
        if self._saved is None or checkpoint.env_steps_of(self._saved) != self.run.env_steps:
            self._check_finite()
            try:
                self._saved = checkpoint.save(
                    self.folder.checkpoints,
                    {"run": self.run.state_dict(), "session": self.state_dict()},
                    env_steps=self.run.env_steps,
                    updates=self.run.updates,
                    keep=self.config.keep,
                )
            except DiskError as problem:
                self._saving.complain(str(problem))
                return None
            self._spending.note()
            self._saving.relieve(f"checkpoints can be saved again: {self._saved}")
        return self._saved

    def _unsaved(self) -> str:
        """What the disk refused to the last."""
        lost = []
        if self._saved is None or checkpoint.env_steps_of(self._saved) != self.run.env_steps:
            lost.append(f"the state after {self.run.env_steps} steps ({self._saving.trouble})")
        if self._journal.waiting:
            lost.append(f"{self._journal.waiting} log lines")
        return " and ".join(lost)


def _passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of `interval` lies in (before, now]; never for an interval of 0."""
    return interval > 0 and now // interval > before // interval
