"""A loop in CleanRL's style: EnvPool, A2C or PPO. Nothing but torch between the environment and the loss.

After CleanRL's `ppo_atari_envpool.py` (Huang et al. 2022); A2C is the same with one epoch, one minibatch and no clip.
"""

from __future__ import annotations

from common import Clock, options, report

args = options()

import envpool
import numpy as np
import torch
from bodies import nature, small
from torch import nn
from torch.distributions.categorical import Categorical

torch.set_num_threads(args.threads)


def layer(module: nn.Linear | nn.Conv2d, std: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero bias."""
    nn.init.orthogonal_(module.weight, std)
    nn.init.zeros_(module.bias)
    return module


def layers(body: nn.Sequential) -> nn.Sequential:
    """With every layer as `layer` makes it."""
    for module in body:
        if isinstance(module, nn.Linear | nn.Conv2d):
            layer(module)
    return body


class Agent(nn.Module):
    """NatureCNN with two heads for Atari, two networks of 64 × 64 for CartPole."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        if args.atari:
            self.body = layers(nature())
            self.actor, self.critic = layer(nn.Linear(512, actions), 0.01), layer(nn.Linear(512, 1), 1)
        else:
            self.body = nn.Identity()
            self.actor, self.critic = (
                nn.Sequential(*layers(small()), layer(nn.Linear(64, n), std)) for n, std in ((actions, 0.01), (1, 1.0))
            )

    def forward(self, x: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Of observations `[N, ...]`: the actions' distribution and the value `[N]`."""
        hidden = self.body(x / 255.0 if args.atari else x)
        return Categorical(logits=self.actor(hidden), validate_args=False), self.critic(hidden).flatten()


special = {"episodic_life": False, "reward_clip": True, "repeat_action_probability": 0.0} if args.atari else {}
envs = envpool.make(
    "Pong-v5" if args.atari else "CartPole-v1",
    env_type="gymnasium",
    num_envs=args.num_envs,
    num_threads=args.threads,
    seed=1,
    **special,
)
agent = Agent(envs.action_space.n)
optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
T, B = args.rollout_length, args.num_envs
obs = torch.zeros((T, B, *envs.observation_space.shape), dtype=torch.uint8 if args.atari else torch.float32)
actions = torch.zeros((T, B), dtype=torch.int64)
logprobs, rewards, dones, values = (torch.zeros(T, B) for _ in range(4))
next_obs, next_done = torch.from_numpy(envs.reset()[0]), torch.zeros(B)
gamma, lam = 0.99, 0.95 if args.ppo else 1.0
clock = Clock(args)

while not clock.passed(args.batch):
    for t in range(T):
        obs[t], dones[t] = next_obs, next_done
        with torch.no_grad():
            distribution, values[t] = agent(obs[t])
            actions[t] = distribution.sample()
            logprobs[t] = distribution.log_prob(actions[t])
        found, reward, terminated, truncated, _ = envs.step(actions[t].numpy().astype(np.int32))
        next_obs, rewards[t] = torch.from_numpy(found), torch.from_numpy(reward)
        next_done = torch.from_numpy(terminated | truncated).float()

    with torch.no_grad():
        next_value = agent(next_obs)[1]
        advantages, last = torch.zeros_like(rewards), 0.0
        for t in reversed(range(T)):
            alive = 1.0 - (next_done if t == T - 1 else dones[t + 1])
            following = next_value if t == T - 1 else values[t + 1]
            last = rewards[t] + gamma * following * alive - values[t] + gamma * lam * alive * last
            advantages[t] = last
        returns = advantages + values

    flat = [part.flatten(0, 1) for part in (obs, actions, logprobs, advantages, returns)]
    for _ in range(args.epochs):
        for index in torch.randperm(T * B).chunk(args.minibatches):
            b_obs, b_actions, b_logprobs, b_advantages, b_returns = (part[index] for part in flat)
            distribution, value = agent(b_obs)
            logprob = distribution.log_prob(b_actions)
            if args.ppo:
                b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                ratio = (logprob - b_logprobs).exp()
                pg_loss = -torch.min(b_advantages * ratio, b_advantages * ratio.clamp(0.9, 1.1)).mean()
            else:
                pg_loss = -(b_advantages * logprob).mean()
            v_loss = 0.5 * ((value - b_returns) ** 2).mean()
            loss = pg_loss - 0.01 * distribution.entropy().mean() + 0.5 * v_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()

report(clock, "envpool", f"EnvPool, {args.threads} threads", agent.parameters())
