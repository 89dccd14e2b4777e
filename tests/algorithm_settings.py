"""Settings of every algorithm for the tests that run over the table: small, quick, and with many options in use."""

from __future__ import annotations

from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.critics import CriticConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.lessons import SequenceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.q_learning import NStepQConfig, NStepSarsaConfig, PQNConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.sac import SACConfig
from greenroom.algorithms.targets import TargetNetwork
from greenroom.algorithms.td3 import TD3Config
from greenroom.optim import Adam, RMSprop
from greenroom.replay import ReplayConfig
from greenroom.values import HeadConfig

NUM_ENVS, LENGTH = 8, 6
"""Of the rollouts that these settings are made for."""

_SCALED = Discounting(gamma=0.9, lam=0.95, scale_rewards=True)
_DRAWING = Drawing(batch_size=12, replay_ratio=12.0, learning_starts=NUM_ENVS * LENGTH - 1)
_CRITICS = CriticConfig(
    gamma=0.9,
    drawing=_DRAWING,
    replay=ReplayConfig(capacity=400, n_step=2),
    target=TargetNetwork(target_every=1, tau=0.2),
)

SETTINGS: dict[str, AlgorithmConfig] = {
    "a2c": A2CConfig(discounting=_SCALED, optimizer=RMSprop(learning_rate=0.003)),
    "ppo": PPOConfig(discounting=Discounting(gamma=0.9, scale_rewards=True), epochs=2, minibatches=3),
    "vtrace": VTraceConfig(
        discounting=Discounting(gamma=0.9, lam=0.95), rho_max=1.5, optimizer=RMSprop(learning_rate=0.003)
    ),
    "nstep-q": NStepQConfig(discounting=_SCALED, target=TargetNetwork(target_every=2, tau=0.5)),
    "nstep-sarsa": NStepSarsaConfig(discounting=_SCALED),
    "pqn": PQNConfig(discounting=_SCALED, minibatches=4),
    "dqn": DQNConfig(
        gamma=0.9,
        drawing=_DRAWING,
        replay=ReplayConfig(capacity=400, n_step=3, prioritised=True),
        sequences=SequenceConfig(sequence_length=LENGTH),
        head=HeadConfig(dueling=True, noisy=True, distribution="c51", atoms=11),
        target=TargetNetwork(target_every=2),
    ),
    "sac": SACConfig(critics=_CRITICS, optimizer=Adam(learning_rate=1e-3)),
    "td3": TD3Config(critics=_CRITICS, policy_delay=1, optimizer=Adam(learning_rate=1e-3)),
}
"""By algorithm."""
