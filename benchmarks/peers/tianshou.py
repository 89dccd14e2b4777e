"""Tianshou's A2C and PPO with one network for actor and critic, on EnvPool."""

from __future__ import annotations

import sys

# Python puts this script's folder first, where `tianshou` is this file.
sys.path.append(sys.path.pop(0))

from common import Clock, options, report

args = options()

import envpool
import numpy as np
import torch
from gymnasium.spaces import Discrete
from tianshou.algorithm import A2C, PPO
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import torch_train_mode

torch.set_num_threads(args.threads)
special = {"episodic_life": False, "reward_clip": True, "repeat_action_probability": 0.0} if args.atari else {}
envs = envpool.make_gymnasium(
    "Pong-v5" if args.atari else "CartPole-v1",
    num_envs=args.num_envs,
    num_threads=args.threads,
    seed=1,
    **special,
)
actions = int(envs.action_space.n)


def network():
    """Features: NatureCNN, or 64 × 64."""
    if not args.atari:
        return Net(state_shape=envs.observation_space.shape, hidden_sizes=[64, 64], activation=torch.nn.Tanh)
    cnn = DQNet(*envs.observation_space.shape, actions, features_only=True, output_dim_added_layer=512)
    return ScaledObsInputActionReprNet(cnn)


features = network()
actor = DiscreteActor(preprocess_net=features, action_shape=actions, softmax_output=False)
critic = DiscreteCritic(preprocess_net=features if args.atari else network())
shared = {
    "policy": DiscreteActorPolicy(actor=actor, action_space=Discrete(actions)),
    "critic": critic,
    "optim": AdamOptimizerFactory(lr=2.5e-4, eps=1e-5),
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "max_batchsize": args.batch,
}
algorithm = PPO(**shared, eps_clip=0.1) if args.ppo else A2C(**shared, gae_lambda=1.0)
# Atari's stacks share their frames in the buffer; each row is whole here, which is the fastest it has.
buffer = VectorReplayBuffer(args.batch, args.num_envs)
collector = Collector(algorithm, envs, buffer)
collector.reset()
clock, size = Clock(args), args.batch // args.minibatches
np.seterr(all="ignore")
while True:
    with policy_within_training_step(algorithm.policy):
        collector.collect(n_step=args.batch)
        with torch_train_mode(algorithm):
            algorithm.update(buffer=buffer, batch_size=size, repeat=args.epochs)
    collector.reset_buffer(keep_statistics=True)
    if clock.passed(args.batch):
        break
trained = {id(tensor): tensor for module in (actor, critic) for tensor in module.parameters()}
report(clock, "tianshou", f"EnvPool, {args.threads} threads; torch {args.threads} threads", trained.values())
