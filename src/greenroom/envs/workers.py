"""The workers stage: any Gymnasium environment in `num_workers` processes; shared memory, no pickling per step."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import cloudpickle
import torch
from torch import Tensor

from greenroom.envs.board import Board, board_bytes
from greenroom.envs.crew import Crew, WorkerLost
from greenroom.envs.factory import Factory, Source
from greenroom.envs.faults import BY_DEFAULT, FaultConfig, Report
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.envs.tensors import BoardTensors, env_seeds, pack_states, spec_of, unpack_states
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.machine import available_cores
from greenroom.types import Obs, Step

T = TypeVar("T")

_SPIN_SECONDS = 50e-6  # about what it costs to be put to sleep and woken again


class WorkersEnvironment:
    """Implements `Environment` and, where its environments can be captured, `Snapshotable`.

    After a fault that it does not mend the stage is closed: its processes are gone before the exception is raised.

    Args:
        env: A Gymnasium id, `package.module:factory`, or a callable that returns a `gymnasium.Env`.
        num_envs: B.
        num_workers: Processes; divides `num_envs`.
        kwargs: The environment's own arguments.
        faults: What happens when an environment fails, or a worker.
        alert: Hears at once of a worker that dies while nobody waits for it.

    Raises:
        UserError: The environment cannot be built, or the numbers do not divide.
    """

    def __init__(
        self,
        env: Source,
        *,
        num_envs: int,
        num_workers: int,
        kwargs: Mapping[str, Any] | None = None,
        faults: FaultConfig = BY_DEFAULT,
        alert: Callable[[str], None] | None = None,
    ) -> None:
        _check_division(num_envs, num_workers)
        self.num_envs, self.num_workers, self.device = num_envs, num_workers, torch.device("cpu")
        self._started = self._sent = self._closed = False
        self._can_snapshot: bool | None = None
        factory = Factory(env=env, kwargs=dict(kwargs or {}))
        self._share, self._faults = num_envs // num_workers, faults
        # With more processes than cores, who spins takes the core from whom it waits for.
        spin = _SPIN_SECONDS if num_workers < available_cores() else 0.0
        self._crew = Crew(
            num_workers,
            self._share,
            spin,
            step_timeout=faults.step_timeout,
            reset_timeout=faults.reset_timeout,
            alert=alert,
        )
        self._dismiss = weakref.finalize(self, self._crew.dismiss)
        job, share = _pickled(factory), self._share
        self._jobs = [(job, worker * share, share, spin, faults) for worker in range(num_workers)]
        layouts = self._call("build", self._jobs)
        layout = layouts[0]
        for worker, other in enumerate(layouts):
            if other != layout:
                self.close()
                what = f"environment {worker * share} has other spaces or signals than environment 0"
                raise EnvironmentFault(what, index=worker * share)
        self.spec = spec_of(layout, factory.name)
        size = board_bytes(layout, num_envs, num_workers)
        os.ftruncate(self._crew.memory, size)
        self._board = self._crew.board = Board(layout, num_envs, num_workers, mmap.mmap(self._crew.memory, size))
        self._tensors = BoardTensors(self._board, layout, faults.max_env_restarts)
        self._mended: list[Fault] = []
        """What failed since the last step; the next one tells of it."""
        self._call("enter", [(num_envs, num_workers)] * num_workers)

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
        self._check_open()
        if self._sent:
            self._wait()
        seeds = env_seeds(seed, self.num_envs)
        self._tensors.started(seeds)
        self._call("reset", [(part,) for part in self._parts(seeds)])
        self._started, self._sent = True, False
        return self._tensors.obs()

    def send(self, action: Tensor) -> None:
        """Hand over one action per environment and return while the workers step."""
        self._check_open()
        if self._sent or not self._started:
            raise RuntimeError("send comes after reset or recv")
        self._tensors.write_action(action)
        self._sent = True
        self._crew.step()

    def recv(self) -> Step:
        """Wait for all workers."""
        self._check_open()
        if not self._sent:
            raise RuntimeError("recv comes after send")
        self._wait()
        self._sent = False
        faults, self._mended = self._mended, []
        return self._tensors.step(faults)

    def state_dict(self) -> dict[str, object]:
        """Every environment's state and the running episodes.

        Raises:
            NotSnapshotable: The environments hold something that cannot be captured.
        """
        self._start()
        states: list[Any] = []
        for answer in self._mending(lambda: self._crew.call("capture", [()] * self.num_workers)):
            if isinstance(answer, str):
                raise NotSnapshotable(answer)
            states += answer
        state: dict[str, object] = {"envs": pack_states(states), "episodes": self._tensors.episodes.state_dict()}
        if self._mended:  # a worker was lost since the last step, and the next one has yet to tell
            state["mended"] = pack_states([asdict(fault) for fault in self._mended])
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state`, saved by this kind of stage or inline, with as many of the same environments."""
        self._start()
        states = unpack_states(state["envs"], self.num_envs)
        self._call("restore", [(part,) for part in self._parts(states)])
        self._tensors.started([None] * self.num_envs)
        episodes = state["episodes"]
        assert isinstance(episodes, dict)
        self._tensors.episodes.load_state_dict(episodes)
        untold = json.loads(bytes(packed.tolist())) if isinstance(packed := state.get("mended"), Tensor) else []
        self._mended = [Fault.of(one) for one in untold]

    def close(self) -> None:
        """Close every environment and end every worker. May be called twice."""
        self._closed = True
        self._dismiss()

    def _parts(self, values: list[Any]) -> list[list[Any]]:
        share = self.num_envs // self.num_workers
        return [values[first : first + share] for first in range(0, self.num_envs, share)]

    def _call(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        with self._closing_at_faults():
            return self._crew.call(name, arguments)

    def _wait(self) -> None:
        """Wait for all workers' steps, and take in what failed in them."""
        answers = self._mending(self._crew.wait)
        for fault in self._mended:
            for index in fault.restarted:
                self._board.lose(index)
        with self._closing_at_faults():
            for worker in sorted(answers):
                self._mended += [self._tensors.restarted(report) for report in answers[worker]]

    def _mending(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, tried again whenever a worker is lost meanwhile and has been replaced."""
        with self._closing_at_faults():
            while True:
                try:
                    return attempt()
                except WorkerLost as lost:
                    if not self._faults.restarts:
                        raise
                    self._replace(lost)

    def _replace(self, lost: WorkerLost) -> None:
        """Start a new worker in the place of one that is lost; all its environments begin anew.

        Raises:
            EnvironmentFault: that was once too often.
        """
        worker = lost.worker
        indices = range(worker * self._share, (worker + 1) * self._share)
        seeds = self._note(lost, indices)
        while True:
            self._crew.replace(worker)
            try:
                self._crew.ask(worker, "build", self._jobs[worker])
                self._crew.ask(worker, "enter", (self.num_envs, self.num_workers))
                self._crew.ask(worker, "reset", (list(seeds.values()),))
                break
            except WorkerLost as another:
                if another.worker == worker:
                    seeds = self._note(another, indices)
                else:
                    self._replace(another)

    def _note(self, lost: WorkerLost, indices: range) -> dict[int, int]:
        assert lost.index is not None
        seeds = self._tensors.history.seeds(indices)
        report = Report(index=lost.index, what=str(lost), traceback="", seeds=seeds)
        self._mended.append(self._tensors.restarted(report))
        return seeds

    @contextlib.contextmanager
    def _closing_at_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, EnvironmentFault) and hasattr(self, "_tensors"):
                self._tensors.explain(error)
            self.close()
            raise

    def _start(self) -> None:
        self._check_open()
        if self._sent:
            raise RuntimeError("a snapshot is taken between recv and send")
        if not self._started:
            self.reset(0)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the environment is closed")


def _check_division(num_envs: int, num_workers: int) -> None:
    if num_envs % num_workers == 0:
        return
    divisors = [count for count in range(1, num_envs + 1) if num_envs % count == 0]
    near = [max(count for count in divisors if count < num_workers)]
    near += [count for count in divisors if count > num_workers][:1]
    raise UserError(
        f"num_envs={num_envs} is not divisible by num_workers={num_workers}; "
        f"use num_workers={' or '.join(str(count) for count in near)}"
    )


def _pickled(factory: Factory) -> bytes:
    """The factory for another process; a function of a notebook or script travels with its code."""
    try:
        return bytes(cloudpickle.dumps(factory))
    except Exception as error:
        raise UserError(
            f"{factory.name} cannot be sent to worker processes: {error}; give it as package.module:factory, "
            "or use --stage inline"
        ) from error
