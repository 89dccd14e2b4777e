"""A trained policy, looked at again: load it from its run, evaluate it, film it."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from greenroom import baselines, checkpoint
from greenroom.config import Device, RunConfig, load_file
from greenroom.envs import make
from greenroom.envs.base import Environment
from greenroom.envs.choose import largest_divisor
from greenroom.envs.device import model_of
from greenroom.errors import UserError
from greenroom.evaluation import Evaluation, OnProgress, evaluate
from greenroom.folder import RunFolder
from greenroom.policy import Policy
from greenroom.seeding import derive
from greenroom.threads import limited, worthwhile
from greenroom.training import Say, choose_device, make_policy
from greenroom.video import record

_POLICY = ("run", "algorithm", "policy")
"""Where a checkpoint holds the policy: a replay beside it may be gigabytes."""

_LARGEST_EVALUATION = 64
"""Environments that an evaluation steps at once, unless they are tensors anyway."""


def evaluation_environment(config: RunConfig, episodes: int) -> Environment:
    """Environments for evaluating a run's policy: as those of the run, but only as many as the episodes need."""
    most = config.num_envs if model_of(config.env) else _LARGEST_EVALUATION
    count = largest_divisor(episodes, most)
    return make(
        config.env,
        num_envs=count,
        stage=config.stage,
        num_workers=largest_divisor(count, config.num_workers) if config.num_workers else None,
        kwargs=config.env_kwargs,
        device=choose_device(config),
        faults=config.faults,
        say=lambda line: None,
    )


class Examiner:
    """Evaluates with environments and a seed of its own; its environments are built at the first evaluation."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._environment: Environment | None = None

    def examine(self, policy: Policy, on_progress: OnProgress) -> Evaluation:
        """Greedy evaluation: the same episodes every time."""
        if self._environment is None:
            self._environment = evaluation_environment(self._config, self._config.eval_episodes)
        seed = derive(self._config.seed, "evaluation")
        episodes = self._config.eval_episodes
        return evaluate(policy, self._environment, episodes=episodes, seed=seed, on_progress=on_progress)

    def close(self) -> None:
        """Close its environments."""
        if self._environment is not None:
            self._environment.close()


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def load_policy(
    run_dir: str | Path, *, which: str = "latest", device: Device | None = None, say: Say = _warn
) -> tuple[RunConfig, Policy]:
    """A run's configuration and its trained policy.

    Args:
        run_dir: the run's folder.
        which: `latest`; `best`: the one whose evaluation was best; or a checkpoint's name (`step_000000123456`).
        device: where it is to compute; None: where the configuration says.
        say: hears of newer checkpoints that were passed over because they are damaged; by default standard error.

    Raises:
        UserError: not a run, no such checkpoint, or one that is damaged or from another network.
    """
    folder = RunFolder.open(Path(run_dir).absolute())  # an environment may leave this directory
    config = load_file(folder.config)
    if device is not None:
        config = dataclasses.replace(config, device=device)
    if which == "latest":
        path, saved = checkpoint.load_latest(folder.checkpoints, say, part=_POLICY)
    else:
        path = checkpoint.find(folder.checkpoints, which)
        saved = checkpoint.load(path, part=_POLICY)
    environment = evaluation_environment(config, 1)
    try:
        policy = make_policy(config, environment.spec, choose_device(config), lambda line: None)
    finally:
        environment.close()
    checkpoint.describe_mismatch(policy.state_dict(), saved, path)
    policy.load_state_dict(saved)
    return config, policy


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an evaluation of a finished or running run found."""

    evaluation: Evaluation
    """Whole episodes."""
    comparison: baselines.BaselineReport | None
    """Beside the conventional methods, for environments that have some."""
    video: Path | None
    """One recorded episode, if it was asked for."""

    def to_json(self) -> dict[str, object]:
        """The evaluation's numbers, and under `comparison` and `video` the rest."""
        extra: dict[str, object] = {}
        if self.comparison is not None:
            extra["comparison"] = self.comparison.to_json()
        if self.video is not None:
            extra["video"] = str(self.video)
        return self.evaluation.to_json() | extra


def examine(
    run_dir: str | Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = True,
    which: str = "latest",
    video: bool = False,
    device: Device | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Evaluate a run's policy on new environments.

    Args:
        run_dir: the run's folder.
        episodes: how many, at least.
        seed: of the episodes and of sampled actions.
        greedy: take the most probable action instead of a sampled one.
        which: the checkpoint: `latest`, `best` or its name.
        video: also record one episode into the run's folder.
        device: where the policy computes; None: where the run's configuration says.
        on_progress: hears how many of the episodes have finished.

    Raises:
        UserError: not a run, no checkpoint, no episodes, or an environment that cannot be built or rendered.
    """
    if episodes < 1 or seed < 0:
        raise UserError(f"episodes must be at least 1 and the seed at least 0, not {episodes} and {seed}")
    run_dir = Path(run_dir).absolute()  # an environment may leave this directory
    config, policy = load_policy(run_dir, which=which, device=device)
    chosen = choose_device(config)
    path = None
    if video:  # before what takes longer, for not everything can be filmed
        suffix = ".mp4" if importlib.util.find_spec("imageio_ffmpeg") else ".gif"
        path = record(
            policy,
            config.env,
            config.env_kwargs,
            run_dir / f"episode-{which}{suffix}",
            seed=seed,
            greedy=greedy,
            stage=config.stage,
            faults=dataclasses.replace(config.faults, on_env_error="stop"),
        )
    environment = evaluation_environment(config, episodes)
    try:
        with limited(worthwhile(policy, environment.spec, environment.num_envs, device=chosen)):
            evaluation = evaluate(
                policy, environment, episodes=episodes, seed=seed, greedy=greedy, on_progress=on_progress
            )
    finally:
        environment.close()
    comparison = baselines.report(policy, config.env, config.env_kwargs, seed=seed, device=chosen) if greedy else None
    return Report(evaluation=evaluation, comparison=comparison, video=path)
