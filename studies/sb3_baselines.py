"""Stable-Baselines3 with its tuned settings, trained and evaluated by commands shaped like greenroom's own.

    python studies/sb3_baselines.py train CartPole-v1 --algo ppo --seed 1 --run-dir RUN
    python studies/sb3_baselines.py evaluate RUN --episodes 100 --seed 1000 --json

The settings are those of RL Baselines3 Zoo (Raffin 2020, https://github.com/DLR-RM/rl-baselines3-zoo;
hyperparams/a2c.yml at 02846e4, hyperparams/ppo.yml at 00128b5), applied as its `train` applies them; what they leave
out is Stable-Baselines3's default. The zoo names older versions of the MuJoCo tasks (v3); here the settings are used on
v5. The evaluation is greenroom's own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

import greenroom
from greenroom.examination import evaluation_environment
from greenroom.types import Decision, Obs

ALGORITHMS = {"a2c": A2C, "ppo": PPO}


def linear(start: float) -> Callable[[float], float]:
    """The zoo's `lin_X`: from X to zero over the budget."""
    return lambda remaining: remaining * start


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One entry of the zoo."""

    total_steps: int
    """The zoo's own budget."""
    n_envs: int
    normalize: bool = False
    """Observations and rewards by `VecNormalize`, with the algorithm's gamma."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the algorithm's constructor."""


