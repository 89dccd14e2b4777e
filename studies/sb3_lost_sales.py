"""Stable-Baselines3's PPO on lost sales, for `studies/lost_sales_race.py`: commands shaped like greenroom's own.

    python studies/sb3_lost_sales.py train --seed 1 --total-steps 2000000 --run-dir RUN
    python studies/sb3_lost_sales.py evaluate RUN --episodes 4096 --seed 1000 --json

It gets greenroom's own task, all shops stepped at once, so that its environment costs next to nothing. Settings are
those of greenroom's PPO in the race: of those tried on seed 11 they served it best, too. Its rewards are normalised and
its observations are not. While the policy is still random the stock grows without end, and with statistics that
remember this it learned no better than to order the same whatever it saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.lost_sales import LostSales
from greenroom.policy import Actor
from lost_sales_race import POINTS
from rivals import serve
from sb3_baselines import Log, Player, trained
from sb3_settings import linear
from sb3_stage import StageVecEnv

ENV = "lost-sales"
SHOPS, LENGTH, MINIBATCHES, GAMMA = 256, 24, 8, 0.97
SETTINGS: dict[str, Any] = {
    "n_steps": LENGTH,
    "batch_size": SHOPS * LENGTH // MINIBATCHES,
    "n_epochs": 2,
    "gamma": GAMMA,
    "gae_lambda": 0.9,
    "ent_coef": 0.01,
    "vf_coef": 1.0,
    "learning_rate": linear(3e-3),
}


def shops(num_envs: int, seed: int) -> StageVecEnv:
    """greenroom's own task, all shops stepped at once."""
    return StageVecEnv(DeviceEnvironment(LostSales(), num_envs), seed)


class Keeping(Log):
    """Keeps the model as often as greenroom's runs are saved in this study, off the clock."""

    def __init__(self, run: Path, total_steps: int) -> None:
        super().__init__(run / "metrics.jsonl", total_steps)
        self._run, self._apart, self._due = run, total_steps / POINTS, total_steps / POINTS

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._due:
            self._due += self._apart
            self.flush()
            self.keep()
        return super()._on_step()

    def keep(self) -> None:
        with self.off_the_clock():
            folder = self._run / f"step_{self.num_timesteps:010}"
            folder.mkdir(exist_ok=True)  # the end may fall on a point; its weights have learned from it
            self.model.save(folder / "model.zip")
            self.training_env.save(str(folder / "normalizer.pkl"))


def train(seed: int, total_steps: int, run: Path) -> None:
    """Train, and keep models on the way and at the end."""
    run.mkdir(parents=True)
    environments = VecNormalize(shops(SHOPS, seed), norm_obs=False, gamma=GAMMA)
    learner = PPO("MlpPolicy", environments, seed=seed, device="cpu", **SETTINGS)
    log = Keeping(run, total_steps)
    learner.learn(total_steps, callback=log)
    log.flush()
    log.keep()


def policies(run: Path) -> Iterator[tuple[int, Actor]]:
    """The kept models in order, with the agent steps that each had learned from."""
    for folder in sorted(run.glob("step_*")):
        yield int(folder.name.split("_")[1]), kept(folder)


def last(run: Path) -> Path:
    """Where the model is that the training ended with."""
    return max(run.glob("step_*"))


def kept(folder: Path) -> Player:
    """The model that a folder holds."""
    return trained(folder, "ppo", shops(1, seed=0))


if __name__ == "__main__":
    serve(__doc__, ENV, episodes=4096, train=train, trained=lambda run: kept(last(run)))
