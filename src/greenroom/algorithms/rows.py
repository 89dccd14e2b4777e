"""A rollout looked at again: its steps as rows, its sequences in minibatches, and what is said of the updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from greenroom.errors import UserError
from greenroom.policy import Policy
from greenroom.types import Obs, Rollout, State, map_obs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A rollout's steps as the policy looks at them again: sequences `[L, N]`."""

    obs: Obs
    """`[L, N, ...]`."""
    state: State
    """`[N, ...]` each: what the first step was acted on with."""
    cut: Tensor
    """bool `[L, N]`."""
    steps: dict[str, Tensor]
    """`[L, N, ...]` each: whatever else belongs to a step."""

    def of(self, index: Tensor) -> Rows:
        """The sequences with these numbers, int64 `[K]`."""
        # On a CPU much faster than `part[:, index]`: of pictures a tenth of the time.
        return Rows(
            obs=map_obs(lambda part: part.index_select(1, index), self.obs),
            state={name: part.index_select(0, index) for name, part in self.state.items()},
            cut=self.cut.index_select(1, index),
            steps={name: part.index_select(1, index) for name, part in self.steps.items()},
        )

    def without(self, dropped: Tensor | None) -> Rows:
        """All sequences but those that hold a step that is `dropped`, bool `[T, B]`; None: no step is."""
        return self if dropped is None else self.of((~dropped.view(self.cut.shape).any(0)).nonzero().squeeze(1))

    def minibatches(self, count: int, generator: torch.Generator) -> Iterator[Rows]:
        """All sequences once, in random order, in `count` parts of even size; a single part is in its own order."""
        if count == 1:
            yield self
            return
        number = self.cut.shape[1]
        order = torch.randperm(number, generator=generator, device=generator.device)
        for index in order.to(self.cut.device).tensor_split(min(count, number)):
            yield self.of(index)

    def __getitem__(self, name: str) -> Tensor:
        """One of `steps` as L·N rows in the order of time."""
        return self.steps[name].flatten(0, 1)


def rows_of(rollout: Rollout, *, whole: bool, **steps: Tensor) -> Rows:
    """The steps of a rollout, with `steps` `[T, B, ...]` beside the observations acted on.

    A policy with a memory needs them `whole`: sequences of T steps of B actors. For others each step is a sequence.
    """
    obs = map_obs(lambda part: part[:-1], rollout.obs)
    if whole:
        return Rows(obs=obs, state=rollout.state, cut=rollout.cut, steps=steps)
    return Rows(
        obs=map_obs(_as_one, obs),
        state={},
        cut=_as_one(rollout.cut),
        steps={name: _as_one(part) for name, part in steps.items()},
    )


def _as_one(part: Tensor) -> Tensor:
    return part.flatten(0, 1).unsqueeze(0)


def check_minibatches(minibatches: int, *, whole: bool, num_envs: int, rollout_length: int) -> None:
    """Refuse more minibatches than there are sequences to share among them: see `rows_of`.

    Raises:
        UserError: there are more.
    """
    most = num_envs if whole else num_envs * rollout_length
    if minibatches > most:
        what = "sequences of a rollout, num_envs" if whole else "steps of a rollout, num_envs × rollout_length"
        raise UserError(f"minibatches ({minibatches}) must not exceed the {what} = {most}")


def learn_normalisation(policy: Policy, rollout: Rollout) -> None:
    """Let the policy's normaliser see what was acted on and is learned from.

    After the update, so that it saw what acting saw.
    """
    policy.normalizer.update(map_obs(lambda part: rollout.kept(part[:-1].flatten(0, 1)), rollout.obs))


def mean_metrics(updates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over one or more updates, all with the same names."""
    return {name: torch.stack([one[name] for one in updates]).mean() for name in updates[0]}
