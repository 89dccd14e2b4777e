"""PQN in CleanRL's style, for `studies/pong_race.py`: one file, EnvPool, nothing but torch in between.

    python studies/cleanrl_pqn.py train --seed 1 --total-steps 1000000 --run-dir RUN
    python studies/cleanrl_pqn.py evaluate RUN --episodes 30 --seed 1000 --json

After CleanRL's `pqn_atari_envpool.py` (Huang et al. 2022), with the network, number of actors and settings of
greenroom's preset `atari-pqn` (whose learning rate does not fall), so that the loop is what differs. The evaluation is
greenroom's, off the clock.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import envpool
import numpy as np
import torch
from torch import Tensor, nn

from greenroom.seeding import derive
from greenroom.types import Decision, Obs, State
from pong_race import EXPLORING, GAME, LOOK_EPISODES, POINTS
from rivals import append, play, serve

B, T, EPOCHS, MINIBATCHES = 64, 32, 2, 32
GAMMA, LAMBDA, LEARNING_RATE, MAX_GRAD_NORM = 0.99, 0.65, 5e-4, 10.0
EPSILON_FINAL = 0.001


def layer(module: nn.Linear | nn.Conv2d) -> nn.Module:
    """Orthogonal weights, zero bias."""
    nn.init.orthogonal_(module.weight, 2**0.5)
    assert module.bias is not None
    nn.init.zeros_(module.bias)
    return module


class QNetwork(nn.Module):
    """Pictures uint8 `[N, 4, 84, 84]` to values of actions `[N, actions]`; a policy that greenroom can evaluate."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            layer(nn.Conv2d(4, 16, 8, stride=4)),
            nn.LayerNorm([16, 20, 20]),
            nn.ReLU(),
            layer(nn.Conv2d(16, 32, 4, stride=2)),
            nn.LayerNorm([32, 9, 9]),
            nn.ReLU(),
            nn.Flatten(),
            layer(nn.Linear(32 * 9 * 9, 256)),
            nn.LayerNorm(256),
            nn.ReLU(),
            layer(nn.Linear(256, actions)),
        )

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.layers(x / 255.0)
        return values

    def initial_state(self, num_envs: int) -> State:
        """It has no memory."""
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """The best actions."""
        assert isinstance(obs, Tensor)
        return Decision(action=self(obs).argmax(1), extras={}, state={})


def train(seed: int, total_steps: int, run: Path) -> None:
    """Train, look at the greedy policy on the way, and keep the last weights."""
    run.mkdir(parents=True)
    torch.manual_seed(seed)
    games = envpool.make(
        "Pong-v5",
        env_type="gymnasium",
        num_envs=B,
        num_threads=torch.get_num_threads(),
        seed=seed,
        reward_clip=True,
        repeat_action_probability=0.0,
    )
    network = QNetwork(games.action_space.n)
    optimizer = torch.optim.RAdam(network.parameters(), lr=LEARNING_RATE)
    obs, actions = torch.zeros((T, B, 4, 84, 84), dtype=torch.uint8), torch.zeros((T, B), dtype=torch.int64)
    rewards, alive, best = (torch.zeros(T, B) for _ in range(3))
    now = torch.from_numpy(games.reset()[0])
    scores, running = deque[float](maxlen=100), np.zeros(B)
    updates, steps, seconds, begun = total_steps // (T * B), 0, 0.0, time.perf_counter()

    for update in range(1, updates + 1):
        for t in range(T):
            steps += B
            epsilon = max(EPSILON_FINAL, 1 - (1 - EPSILON_FINAL) * steps / (EXPLORING * total_steps))
            obs[t] = now
            with torch.no_grad():
                best[t], choice = network(now).max(1)
            at_random = torch.randint(0, games.action_space.n, (B,))
            actions[t] = torch.where(torch.rand(B) < epsilon, at_random, choice)
            found, reward, terminated, truncated, info = games.step(actions[t].numpy().astype(np.int32))
            done = terminated | truncated
            now, rewards[t], alive[t] = torch.from_numpy(found), torch.from_numpy(reward), torch.from_numpy(~done)
            running += info["reward"]
            scores.extend(running[done])
            running[done] = 0.0

        with torch.no_grad():
            ahead = network(now).max(1).values
        learn(network, optimizer, obs, actions, targets_of(rewards, alive, best, ahead))

        if update == updates or update * POINTS // updates > (update - 1) * POINTS // updates:
            seconds += time.perf_counter() - begun
            mean = sum(scores) / len(scores) if scores else None
            append(run / "metrics.jsonl", env_steps=steps, seconds=seconds, return_mean=mean)
            # The games on which greenroom's run with this seed is looked at.
            greedy = play(network, GAME, episodes=LOOK_EPISODES, seed=derive(seed, "evaluation"))
            append(run / "evaluations.jsonl", env_steps=steps, seconds=seconds, mean=greedy["mean"])
            begun = time.perf_counter()
    games.close()
    torch.save(network.state_dict(), run / "network.pt")


def targets_of(rewards: Tensor, alive: Tensor, best: Tensor, ahead: Tensor) -> Tensor:
    """Q(λ): of rollouts `[T, B]`, with the best values where each step began and, `[B]`, after the last."""
    targets = torch.zeros(T, B)
    for t in reversed(range(T)):
        targets[t] = rewards[t] + GAMMA * alive[t] * ahead
        ahead = LAMBDA * targets[t] + (1 - LAMBDA) * best[t]
    return targets


def learn(network: QNetwork, optimizer: torch.optim.Optimizer, obs: Tensor, actions: Tensor, targets: Tensor) -> None:
    """All updates from one rollout."""
    rows = [part.flatten(0, 1) for part in (obs, actions, targets)]
    for _ in range(EPOCHS):
        for index in torch.randperm(T * B).chunk(MINIBATCHES):
            b_obs, b_actions, b_targets = (part[index] for part in rows)
            loss = (network(b_obs).gather(1, b_actions[:, None])[:, 0] - b_targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimizer.step()


def trained(run: Path) -> QNetwork:
    """The network that a run folder holds."""
    weights = torch.load(run / "network.pt")
    network = QNetwork(weights["layers.10.weight"].shape[0])
    network.load_state_dict(weights)
    return network


if __name__ == "__main__":
    serve(__doc__, GAME, episodes=30, train=train, trained=trained)
