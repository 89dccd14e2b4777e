"""Every algorithm with settings under which it learns small tasks within seconds: what tests over the table use."""

from __future__ import annotations

from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig, Discounting, VTraceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.optim import Adam, RMSprop

GAMMA = 0.6
_DISCOUNTING = Discounting(gamma=GAMMA, lam=0.9)
_ADAM = Adam(learning_rate=0.01)

PROBING: dict[str, tuple[AlgorithmConfig, int]] = {
    "a2c": (A2CConfig(discounting=_DISCOUNTING, entropy_coef=0.0, optimizer=_ADAM), 500),
    "vtrace": (VTraceConfig(discounting=_DISCOUNTING, entropy_coef=0.0, optimizer=_ADAM), 500),
    "ppo": (
        PPOConfig(discounting=_DISCOUNTING, entropy_coef=0.0, epochs=4, minibatches=2, optimizer=_ADAM),
        100,
    ),
}
"""Algorithm → a config that learns the probe tasks, and the number of rollouts (32 environments, 4 steps) it takes."""

TRACED: dict[str, AlgorithmConfig] = {
    "a2c": A2CConfig(
        discounting=Discounting(gamma=0.9, lam=0.95, scale_rewards=True), optimizer=RMSprop(learning_rate=0.003)
    ),
    "ppo": PPOConfig(discounting=Discounting(gamma=0.9, scale_rewards=True), epochs=2, minibatches=3),
    "vtrace": VTraceConfig(
        discounting=Discounting(gamma=0.9, lam=0.95), rho_max=1.5, optimizer=RMSprop(learning_rate=0.003)
    ),
}
"""Algorithm → a config with as many of its options in use as can be, for the stored traces."""
