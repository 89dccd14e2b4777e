"""What the scripts of other learners share: commands shaped like greenroom's own, and greenroom's evaluation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenroom
from greenroom.config import RunConfig
from greenroom.examination import evaluation_environment
from greenroom.policy import Actor


def verbs(about: str | None, *, episodes: int) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """A parser for `train` and `evaluate` and the one of `train`, to which a script adds what is its own.

    Args:
        about: the script's docstring.
        episodes: of an evaluation, if nothing is said.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made = parser.add_subparsers(dest="verb", required=True)
    learn = made.add_parser("train", help="train into a new run folder")
    learn.add_argument("--seed", type=int, required=True)
    learn.add_argument("--run-dir", type=Path, required=True)
    judge = made.add_parser("evaluate", help="evaluate a run folder, with the best actions")
    judge.add_argument("run", type=Path)
    judge.add_argument("--episodes", type=int, default=episodes)
    judge.add_argument("--seed", type=int, default=1000)
    judge.add_argument("--json", action="store_true", help="print JSON (the only form there is)")
    return parser, learn


def serve(
    about: str | None,
    env: str,
    *,
    episodes: int,
    train: Callable[[int, int, Path], None],
    trained: Callable[[Path], Actor],
) -> None:
    """Be the command `train` or `evaluate` of a learner of one task.

    Args:
        about: the script's docstring.
        env: the task.
        episodes: of an evaluation, if nothing is said.
        train: takes seed, agent steps and a new run folder.
        trained: the policy that a run folder holds.
    """
    parser, learn = verbs(about, episodes=episodes)
    learn.add_argument("--total-steps", type=int, required=True)
    given = parser.parse_args()
    if given.verb == "train":
        train(given.seed, given.total_steps, given.run_dir)
    else:
        print(json.dumps(play(trained(given.run), env, episodes=given.episodes, seed=given.seed)))


def play(policy: Actor, env: str, *, episodes: int, seed: int) -> dict[str, Any]:
    """Play the episodes that `greenroom evaluate` plays for the same task, number and seed, with the best actions."""
    environment = evaluation_environment(RunConfig(env=env), episodes)
    try:
        return dict(greenroom.evaluate(policy, environment, episodes=episodes, seed=seed).to_json())
    finally:
        environment.close()


def append(path: Path, **line: object) -> None:
    """Add a line to a log such as greenroom's `metrics.jsonl`."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
