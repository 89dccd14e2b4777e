"""The inline stage: B Gymnasium environments stepped in this process. Best for cheap environments and for debugging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from greenroom.envs.board import Board
from greenroom.envs.factory import Factory, Source
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.gym import Cast
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.envs.tensors import BoardTensors, before_the_step, env_seeds, pack_states, spec_of, unpack_states
from greenroom.errors import EnvironmentFault, Fault
from greenroom.types import Obs, Step


class InlineEnvironment:
    """Implements `Environment` and, where its environments can be captured, `Snapshotable`."""

    def __init__(
        self,
        env: Source,
        *,
        num_envs: int,
        kwargs: Mapping[str, Any] | None = None,
        faults: FaultConfig = BY_DEFAULT,
    ) -> None:
        factory = Factory(env=env, kwargs=kwargs or {})
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self._cast = Cast(factory, 0, num_envs, faults)
        self.spec = spec_of(self._cast.layout, factory.name)
        board = Board(self._cast.layout, num_envs, num_workers=0)
        self._tensors = BoardTensors(board, self._cast.layout, faults.max_env_restarts)
        self._cast.enter(board)
        self._started = self._sent = False
        self._untold: list[Fault] = []
        """What was mended and no step has told yet."""
        self._can_snapshot: bool | None = None

    @property
    def can_snapshot(self) -> bool:
        """Whether `state_dict` works for this environment: found out by trying once."""
        if self._can_snapshot is None:
            try:
                self.state_dict()
                self._can_snapshot = True
            except NotSnapshotable:
                self._can_snapshot = False
        return self._can_snapshot

    def reset(self, seed: int) -> Obs:
        """Start B new episodes, environment i from the seed derived for it. Returns obs `[B, ...]`."""
        seeds = env_seeds(seed, self.num_envs)
        self._tensors.started(seeds)
        self._untold = []  # of episodes that nobody goes on with
        with self._explaining_faults():
            self._cast.reset(seeds)
            self._take_in()
        self._untold = before_the_step(self._untold)
        self._started, self._sent = True, False
        return self._tensors.obs()

    def send(self, action: Tensor) -> None:
        """Take one action per environment; they are stepped when the answer is asked for."""
        if self._sent or not self._started:
            raise RuntimeError("send comes after reset or recv")
        self._tensors.write_action(action)
        self._sent = True

    def recv(self) -> Step:
        """Step the environments in turn."""
        if not self._sent:
            raise RuntimeError("recv comes after send")
        self._sent = False
        with self._explaining_faults():
            for _ in self._cast.step():
                pass
            self._take_in()
        faults, self._untold = self._untold, []
        return self._tensors.step(faults)

    def state_dict(self) -> dict[str, object]:
        """Every environment's state and the running episodes.

        Raises:
            NotSnapshotable: The environments hold something that cannot be captured.
        """
        self._start()
        return {"envs": pack_states(self._cast.capture()), "episodes": self._tensors.episodes.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state`, saved by this stage or by workers with as many of the same environments."""
        self._start()
        self._cast.restore(unpack_states(state["envs"], self.num_envs))
        self._tensors.started([None] * self.num_envs)
        self._untold = []
        episodes = state["episodes"]
        assert isinstance(episodes, dict)
        self._tensors.episodes.load_state_dict(episodes)

    def close(self) -> None:
        """Close every environment."""
        self._cast.close()
        self._started = self._sent = False

    def _take_in(self) -> None:
        """Note the failures that were mended."""
        for report in self._cast.reports():
            self._untold.append(self._tensors.restarted(report))

    @contextlib.contextmanager
    def _explaining_faults(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFault as error:
            self._tensors.explain(error)
            error.mended = tuple(self._untold)
            raise

    def _start(self) -> None:
        if self._sent:
            raise RuntimeError("a snapshot is taken between recv and send")
        if not self._started:
            self.reset(0)
