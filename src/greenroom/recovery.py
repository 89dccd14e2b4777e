"""Going back to a checkpoint: which one, and whether it fits. At a resume and at a rollback it is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenroom import checkpoint
from greenroom.config import OPTIMIZERS, RunConfig, kind_of
from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.lines import read_log
from greenroom.training import Run


def restore(run: Run, state: dict[str, Any], path: Path, say: Callable[[str], None]) -> None:
    """Continue `run` from the checkpoint at `path`, which holds `state`.

    Raises:
        UserError: it does not fit, for the config was edited by hand; the message says where.
    """
    checkpoint.describe_mismatch(run.algorithm.policy.state_dict(), state["run"]["algorithm"]["policy"], path)
    now = kinds(run.config)
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
    if why := run.collector.begun_anew:
        say(f"{why}: new episodes begin, so the run is not bit-identical")


def kinds(config: RunConfig) -> list[str]:
    """Names of the components whose state another one cannot take over, and whose tensors do not give them away."""
    parts = vars(config.algorithm).values()
    return [config.algo, *(kind_of(part) for part in parts if kind_of(part) in OPTIMIZERS)]


def divergence(run: Run, folder: RunFolder) -> str:
    """What to say of a policy that holds NaN or infinity: from here on it would only waste time. Sound: empty."""
    for name, tensor in run.algorithm.policy.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            newest = checkpoint.latest(folder.checkpoints)
            discounting = getattr(run.config.algorithm, "discounting", None)
            unscaled = getattr(discounting, "scale_rewards", None) is False
            return (
                f"training has diverged: after {run.env_steps} steps the policy's {name} holds NaN or infinity"
                "; start anew with a lower --learning-rate or --max-grad-norm"
                + (", or with --scale-rewards" if unscaled else "")
                + (f"; the newest sound checkpoint is {newest}" if newest else "")
            )
    return ""


def choose(folder: RunFolder, to: int | None) -> Path:
    """The checkpoint to roll back to.

    Args:
        folder: the run's.
        to: its `env_steps`. None: the newest good one. Good is the best evaluated one, and one that was evaluated with
            a 95 % interval that reaches into the best one's; while nothing has been evaluated, the newest of all.

    Raises:
        UserError: there is none; the message names those that there are.
    """
    there = {checkpoint.env_steps_of(path): path for path in checkpoint.every(folder.checkpoints)}
    if to is not None:
        if to not in there:
            known = ", ".join(map(str, there)) or "none"
            raise UserError(f"there is no checkpoint of {to} steps in {folder.checkpoints}; there are: {known}")
        return there[to]
    if not there:
        raise UserError(f"there is no checkpoint in {folder.checkpoints} yet")
    passed = [there[steps] for steps in _passed(folder) if steps in there]
    if (best := checkpoint.best(folder.checkpoints)) is not None:
        passed.append(best)
    return max(passed or there.values(), key=checkpoint.env_steps_of)


def evaluated(folder: RunFolder, env_steps: int) -> float | None:
    """The mean return of the evaluation that was made at `env_steps`, or None."""
    return next((one["mean"] for one in read_log(folder.evaluations) if one["env_steps"] == env_steps), None)


def _passed(folder: RunFolder) -> list[int]:
    """At how many steps the policy was evaluated and not found worse than the best one by more than chance explains."""
    found = [(one["env_steps"], one["mean"], one["ci95"]) for one in read_log(folder.evaluations)]
    best = max(found, key=lambda one: one[1], default=None)
    return [] if best is None else [steps for steps, _, interval in found if interval[1] >= best[2][0]]
