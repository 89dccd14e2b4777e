"""TorchRL's A2C and PPO losses and collector on ALE's vector or Gymnasium's SyncVectorEnv."""

from __future__ import annotations

import sys

# Python puts this script's folder first, where `torchrl` is this file.
sys.path.append(sys.path.pop(0))

from common import Clock, options, report

args = options()

import ale_py.vector_env
import gymnasium
import torch
from bodies import nature, small
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data.replay_buffers import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import ExplorationType, GymWrapper
from torchrl.modules import ActorValueOperator, ProbabilisticActor, ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss
from torchrl.objectives.value import GAE

torch.set_num_threads(args.threads)


class Pixels(nn.Module):
    """NatureCNN, for whatever leading axes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nature()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., 4, 84, 84]` to `[..., 512]`."""
        lead = x.shape[:-3]
        return self.net(x.reshape(-1, *x.shape[-3:]) / 255.0).reshape(*lead, -1)


if args.atari:
    base = ale_py.vector_env.AtariVectorEnv(
        "pong", args.num_envs, num_threads=args.threads, autoreset_mode="SameStep", repeat_action_probability=0.0
    )
    called = f"ALE's vector, {args.threads} threads"
else:
    # Gymnasium's numpy batch resets one step later, which GymWrapper cannot take.
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    base = gymnasium.make_vec("CartPole-v1", args.num_envs, "sync", vector_kwargs={"autoreset_mode": mode})
    called = "Gymnasium's SyncVectorEnv"
env = GymWrapper(base, categorical_action_encoding=True)


def actor_of(head: TensorDictModule) -> ProbabilisticActor:
    """What acts by the logits of `head`."""
    return ProbabilisticActor(
        head,
        in_keys=["logits"],
        spec=env.action_spec,
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )


actions = int(base.single_action_space.n)
if args.atari:
    common = TensorDictModule(Pixels(), ["observation"], ["hidden"])
    actor_head = actor_of(TensorDictModule(nn.Linear(512, actions), ["hidden"], ["logits"]))
    both = ActorValueOperator(common, actor_head, ValueOperator(nn.Linear(512, 1), in_keys=["hidden"]))
    actor, critic = both.get_policy_operator(), both.get_value_operator()
else:
    actor = actor_of(TensorDictModule(nn.Sequential(small(), nn.Linear(64, actions)), ["observation"], ["logits"]))
    critic = ValueOperator(nn.Sequential(small(), nn.Linear(64, 1)), in_keys=["observation"])
collector = Collector(env, actor, frames_per_batch=args.batch, total_frames=-1, device="cpu", no_cuda_sync=True)
advantage = GAE(gamma=0.99, lmbda=0.95 if args.ppo else 1.0, value_network=critic, shifted=True)
loss_module = (
    ClipPPOLoss(actor, critic, clip_epsilon=0.1, normalize_advantage=True) if args.ppo else A2CLoss(actor, critic)
)
optimizer = torch.optim.Adam(loss_module.parameters(), lr=2.5e-4, eps=1e-5)
buffer = TensorDictReplayBuffer(
    storage=LazyTensorStorage(args.batch, device="cpu"),
    sampler=SamplerWithoutReplacement(),
    batch_size=args.batch // args.minibatches,
)
clock = Clock(args)
for data in collector:
    with torch.no_grad():
        advantage(data)
    buffer.extend(data.reshape(-1))
    for _ in range(args.epochs):
        for batch in buffer:
            losses = loss_module(batch)
            optimizer.zero_grad()
            sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
            nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
            optimizer.step()
    buffer.empty()
    if clock.passed(args.batch):
        break
report(clock, "torchrl", f"{called}; torch {args.threads} threads", loss_module.parameters())
