"""A whole run in one call: everything that happens around the loop of `training.train`.

What happens around each update is in `sitting.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from greenroom import checkpoint
from greenroom.budget import spent_before
from greenroom.config import Device, RunConfig, dump, load_file
from greenroom.display import Display, interrupts
from greenroom.errors import UserError
from greenroom.folder import RunFolder, as_word, write_text
from greenroom.log import require
from greenroom.outcome import Outcome
from greenroom.profiling import train_profiled
from greenroom.recovery import restore
from greenroom.sitting import Sitting
from greenroom.training import Run, train


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
    config.monitor.own()  # like the sinks they are asked for before there is a folder
    text = dump(config)
    display = Display(config.total_steps, quiet=quiet)
    path = None if run_dir is None else Path(run_dir)
    here = Path.cwd()  # asked now: an environment may go elsewhere
    run = Run(config, say=display.say)
    try:
        folder = RunFolder.create(path, env=config.env, algo=config.algo, seed=config.seed, here=here)
        with folder.held():
            write_text(folder.config, text)
            folder.write_environment()
            news = train_profiled(run, folder.profile, display.say) if profile else train(run)
            return Sitting(run, folder, display, resumed_at=None).conduct(news)
    finally:
        _close(run, display)


def resume(
    run_dir: str | Path,
    *,
    total_steps: int | None = None,
    deadline: float | None = None,
    cost_budget: float | None = None,
    device: Device | None = None,
    quiet: bool = False,
) -> Outcome:
    """Continue a run from its newest readable checkpoint.

    Args:
        run_dir: the run's folder.
        total_steps: a new end; schedules that span the run stretch to it, and `config.yaml` is updated.
        deadline: a new deadline, in wall-clock seconds of the whole run; 0: none. `config.yaml` is updated.
        cost_budget: a new limit to what the whole run may cost; 0: none. `config.yaml` is updated.
        device: where the learner computes from now on; `config.yaml` is updated.
        quiet: print nothing.

    Raises:
        UserError: not a run, no readable checkpoint, the run is complete or has used up its budget, or another process
            is training it.
    """
    folder = RunFolder.open(Path(run_dir).absolute())  # an environment may leave this directory
    with folder.held():
        config = load_file(folder.config)
        limits = {"deadline": deadline, "cost_budget": cost_budget}
        given = {name: value for name, value in limits.items() if value is not None}
        config = dataclasses.replace(
            config,
            total_steps=config.total_steps if total_steps is None else total_steps,
            device=config.device if device is None else device,
            budget=dataclasses.replace(config.budget, **given),
        )
        return _continue(folder, config, Display(config.total_steps, quiet=quiet))


def _continue(folder: RunFolder, config: RunConfig, display: Display) -> Outcome:
    path, state = checkpoint.load_latest(folder.checkpoints, display.say)
    # Killed during its last evaluation, a run has taken all its steps, and its report is still due.
    complete = state["run"]["env_steps"] >= config.total_steps
    if complete and folder.curve.exists():
        raise UserError(
            f"{folder.path} has taken all its {state['run']['env_steps']} steps; give a larger --total-steps to train "
            f"on, or see how good it is with: greenroom evaluate {as_word(folder.path)}"
        )
    if not complete and (exceeded := config.budget.exceeded(spent_before(folder.spent))):
        raise UserError(f"{folder.path}: {exceeded}")
    run = Run(config, say=display.say)
    try:
        restore(run, state, path, display.say)
        if changes := folder.rewind(run.env_steps):  # first: a log may be such that it cannot be continued
            display.say(f"not what this run has been on so far: {changes}; it goes on, but bits may differ")
        if not complete:
            folder.curve.unlink(missing_ok=True)  # of an earlier end: the next one's is due
        write_text(folder.config, dump(config))
        sitting = Sitting(run, folder, display, resumed_at=run.env_steps)
        sitting.load_state_dict(state["session"])
        sitting.take_up(path)
        return sitting.conduct(train(run))
    finally:
        _close(run, display)


def _close(run: Run, display: Display) -> None:
    """Nothing to stop is left: a signal now, as SIGTERM after a cluster's notice, must not change the exit code."""
    with interrupts(display.say):
        run.close()
