"""The stages `workers` and `joint`: any Gymnasium environment in several processes, without pickling per step.

With `joint`, this process is one of them: it steps its own share instead of sleeping until the others have.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import cloudpickle
import torch
from torch import Tensor

from greenroom.cores import make_room
from greenroom.envs.board import Board, board_bytes
from greenroom.envs.crew import Crew, WorkerLost
from greenroom.envs.factory import Factory, Source
from greenroom.envs.faults import BY_DEFAULT, FaultConfig, Report
from greenroom.envs.gym import Cast
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.envs.tensors import BoardTensors, before_the_step, env_seeds, pack_states, spec_of, unpack_states
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.machine import available_cores
from greenroom.types import Obs, Step

T = TypeVar("T")

_SPIN_SECONDS = 50e-6  # about what it costs to be put to sleep and woken again
_JOINT_SPIN_SECONDS = 500e-6  # longer than a small policy takes to act: batches are short, so being woken would tell


class WorkersEnvironment:
    """Implements `Environment` and, where its environments can be captured, `Snapshotable`.

    After a fault that it does not mend the stage is closed: its processes are gone before the exception is raised.

    Args:
        env: A Gymnasium id, `package.module:factory`, or a callable that returns a `gymnasium.Env`.
        num_envs: B.
        num_workers: Processes, each with the same share of the environments; divides `num_envs`.
        joint: Whether this process is one of them. It steps its share, the first, when the answer is asked for.
        kwargs: The environment's own arguments.
        faults: What happens when an environment fails, or a worker.
        alert: Hears at once of a worker that dies while nobody waits for it.
        taken_cores: Cores that something else keeps busy meanwhile.

    Raises:
        UserError: The environment cannot be built, or the numbers do not divide.
    """

    def __init__(
        self,
        env: Source,
        *,
        num_envs: int,
        num_workers: int,
        joint: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        faults: FaultConfig = BY_DEFAULT,
        alert: Callable[[str], None] | None = None,
        taken_cores: int = 0,
    ) -> None:
        _check_division(num_envs, num_workers)
        self.num_envs, self.num_workers, self.device = num_envs, num_workers, torch.device("cpu")
        self._started = self._sent = self._closed = False
        self._can_snapshot: bool | None = None
        factory = Factory(env=env, kwargs=dict(kwargs or {}))
        self._share, self._faults, hired = num_envs // num_workers, faults, num_workers - joint
        # With more processes than cores, who spins takes the core from whom it waits for.
        spin = (_JOINT_SPIN_SECONDS if joint else _SPIN_SECONDS) if hired < available_cores() - taken_cores else 0.0
        self._crew = Crew(
            hired,
            self._share,
            self._share * joint,
            spin,
            step_timeout=faults.step_timeout,
            reset_timeout=faults.reset_timeout,
            alert=alert,
        )
        self._dismiss = weakref.finalize(self, self._crew.dismiss)
        job = _pickled(factory)
        self._jobs = [(job, self._crew.share_of(worker).start, self._share, spin, faults) for worker in range(hired)]
        self._own: Cast | None = None
        with self._closing_at_faults():
            if joint:
                self._own = Cast(factory, 0, self._share, faults)
            layouts = self._crew.call("build", self._jobs)
            layout = layouts[0] if self._own is None else self._own.layout
            for worker, other in enumerate(layouts):
                if other != layout:
                    index = self._crew.share_of(worker).start
                    what = f"environment {index} has other spaces or signals than environment 0"
                    raise EnvironmentFault(what, index=index)
        self.spec = spec_of(layout, factory.name)
        size = board_bytes(layout, num_envs, hired)
        os.ftruncate(self._crew.memory, size)
        self._board = self._crew.board = Board(layout, num_envs, hired, mmap.mmap(self._crew.memory, size))
        self._mended: list[Fault] = []
        """What failed since the last step; the next one tells of it."""
        self._tensors = BoardTensors(self._board, layout, faults.max_env_restarts)
        if self._own is not None:
            self._own.enter(self._board)
        with self._closing_at_faults():
            self._crew.call("enter", [(num_envs, hired)] * hired)

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
        self._mending(self._crew.wait)  # answers that nobody took because Ctrl-C came in between
        self._mended = []  # of episodes that nobody goes on with
        seeds = env_seeds(seed, self.num_envs)
        self._tensors.started(seeds)
        shares, reports = self._shares(seeds), []
        if self._own is not None:
            with self._closing_at_faults():
                self._own.reset(shares.pop(0))
                reports = self._own.reports()
        self._crew.tell("reset", [(share,) for share in shares])
        self._take_in(reports, self._mending(self._crew.wait))
        self._mended = before_the_step(self._mended)
        self._started, self._sent = True, False
        return self._tensors.obs()

    def send(self, action: Tensor) -> None:
        """Hand over one action per environment and return while the workers step theirs."""
        self._check_open()
        if self._sent or not self._started:
            raise RuntimeError("send comes after reset or recv")
        self._tensors.write_action(action)
        self._sent = True
        self._crew.step()

    def recv(self) -> Step:
        """Step the environments of this process, if there are any, and wait for the workers."""
        self._check_open()
        if not self._sent:
            raise RuntimeError("recv comes after send")
        self._wait()
        make_room()
        self._sent = False
        faults, self._mended = self._mended, []
        return self._tensors.step(faults)

    def state_dict(self) -> dict[str, object]:
        """Every environment's state and the running episodes.

        Raises:
            NotSnapshotable: The environments hold something that cannot be captured.
        """
        self._start()
        states: list[Any] = [] if self._own is None else self._own.capture()
        for answer in self._mending(lambda: self._crew.call("capture", [()] * len(self._jobs))):
            if isinstance(answer, str):
                raise NotSnapshotable(answer)
            states += answer
        state: dict[str, object] = {"envs": pack_states(states), "episodes": self._tensors.episodes.state_dict()}
        if self._mended:  # a worker was lost since the last step, and the next one has yet to tell
            state["mended"] = pack_states([asdict(fault) for fault in self._mended])
        return state

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state`, saved by this kind of stage or inline, with as many of the same environments.

        Raises:
            NotSnapshotable: `state` does not fit them. Some may have taken theirs, so reset the stage before it steps.
        """
        self._start()
        states = unpack_states(state["envs"], self.num_envs)
        self._restore(states)
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
        if self._own is not None:
            self._own.close()

    def _shares(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """For every process its share of `values`, one for each environment."""
        return [values[first : first + self._share] for first in range(0, self.num_envs, self._share)]

    def _restore(self, states: Sequence[Any]) -> None:
        shares = self._shares(states)
        with self._closing_at_faults():
            if self._own is not None:
                self._own.restore(shares.pop(0))
            for answer in self._crew.call("restore", [(share,) for share in shares]):
                if isinstance(answer, str):
                    raise NotSnapshotable(answer)

    def _wait(self) -> None:
        """Wait for all steps, and take in what failed in them."""
        reports: list[Report] = []
        if self._own is not None:
            with self._closing_at_faults():
                for _ in self._own.step():
                    pass
                reports = self._own.reports()
        answers = self._mending(self._crew.wait)
        for fault in self._mended:
            for index in fault.restarted:
                self._board.lose(index)
        self._take_in(reports, answers)

    def _take_in(self, reports: Sequence[Report], answers: Mapping[int, Sequence[Report]]) -> None:
        """Note the failures that processes have mended: this one, and the workers by their numbers."""
        with self._closing_at_faults():
            for report in (*reports, *(report for worker in sorted(answers) for report in answers[worker])):
                self._mended.append(self._tensors.restarted(report))

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
        indices = self._crew.share_of(worker)
        seeds = self._note(lost, indices)
        while True:
            self._crew.replace(worker)
            try:
                self._crew.ask(worker, "build", self._jobs[worker])
                self._crew.ask(worker, "enter", (self.num_envs, len(self._jobs)))
                again = self._crew.ask(worker, "reset", (list(seeds.values()),))
                break
            except WorkerLost as another:
                if another.worker == worker:
                    seeds = self._note(another, indices)
                else:
                    self._replace(another)
        self._take_in(again, {})

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
        except NotSnapshotable:
            raise  # nobody failed, and every process goes on
        except Exception as error:
            if isinstance(error, EnvironmentFault) and hasattr(self, "_tensors"):
                self._tensors.explain(error)
                error.mended = tuple(self._mended)
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
