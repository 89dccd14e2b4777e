"""What DQN is to learn from one draw of the replay: from single transitions, or with a memory from sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greenroom.algorithms.replaying import Drawing
from greenroom.batch import Batch, Sequences
from greenroom.errors import UserError
from greenroom.maths.returns import fold
from greenroom.maths.values import chosen
from greenroom.policy import one_step
from greenroom.replay import ROLLOUTS, ReplayConfig
from greenroom.types import Obs, map_obs, restart
from greenroom.values import QPolicy


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """With a memory, what is drawn from the replay: sequences (R2D2, Kapturowski et al. 2019)."""

    sequence_length: int = 16
    """Steps that are learned from at a time; a batch is batch_size / sequence_length sequences."""
    burn_in: int = 0
    """Steps before them that only bring the stored state up to date."""

    def __post_init__(self) -> None:
        if self.sequence_length < 1 or self.burn_in < 0:
            raise UserError(
                f"sequence_length must be at least 1 and burn_in at least 0, not {self.sequence_length}, {self.burn_in}"
            )

    @property
    def length(self) -> int:
        """Steps of a sequence in all."""
        return self.burn_in + self.sequence_length

    def check(self, drawing: Drawing, replay: ReplayConfig, *, num_envs: int, rollout_length: int) -> None:
        """Sequences begin where rollouts began: they must reach to the next one, and be there when they are drawn.

        Raises:
            UserError: they are too short, do not divide a batch, or the replay has too few of them.
        """
        if drawing.batch_size % self.sequence_length:
            raise UserError(
                f"batch_size ({drawing.batch_size}) must be a multiple of sequence_length ({self.sequence_length})"
            )
        if self.sequence_length < rollout_length:
            raise UserError(
                f"sequence_length ({self.sequence_length}) must be at least rollout_length ({rollout_length}), or some "
                f"steps would never be learned from"
            )
        least = self.length * num_envs
        # Learning begins with the step after learning_starts. Where episodes are short, less than the capacity is kept.
        if drawing.learning_starts + 1 < least or replay.capacity < ROLLOUTS * least:
            raise UserError(
                f"sequences of burn_in + sequence_length = {self.length} steps in {num_envs} environments need "
                f"learning_starts of at least {least} and a capacity of at least {ROLLOUTS * least}, not "
                f"{drawing.learning_starts} and {replay.capacity}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """L steps of N draws: where the values of actions are, and where they should be."""

    outputs: Tensor
    """float `[L·N, Z]`: of the actions taken, in the order of time, differentiable."""
    reward: Tensor
    """float `[L·N]`: n of them folded."""
    discount: Tensor
    """float `[L·N]`: what the successor counts, zero where the task terminated."""
    successor: Tensor
    """float `[L·N, Z]`: the target network's, of the best action in what came next."""
    index: Tensor
    """int64 `[N]`: the draws, for their priorities."""
    weight: Tensor
    """float `[N]`: their importance."""


def of_transitions(
    batch: Batch, policy: QPolicy, target: QPolicy, judge: QPolicy, generator: torch.Generator
) -> Lesson:
    """L = 1.

    Args:
        batch: the draw.
        policy: what learns.
        target: says what the best action in the successor is worth.
        judge: says which action that is: `policy` for double Q-learning (van Hasselt et al. 2016), else `target`.
        generator: of the head's noise.
    """
    outputs = policy.evaluate(one_step(batch.obs), {}, None, generator)[0]
    with torch.no_grad():
        after = one_step(batch.next_obs)
        successors, q, _ = target.evaluate(after, {}, None, generator)
        if judge is not target:
            q = judge.evaluate(after, {}, None, generator)[1]
    return Lesson(
        outputs=chosen(outputs, batch.action),
        reward=batch.reward,
        discount=batch.discount,
        successor=chosen(successors, q.argmax(-1)),
        index=batch.index,
        weight=batch.weight,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unrolled:
    """What a network with a memory says along sequences; tables `[L, N, A, Z]` and `[L, N, A]`."""

    outputs: Tensor
    """Where it acted."""
    successors: Tensor
    """Of each step's true successor."""
    successor_q: Tensor
    """The same as Q-values."""


def of_sequences(
    sequences: Sequences,
    policy: QPolicy,
    target: QPolicy,
    judge: QPolicy,
    generator: torch.Generator,
    *,
    burn_in: int,
    n_step: int,
    gamma: float,
) -> Lesson:
    """R2D2's lesson (Kapturowski et al. 2019): from the stored state, and the first `burn_in` steps only to refresh it.

    The other arguments are as for `of_transitions`.
    """
    learned = _unroll(policy, sequences, burn_in, generator)
    with torch.no_grad():
        trusted = learned if target is policy else _unroll(target, sequences, burn_in, generator)
    judging = learned if judge is policy else trusted
    cut, terminated = sequences.cut[burn_in:], sequences.terminated[burn_in:]
    reward, steps = fold(sequences.reward[burn_in:], cut, n_step=n_step, gamma=gamma)
    last = torch.arange(len(cut), device=cut.device).unsqueeze(1) + steps - 1
    successor = chosen(trusted.successors, judging.successor_q.argmax(-1)).detach()
    ended = terminated.gather(0, last)
    return Lesson(
        outputs=chosen(learned.outputs, sequences.action[burn_in:]).flatten(0, 1),
        reward=reward.flatten(),
        discount=(gamma**steps).masked_fill(ended, 0.0).flatten(),
        successor=torch.take_along_dim(successor, last.unsqueeze(-1), 0).flatten(0, 1),
        index=sequences.index,
        weight=sequences.weight,
    )


def _unroll(network: QPolicy, sequences: Sequences, burn_in: int, generator: torch.Generator) -> _Unrolled:
    cut, state = sequences.cut, sequences.state
    if burn_in:
        with torch.no_grad():
            before = map_obs(lambda part: part[:burn_in], sequences.obs)
            memory = network.evaluate(before, state, cut[:burn_in])[2][-1]
        state = restart(memory, network.initial_state(cut.shape[1]), cut[burn_in - 1])
    obs = map_obs(lambda part: part[burn_in:], sequences.obs)
    late = cut[burn_in:]
    outputs, q, memories = network.evaluate(obs, state, late, generator)
    length = len(late) + 1
    outputs, q = outputs.unflatten(0, (length, -1)), q.unflatten(0, (length, -1))
    # Where an episode was cut, its last observation came next, with the memory that its steps had left.
    with torch.no_grad():
        left = {name: torch.stack([step[name] for step in memories[:-1]])[late] for name in memories[0]}
        ends, end_q, _ = network.evaluate(one_step(_late(sequences, burn_in)), left, None, generator)
    successors, successor_q = outputs[1:].detach().clone(), q[1:].detach().clone()
    successors[late], successor_q[late] = ends, end_q
    return _Unrolled(outputs=outputs[:-1], successors=successors, successor_q=successor_q)


def _late(sequences: Sequences, burn_in: int) -> Obs:
    """The final observations of episodes that were cut after the burn-in."""
    time = torch.arange(len(sequences.cut), device=sequences.cut.device).unsqueeze(1)
    late = (time >= burn_in).expand_as(sequences.cut)[sequences.cut]
    return map_obs(lambda part: part[late], sequences.final_obs)
