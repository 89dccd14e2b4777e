"""A stage's board as tensors: what its consumer sees, made from the same memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from greenroom.envs.base import EpisodeTracker
from greenroom.envs.board import Board
from greenroom.envs.faults import History, Report, traceback_of
from greenroom.envs.spaces import ActionForm, Layout, Leaf
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.seeding import derive
from greenroom.spec import ActionSpec, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.types import Obs, Step


def spec_of(layout: Layout, name: str) -> EnvSpec:
    """The public description of an environment with this layout."""
    parts = {leaf.name: _array_spec(leaf) for leaf in layout.leaves}
    obs = parts if layout.is_dict else parts[""]
    return EnvSpec(name=name, obs=obs, action=_action_spec(layout.action), signals=layout.signals)


def _array_spec(leaf: Leaf) -> ArraySpec:
    return ArraySpec(shape=leaf.shape, dtype=getattr(torch, leaf.dtype), low=leaf.low, high=leaf.high, stack=leaf.stack)


def _action_spec(form: ActionForm) -> ActionSpec:
    if form.kind == "discrete":
        return Discrete(n=form.count[0])
    if form.kind == "multi_discrete":
        return MultiDiscrete(nvec=form.count)
    return Bounded(shape=form.shape, low=form.low, high=form.high)


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed per environment, of 31 bits because that is what simulators take."""
    return [derive(seed, "environment", index) & 0x7FFFFFFF for index in range(num_envs)]


def before_the_step(faults: Sequence[Fault]) -> list[Fault]:
    """The same of failures in a reset of the whole stage: the next step tells of them, and loses no episode to them."""
    return [replace(fault, restarted=()) for fault in faults]


def pack_states(states: list[Any]) -> Tensor:
    """Captured environments (values that JSON can hold) as one uint8 tensor."""
    return torch.from_numpy(np.frombuffer(json.dumps(states).encode(), np.uint8).copy())


def unpack_states(packed: object, num_envs: int) -> list[Any]:
    """The inverse of `pack_states`.

    Raises:
        UserError: The states are those of another number of environments.
    """
    assert isinstance(packed, Tensor)
    states = json.loads(packed.cpu().numpy().tobytes())
    if len(states) != num_envs:
        raise UserError(
            f"the saved state is of {len(states)} environments and there are {num_envs}; use num_envs={len(states)}"
        )
    return list(states)


class BoardTensors:
    """Views of a board, the count of its running episodes, and what is remembered of its environments.

    Args:
        board: the stage's.
        layout: of its environments.
        max_restarts: how many failures are put up with.
    """

    def __init__(self, board: Board, layout: Layout, max_restarts: int) -> None:
        self._names = [leaf.name for leaf in layout.leaves]
        self._is_dict = layout.is_dict
        self._obs = [torch.from_numpy(rows) for rows in board.obs]
        self._final = [torch.from_numpy(rows) for rows in board.final]
        self._action = torch.from_numpy(board.action)
        self._reward = torch.from_numpy(board.reward)
        self._terminated, self._truncated = torch.from_numpy(board.terminated), torch.from_numpy(board.truncated)
        self._signals = {name: torch.from_numpy(board.signals[i]) for i, name in enumerate(layout.signals)}
        self.episodes = EpisodeTracker(len(board.reward), layout.signals)
        self.history = History(board.action, max_restarts)

    def write_action(self, action: Tensor) -> None:
        """Copy one action per environment into the board.

        Raises:
            UserError: Another shape, or another kind of number, than the environment's actions have.
        """
        if action.shape != self._action.shape or action.is_floating_point() != self._action.is_floating_point():
            raise UserError(
                f"send wants {self._action.dtype} actions of shape {tuple(self._action.shape)}, "
                f"not {action.dtype} of shape {tuple(action.shape)}"
            )
        self._action.copy_(action)
        self.history.acted()

    def started(self, seeds: Sequence[int | None]) -> None:
        """New episodes everywhere, each with its seed; or they go on from a checkpoint, without."""
        self.episodes.reset()
        for index, seed in enumerate(seeds):
            self.history.seeded(index, seed)

    def restarted(self, report: Report) -> Fault:
        """Take note that something failed in the step that was just taken, and that environments have begun anew.

        Raises:
            EnvironmentFault: it was one failure too many.
        """
        fault = self._fault(report.index, report.what, report.traceback, restarted=tuple(report.seeds))
        for index, seed in report.seeds.items():
            self.history.seeded(index, seed)
        return fault

    def explain(self, error: EnvironmentFault) -> None:
        """Add to the error of an environment that stops the run how it came about, where that is not known yet."""
        if error.fault is None and error.index is not None:
            error.fault = self._fault(error.index, str(error), traceback_of(error))

    def _fault(self, index: int, what: str, trace: str, restarted: tuple[int, ...] = ()) -> Fault:
        return self.history.fault(index, what, trace, step=self.episodes.length_of(index) + 1, restarted=restarted)

    def obs(self) -> Obs:
        """`[B, ...]`: what to act on next."""
        return self._form(self._obs)

    def step(self, faults: Sequence[Fault] = ()) -> Step:
        """Everything that the last batch of steps left on the board, after these failures were mended."""
        finished = ended = self._terminated | self._truncated
        if lost := [index for fault in faults for index in fault.restarted]:
            finished = ended.clone()
            finished[lost] = False
        episodes = self.episodes.update(self._reward, finished, self._signals)
        self.episodes.forget(lost)
        self.history.finished(episodes.index.tolist())
        rows = ended.nonzero().squeeze(1) if lost else episodes.index
        return Step(
            obs=self._form(self._obs),
            reward=self._reward,
            terminated=self._terminated,
            truncated=self._truncated,
            final_obs=self._form([final[rows] for final in self._final]),
            episodes=episodes,
            signals=self._signals,
            faults=tuple(faults),
        )

    def _form(self, parts: list[Tensor]) -> Obs:
        return dict(zip(self._names, parts, strict=True)) if self._is_dict else parts[0]