SETTINGS = {
    ("CartPole-v1", "a2c"): Settings(total_steps=500_000, n_envs=8, arguments={"ent_coef": 0.0}),
    ("CartPole-v1", "ppo"): Settings(
        total_steps=100_000,
        n_envs=8,
        arguments={
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": linear(0.001),
            "clip_range": linear(0.2),
        },
    ),
    ("Acrobot-v1", "a2c"): Settings(total_steps=500_000, n_envs=16, normalize=True, arguments={"ent_coef": 0.0}),
    ("Acrobot-v1", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=16,
        normalize=True,
        arguments={"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
    ),
    ("Pendulum-v1", "ppo"): Settings(
        total_steps=100_000,
        n_envs=4,
        arguments={
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    ),
    ("InvertedDoublePendulum-v5", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=1,
        normalize=True,
        arguments={
            # The zoo says batch_size 512, which is more than the rollout holds: Stable-Baselines3 then uses all 128.
            "batch_size": 128,
            "n_steps": 128,
            "gamma": 0.98,
            "learning_rate": 0.000155454,
            "ent_coef": 1.05057e-06,
            "clip_range": 0.4,
            "n_epochs": 10,
            "gae_lambda": 0.8,
            "max_grad_norm": 0.5,
            "vf_coef": 0.695929,
        },
    ),
    ("Hopper-v5", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=1,
        normalize=True,
        arguments={
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.999,
            "learning_rate": 9.80828e-05,
            "ent_coef": 0.00229519,
            "clip_range": 0.2,
            "n_epochs": 5,
            "gae_lambda": 0.99,
            "max_grad_norm": 0.7,
            "vf_coef": 0.835671,
            "policy_kwargs": {
                "log_std_init": -2,
                "ortho_init": False,
                "activation_fn": torch.nn.ReLU,
                "net_arch": {"pi": [256, 256], "vf": [256, 256]},
            },
        },
    ),
}
"""By task and algorithm."""


class Log(BaseCallback):  # type: ignore[misc] # Stable-Baselines3 is not installed where types are checked
    """Writes `metrics.jsonl` as greenroom does, a hundred lines: the mean return of the newest hundred episodes."""

    def __init__(self, path: Path, total_steps: int) -> None:
        super().__init__()
        self._path, self._every, self._started = path, total_steps / 100, time.perf_counter()
        self._returns: deque[float] = deque(maxlen=100)
        self._next = self._every

    def _on_step(self) -> bool:
        self._returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        if self.num_timesteps >= self._next:
            self._next += self._every
            self.flush()
        return True

    def flush(self) -> None:
        seconds = time.perf_counter() - self._started
        mean = sum(self._returns) / len(self._returns) if self._returns else None
        line = {"env_steps": self.num_timesteps, "seconds": seconds, "return_mean": mean}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def train(task: str, algo: str, seed: int, total_steps: int | None, run: Path) -> None:
    """Train and keep the model and, where there is one, the normaliser."""
    settings = SETTINGS[task, algo]
    run.mkdir(parents=True)
    environments = make_vec_env(task, n_envs=settings.n_envs, seed=seed)
    if settings.normalize:
        gamma = settings.arguments.get("gamma", 0.99)
        environments = VecNormalize(environments, gamma=gamma)
    steps = total_steps or settings.total_steps
    learner = ALGORITHMS[algo]("MlpPolicy", environments, seed=seed, device="cpu", **settings.arguments)
    log = Log(run / "metrics.jsonl", steps)
    learner.learn(steps, callback=log)
    log.flush()
    learner.save(run / "model.zip")
    if settings.normalize:
        environments.save(str(run / "normalizer.pkl"))
    environments.close()
    (run / "run.json").write_text(json.dumps({"task": task, "algo": algo, "seed": seed, "total_steps": steps}) + "\n")


class Trained:
    """A trained model with its frozen observation normaliser, as a policy that greenroom can evaluate."""

    def __init__(self, run: Path, task: str, algo: str) -> None:
        self._model = ALGORITHMS[algo].load(run / "model.zip", device="cpu")
        normalizer = run / "normalizer.pkl"
        # Loading wants an environment to wrap; only `normalize_obs` is used, and nothing updates its statistics.
        wrapped = DummyVecEnv([lambda: gymnasium.make(task)])
        self._normalizer = VecNormalize.load(str(normalizer), wrapped) if normalizer.exists() else None

    def __call__(self, obs: Obs) -> Tensor:
        return self._choose(obs, greedy=True)

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        return Decision(action=self._choose(obs, greedy=False), extras={})

    def _choose(self, obs: Obs, greedy: bool) -> Tensor:
        assert isinstance(obs, Tensor)
        array = obs.numpy()
        if self._normalizer is not None:
            array = self._normalizer.normalize_obs(array)
        action, _ = self._model.predict(array, deterministic=greedy)
        return torch.as_tensor(action)


def evaluate_run(run: Path, episodes: int, seed: int) -> Mapping[str, object]:
    """Play the episodes that `greenroom evaluate` plays for the same task, number and seed, with the best actions."""
    about = json.loads((run / "run.json").read_text())
    environment = evaluation_environment(greenroom.RunConfig(env=about["task"]), episodes)
    try:
        policy = Trained(run, about["task"], about["algo"])
        return greenroom.evaluate(policy, environment, episodes=episodes, seed=seed).to_json()
    finally:
        environment.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    learn = verbs.add_parser("train", help="train into a new run folder")
    learn.add_argument("task", choices=sorted({task for task, _ in SETTINGS}))
    learn.add_argument("--algo", choices=sorted(ALGORITHMS), required=True)
    learn.add_argument("--seed", type=int, required=True)
    learn.add_argument("--total-steps", type=int, help="instead of the zoo's budget")
    learn.add_argument("--run-dir", type=Path, required=True)
    judge = verbs.add_parser("evaluate", help="evaluate a run folder, with the best actions")
    judge.add_argument("run", type=Path)
    judge.add_argument("--episodes", type=int, default=100)
    judge.add_argument("--seed", type=int, default=1000)
    judge.add_argument("--json", action="store_true", help="print JSON (the only form there is)")
    given = parser.parse_args()
    if given.verb == "train":
        if (given.task, given.algo) not in SETTINGS:
            parser.error(f"the zoo has no settings of {given.algo} for {given.task}")
        train(given.task, given.algo, given.seed, given.total_steps, given.run_dir)
    else:
        print(json.dumps(evaluate_run(given.run, given.episodes, given.seed)))


if __name__ == "__main__":
    main()
