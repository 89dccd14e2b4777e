"""Stable-Baselines3's PPO on Pong, for `studies/pong_race.py`: commands shaped like greenroom's own.

    python studies/sb3_pong.py train --seed 1 --total-steps 1000000 --run-dir RUN
    python studies/sb3_pong.py evaluate RUN --episodes 30 --seed 1000 --json

It gets greenroom's own stage (ALE's vector of emulators, the fastest that it can use), the network of greenroom's
preset `atari-ppo`, and its settings in the race, so that the loop is what differs. The evaluation is greenroom's, off
the clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from greenroom.envs import make
from greenroom.networks import Nips
from greenroom.seeding import derive
from greenroom.spec import ArraySpec
from pong_race import GAME, LOOK_EPISODES, POINTS
from rivals import append, play, serve
from sb3_baselines import Log, Player
from sb3_stage import StageVecEnv

ACTORS = 16
SETTINGS: dict[str, Any] = {
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.1,
    "ent_coef": 0.01,
    "vf_coef": 0.5,  # greenroom's 1.0 weighs half of the squared error
    "max_grad_norm": 0.5,
    "learning_rate": 5e-4,
}


class Features(BaseFeaturesExtractor):  # type: ignore[misc] # it is not installed where types are checked
    """The preset's network, which the policy and the value share."""

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        layers, size = Nips(layer_norm=True).build(ArraySpec(shape=space.shape, dtype=torch.uint8))
        super().__init__(space, size)
        self.layers = layers

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.layers(pictures)
        return features


class Looking(Log):
    """Looks at the greedy policy as often as greenroom's runs are looked at in this study, off the clock."""

    def __init__(self, run: Path, total_steps: int, seed: int) -> None:
        super().__init__(run / "metrics.jsonl", total_steps)
        self._run, self._seed, self._apart, self._due = run, seed, total_steps // POINTS, total_steps // POINTS

    def _on_rollout_start(self) -> None:
        # Here and not in the rollout that passes the point: what it is looked at for has then been learned.
        if self.num_timesteps >= self._due:
            self._due += self._apart
            self.look()

    def look(self) -> None:
        clock = {"env_steps": self.num_timesteps, "seconds": self.seconds}
        with self.off_the_clock():
            # The games on which greenroom's run with this seed is looked at.
            found = play(Player(self.model), GAME, episodes=LOOK_EPISODES, seed=derive(self._seed, "evaluation"))
            append(self._run / "evaluations.jsonl", **clock, mean=found["mean"])


def train(seed: int, total_steps: int, run: Path) -> None:
    """Train, look at the greedy policy on the way, and keep the model."""
    run.mkdir(parents=True)
    network = {"features_extractor_class": Features, "net_arch": []}
    games = StageVecEnv(make(GAME, num_envs=ACTORS, say=lambda line: None), seed)
    learner = PPO("CnnPolicy", games, seed=seed, device="cpu", policy_kwargs=network, **SETTINGS)
    log = Looking(run, total_steps, seed)
    learner.learn(total_steps, callback=log)
    log.flush()
    log.look()
    learner.save(run / "model.zip")


def trained(run: Path) -> Player:
    """The model that a run folder holds."""
    return Player(PPO.load(run / "model.zip", device="cpu"))


if __name__ == "__main__":
    serve(__doc__, GAME, episodes=30, train=train, trained=trained)
