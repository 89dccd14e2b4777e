"""Stable-Baselines3 with its tuned settings, trained and evaluated by commands shaped like greenroom's own.

    python studies/sb3_baselines.py train CartPole-v1 --algo ppo --seed 1 --run-dir RUN
    python studies/sb3_baselines.py evaluate RUN --episodes 100 --seed 1000 --json

The settings are those of `sb3_settings.py`, applied as the zoo's `train` applies them. QR-DQN and recurrent PPO are
sb3-contrib's. The evaluation is greenroom's own.

QR-DQN's loss is compiled, which needs a C++ compiler: the arithmetic stays the same, and with LunarLander's 170
quantiles, whose pairs fill fifteen megabytes again and again, a loss takes 3 ms and not 60, a run minutes and not an
hour and a half.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN, RecurrentPPO
from sb3_contrib.qrdqn import qrdqn
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor

from greenroom.envs.factory import Factory
from greenroom.types import Decision, Obs, State
from rivals import append, play, verbs
from sb3_settings import SETTINGS

ALGORITHMS = {
    "a2c": A2C,
    "ppo": PPO,
    "recurrent-ppo": RecurrentPPO,
    "dqn": DQN,
    "qrdqn": QRDQN,
    "sac": SAC,
    "td3": TD3,
}


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
        mean = sum(self._returns) / len(self._returns) if self._returns else None
        append(self._path, env_steps=self.num_timesteps, seconds=self.seconds, return_mean=mean)

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return time.perf_counter() - self._started

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What is done within is not training."""
        begun = time.perf_counter()
        yield
        self._started += time.perf_counter() - begun


def train(task: str, algo: str, seed: int, total_steps: int | None, run: Path) -> None:
    """Train and keep the model and, where there is one, the normaliser."""
    settings = SETTINGS[task, algo]
    run.mkdir(parents=True)
    environments = make_vec_env(Factory(env=task).build, n_envs=settings.n_envs, seed=seed)
    arguments = dict(settings.arguments)
    if settings.noise_std:
        mean = np.zeros(environments.action_space.shape)
        arguments["action_noise"] = NormalActionNoise(mean=mean, sigma=np.full_like(mean, settings.noise_std))
    if settings.normalize:
        gamma = settings.arguments.get("gamma", 0.99)
        environments = VecNormalize(environments, gamma=gamma)
    steps = total_steps or settings.total_steps
    qrdqn.quantile_huber_loss = torch.compile(qrdqn.quantile_huber_loss)
    learner = ALGORITHMS[algo](settings.policy, environments, seed=seed, device="cpu", **arguments)
    log = Log(run / "metrics.jsonl", steps)
    learner.learn(steps, callback=log)
    log.flush()
    learner.save(run / "model.zip")
    if settings.normalize:
        environments.save(str(run / "normalizer.pkl"))
    environments.close()
    (run / "run.json").write_text(json.dumps({"task": task, "algo": algo, "seed": seed, "total_steps": steps}) + "\n")


class Player:
    """A model, with its frozen observation normaliser if it has one, as a policy that greenroom can evaluate."""

    def __init__(self, model: Any, normalizer: VecNormalize | None = None) -> None:
        self._model, self._normalizer = model, normalizer

    def initial_state(self, num_envs: int) -> State:
        """Nothing, or the zeros of the LSTM: `[num_envs, layers, size]`."""
        if not isinstance(self._model, RecurrentPPO):
            return {}
        lstm = self._model.policy.lstm_actor
        return {name: torch.zeros(num_envs, lstm.num_layers, lstm.hidden_size) for name in ("hidden", "cell")}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        array = obs.numpy()
        if self._normalizer is not None:
            array = self._normalizer.normalize_obs(array)
        # Stable-Baselines3 has the layers first.
        before = tuple(part.transpose(0, 1).numpy() for part in state.values()) or None
        action, after = self._model.predict(array, state=before, deterministic=generator is None)
        states = (torch.as_tensor(part).transpose(0, 1) for part in after or ())
        return Decision(action=torch.as_tensor(action), extras={}, state=dict(zip(state, states, strict=True)))


def trained(folder: Path, algo: str, environments: VecEnv) -> Player:
    """A kept model. Loading a normaliser wants environments to wrap; nothing updates its statistics."""
    normalizer = folder / "normalizer.pkl"
    model = ALGORITHMS[algo].load(folder / "model.zip", device="cpu")
    return Player(model, VecNormalize.load(str(normalizer), environments) if normalizer.exists() else None)


def evaluate_run(run: Path, episodes: int, seed: int) -> dict[str, Any]:
    """Play the episodes that `greenroom evaluate` plays for the same task, number and seed, with the best actions."""
    about = json.loads((run / "run.json").read_text())
    policy = trained(run, about["algo"], DummyVecEnv([Factory(env=about["task"]).build]))
    return play(policy, about["task"], episodes=episodes, seed=seed)


def main() -> None:
    parser, learn = verbs(__doc__, episodes=100)
    learn.add_argument("task", choices=sorted({task for task, _ in SETTINGS}))
    learn.add_argument("--algo", choices=sorted(ALGORITHMS), required=True)
    learn.add_argument("--total-steps", type=int, help="instead of the zoo's budget")
    given = parser.parse_args()
    if given.verb == "train":
        if (given.task, given.algo) not in SETTINGS:
            parser.error(f"the zoo has no settings of {given.algo} for {given.task}")
        train(given.task, given.algo, given.seed, given.total_steps, given.run_dir)
    else:
        print(json.dumps(evaluate_run(given.run, given.episodes, given.seed)))


if __name__ == "__main__":
    main()
