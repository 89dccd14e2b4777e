"""skrl's A2C and PPO on ALE's vector or Gymnasium's numpy batch."""

from __future__ import annotations

import contextlib
import sys

# Python puts this script's folder first, where `skrl` is this file.
sys.path.append(sys.path.pop(0))

from common import Clock, options, report

args = options()

import ale_py.vector_env
import gymnasium
import torch
from bodies import nature, small
from skrl import logger
from skrl.agents.torch.a2c import A2C, A2C_CFG
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
from skrl.utils.spaces.torch import unflatten_tensorized_space
from torch import nn

torch.set_num_threads(args.threads)
logger.setLevel("ERROR")


class Both(CategoricalMixin, DeterministicMixin, Model):
    """Policy and value in one, as skrl's documentation shows it.

    On Atari the value's pass uses the policy's features again; on CartPole each has a network of its own.
    """

    def __init__(self, observation_space, action_space, device) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device=device)
        CategoricalMixin.__init__(self, unnormalized_log_prob=True, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self.body, self.value_body, width = (nature(), None, 512) if args.atari else (small(), small(), 64)
        self.policy_head, self.value_head = nn.Linear(width, action_space.n), nn.Linear(width, 1)
        self._features = None

    def act(self, inputs, *, role=""):
        return (CategoricalMixin if role == "policy" else DeterministicMixin).act(self, inputs, role=role)

    def compute(self, inputs, role=""):
        if role == "policy":
            self._features = self._encode(self.body, inputs)
            return self.policy_head(self._features), {}
        if self.value_body is not None:
            return self.value_head(self._encode(self.value_body, inputs)), {}
        seen = self._encode(self.body, inputs) if self._features is None else self._features
        self._features = None
        return self.value_head(seen), {}

    def _encode(self, body, inputs):
        seen = unflatten_tensorized_space(self.observation_space, inputs["observations"])
        return body(seen / 255.0 if args.atari else seen)


class Enough(Exception):
    """Ends the trainer's loop."""


def counting(kind):
    """The agent class, counting every rollout that it has learned from."""

    class Counting(kind):
        def post_interaction(self, *, timestep, timesteps):
            super().post_interaction(timestep=timestep, timesteps=timesteps)
            if (timestep + 1) % args.rollout_length == 0 and clock.passed(args.batch):
                raise Enough

    return Counting


def make():
    """The batch and what it is called."""
    if args.atari:
        batch = ale_py.vector_env.AtariVectorEnv(
            "pong", args.num_envs, num_threads=args.threads, autoreset_mode="SameStep", repeat_action_probability=0.0
        )
        return batch, f"ALE's vector, {args.threads} threads"
    batch = gymnasium.make_vec("CartPole-v1", args.num_envs, vectorization_mode="vector_entry_point")
    return batch, "Gymnasium's numpy batch"


batch, called = make()
env = wrap_env(batch, wrapper="gymnasium", verbose=False)
env._device = torch.device("cpu")
model = Both(env.observation_space, env.action_space, "cpu")
shared = {
    "rollouts": args.rollout_length,
    "mini_batches": args.minibatches,
    "discount_factor": 0.99,
    "learning_rate": 2.5e-4,
    "grad_norm_clip": 0.5,
    "entropy_loss_scale": 0.01,
}
cfg = PPO_CFG(**shared, learning_epochs=args.epochs, ratio_clip=0.1) if args.ppo else A2C_CFG(**shared, gae_lambda=1.0)
cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
agent = counting(PPO if args.ppo else A2C)(
    models={"policy": model, "value": model},
    memory=RandomMemory(memory_size=args.rollout_length, num_envs=args.num_envs, device="cpu"),
    observation_space=env.observation_space,
    action_space=env.action_space,
    device="cpu",
    cfg=cfg,
)
clock = Clock(args)
with contextlib.suppress(Enough):
    trainer = SequentialTrainerCfg(timesteps=10**9, headless=True, disable_progressbar=True)
    SequentialTrainer(env=env, agents=agent, cfg=trainer).train()
report(clock, "skrl", f"{called}; torch {args.threads} threads", model.parameters())
