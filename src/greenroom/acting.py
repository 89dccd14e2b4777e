"""Rollouts as an iterator: the only place where policy and environments meet.

One loop serves two modes. With one group of environments it is plain synchronous collection. With several, a group's
simulators work while the policy decides for the next one (double buffering); every action still comes from the same
weights, so that the data are exactly on-policy. `overlap` runs this very loop beside the learner.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from greenroom.crossing import Crossing
from greenroom.envs.base import Environment, Snapshotable
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.policy import Trainee
from greenroom.seeding import derive, generator, restore
from greenroom.types import Decision, Episodes, Obs, Rollout, State, Step, cat_obs, len_obs, map_obs, parts_of, restart

_FRUITLESS = 10
"""So many rollouts in a row without anything to learn from end a run."""


class Collecting(Protocol):
    """Whatever collects, in one place or another."""

    @property
    def time_split(self) -> dict[str, float]:
        """Seconds spent so far in `env`, `act` and `wait`."""
        ...

    @property
    def can_snapshot(self) -> bool:
        """Whether a resumed run continues the very same episodes."""
        ...

    @property
    def begun_anew(self) -> str:
        """Why new episodes began when a state was last loaded, in words; empty if the saved ones went on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where acting stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        ...

    def close(self) -> None:
        """Close all environments."""
        ...


class Source(Collecting, Protocol):
    """Where the loop gets its rollouts from, whichever way they are collected."""

    version: int
    """Updates that the learner has done: set by the loop after each."""

    def __next__(self) -> Rollout:
        """The next rollout; its memory is the source's."""
        ...


class Empty(Protocol):
    """What makes tensors that will be written to, as `torch.empty` does."""

    def __call__(self, shape: Sequence[int], /, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A new one."""
        ...


class _Memory:
    """Where one rollout is written: allocated once, used again and again.

    Args:
        length: T.
        num_envs: B.
        first: an observation `[B, ...]`, on `device`.
        device: the learner's.
        stage: the stage's.
        empty: makes all that is told of a rollout.
    """

    def __init__(
        self, length: int, num_envs: int, first: Obs, device: torch.device, stage: torch.device, empty: Empty
    ) -> None:
        self.lead, self._empty = (length, num_envs), empty
        self.obs = map_obs(lambda part: empty((length + 1, *part.shape), dtype=part.dtype, device=device), first)
        self.action = torch.empty(0)
        self.extras: dict[str, Tensor] = {}
        # What a stage tells beside observations is not acted on, and crosses at the end, all at once. Pinned, so that
        # the processor need not wait for the copy.
        told = {"reward": torch.float32, "terminated": torch.bool, "truncated": torch.bool}
        self._heard = {name: empty(self.lead, dtype=dtype, device=device) for name, dtype in told.items()}
        self._crossed: dict[str, Tensor] = {}
        if stage.type != device.type:
            pin, self._crossed = device.type == "cuda", self._heard
            self._heard = {
                name: torch.empty(self.lead, dtype=dtype, device=stage, pin_memory=pin) for name, dtype in told.items()
            }

    def begin(self, obs: Obs) -> None:
        for name, part in parts_of(self.obs).items():
            part[0] = parts_of(obs)[name]

    def store_decision(self, t: int, columns: slice, decision: Decision) -> None:
        if not len(self.action):
            self.action = self._like(decision.action)
            self.extras = {name: self._like(part) for name, part in decision.extras.items()}
        self.action[t, columns] = decision.action
        for name, part in decision.extras.items():
            self.extras[name][t, columns] = part

    def _like(self, part: Tensor) -> Tensor:
        return self._empty((*self.lead, *part.shape[1:]), dtype=part.dtype, device=part.device)

    def store_step(self, t: int, columns: slice, step: Step, crossing: Crossing) -> None:
        before = map_obs(lambda part: part[t, columns], self.obs)
        crossing.carry(step, before, into=map_obs(lambda part: part[t + 1, columns], self.obs))
        for name, part in self._heard.items():
            part[t, columns] = getattr(step, name)

    def told(self) -> dict[str, Tensor]:
        """`reward`, `terminated` and `truncated`, `[T, B]`, where the learner is; once all steps are stored.

        A copy to a GPU may go on afterwards. What it reads is written again after the next rollout's first actions have
        been sent to the stage, for which everybody waits.
        """
        for name, part in self._crossed.items():
            part.copy_(self._heard[name], non_blocking=True)
        return self._crossed or self._heard


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What is kept of one group's step beside the memory's rows."""

    obs: Obs
    state: State
    episodes: Episodes
    lost: Sequence[int]
    """Environments of the run that were started anew in this step."""


def _moved(fault: Fault, by: int) -> Fault:
    """With the environments' numbers in the run, not in their group."""
    return replace(fault, index=fault.index + by, restarted=tuple(index + by for index in fault.restarted))


def unfinished(lost: Tensor, cut: Tensor) -> Tensor:
    """The steps `lost`, bool `[T, B]`, and those of the same episodes before them in this rollout."""
    dropped = lost.clone()
    for t in reversed(range(len(lost) - 1)):
        dropped[t] |= dropped[t + 1] & ~cut[t]
    return dropped


def _joined(parts: list[Episodes]) -> Episodes:
    """All of them, on the processor, where everybody reads them: waited for once, and only if there are any."""

    def together(columns: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(columns)).cpu()

    return Episodes(
        index=together(part.index for part in parts),
        returns=together(part.returns for part in parts),
        lengths=together(part.lengths for part in parts),
        signals={name: together(part.signals[name] for part in parts) for name in parts[0].signals},
    )


class Collector:
    """Endless iterator of rollouts `[T, B]`; owns where acting stands. B is the sum over the groups.

    A rollout's memory is used again: it is valid until `memories` more rollouts have been begun.
    """

    def __init__(
        self,
        groups: Sequence[Environment],
        policy: Trainee,
        *,
        rollout_length: int,
        seed: int,
        device: torch.device,
        memories: int = 1,
        empty: Empty = torch.empty,
    ) -> None:
        self.groups, self.policy, self.length, self.device = tuple(groups), policy, rollout_length, device
        self.version = 0
        self.time_split = {"env": 0.0, "act": 0.0, "wait": 0.0}
        self._generator = generator(seed, "acting", device=device)
        bounds = [0]
        for group in self.groups:
            bounds.append(bounds[-1] + group.num_envs)
        self.num_envs = bounds[-1]
        self._columns = [slice(low, high) for low, high in itertools.pairwise(bounds)]
        self._crossings = [
            Crossing(group.spec.obs, group.num_envs, device, apart=group.device.type != device.type)
            for group in self.groups
        ]
        self._seed = seed
        self._initial = policy.initial_state(self.num_envs)
        self._obs = self._reset()
        self._state = self._initial
        # With memories in turn, the learner can read one rollout while others are being written.
        self._memories = itertools.cycle(
            [
                _Memory(rollout_length, self.num_envs, self._obs, device, groups[0].device, empty)
                for _ in range(memories)
            ]
        )
        self._untold: list[Fault] = []
        """What was mended and no rollout has told yet."""
        self.begun_anew = ""
        """Why new episodes began when a state was last loaded, in words; empty if the saved ones went on."""

    def _reset(self) -> Obs:
        """New episodes everywhere; those of a resumed run are not those that the run began with."""
        seeds = [derive(self._seed, "environments", number, self.version) for number in range(len(self.groups))]
        started = [group.reset(seed) for group, seed in zip(self.groups, seeds, strict=True)]
        return cat_obs([map_obs(lambda part: part.to(self.device), obs) for obs in started])

    def __iter__(self) -> Collector:
        """Itself: where acting stands is its own."""
        return self

    def __next__(self) -> Rollout:
        """Act for T steps in every environment. Where failures left nothing to learn from: the next one.

        Raises:
            EnvironmentFault: an environment has failed and is not mended, or nothing is left again and again.
        """
        memory = next(self._memories)
        try:
            for _ in range(_FRUITLESS):
                rollout = self._act(memory)
                if not self._fruitless(rollout.dropped):
                    self._untold = []
                    return rollout
            last = self._untold.pop()
            raise EnvironmentFault(
                f"{last.what}; failures like this left nothing to learn from in {_FRUITLESS} rollouts in a row. Mend "
                "the environment, or take more actors or shorter rollouts (--num-envs, --rollout-length)",
                index=last.index,
                fault=last,
            )
        except EnvironmentFault as error:
            error.mended, self._untold = (*self._untold, *error.mended), []
            raise

    def _fruitless(self, dropped: Tensor | None) -> bool:
        """Whether not one step is left to learn from; for a memory, not one actor's whole sequence."""
        return dropped is not None and bool((dropped.any(0) if self.policy.remembers else dropped).all())

    def _act(self, memory: _Memory) -> Rollout:
        memory.begin(self._obs)
        state = self._state
        self._state = {name: part.clone() for name, part in state.items()}
        numbers = range(len(self.groups))
        ended: list[_Ended] = []
        for t in range(self.length):
            for number in numbers:
                if t:
                    ended.append(self._receive(memory, number, t - 1))
                self._decide(memory, number, t)
        ended += [self._receive(memory, number, self.length - 1) for number in numbers]
        self._obs = map_obs(lambda part: part[self.length], memory.obs)
        told = memory.told()
        return Rollout(
            obs=memory.obs,
            action=memory.action,
            **told,
            final_obs=cat_obs([part.obs for part in ended]),
            extras=memory.extras,
            state=state,
            next_state={name: part.clone() for name, part in self._state.items()},
            final_state={name: torch.cat([part.state[name] for part in ended]) for name in state},
            version=self.version,
            episodes=_joined([part.episodes for part in ended]),
            faults=tuple(self._untold),
            dropped=self._dropped(told["terminated"] | told["truncated"], ended),
        )

    def _dropped(self, cut: Tensor, ended: Sequence[_Ended]) -> Tensor | None:
        if not any(part.lost for part in ended):
            return None
        lost = torch.zeros_like(cut)
        for number, part in enumerate(ended):  # in turn all groups' first steps, their second ones, …
            lost[number // len(self.groups), part.lost] = True
        return unfinished(lost, cut)

    def _decide(self, memory: _Memory, number: int, t: int) -> None:
        start = time.perf_counter()
        columns, group = self._columns[number], self.groups[number]
        state = {name: part[columns] for name, part in self._state.items()}
        decision = self.policy.act(map_obs(lambda part: part[t, columns], memory.obs), state, self._generator)
        memory.store_decision(t, columns, decision)
        for name, part in decision.state.items():
            self._state[name][columns] = part
        action = decision.action.to(group.device)
        between = time.perf_counter()
        group.send(action)
        self.time_split["act"] += between - start
        self.time_split["env"] += time.perf_counter() - between

    def _receive(self, memory: _Memory, number: int, t: int) -> _Ended:
        """Take in one group's step t. What ended in it is returned in our own memory: the stage's is used again."""
        start = time.perf_counter()
        columns = self._columns[number]
        try:
            step = self.groups[number].recv()
        except EnvironmentFault as error:
            error.mended = tuple(_moved(fault, columns.start) for fault in error.mended)
            raise
        faults = [_moved(fault, columns.start) for fault in step.faults]
        self._untold += faults
        memory.store_step(t, columns, step, self._crossings[number])
        # With one group nothing else could be done meanwhile: that is the environments' time. With more it is a wait.
        self.time_split["env" if len(self.groups) == 1 else "wait"] += time.perf_counter() - start
        return _Ended(
            obs=map_obs(lambda part: part.to(self.device, copy=True), step.final_obs),
            state=self._restart(columns, step),
            episodes=replace(step.episodes, index=step.episodes.index + columns.start),
            lost=[index for fault in faults for index in fault.restarted],
        )

    def _restart(self, columns: slice, step: Step) -> State:
        """Forget what ended episodes left in the policy's state; returns their last states."""
        state = {name: part[columns] for name, part in self._state.items()}
        if not state or not len_obs(step.final_obs):
            return {name: part[:0] for name, part in state.items()}
        cut = step.terminated | step.truncated
        ended = cut.nonzero().squeeze(1).to(self.device)
        last = {name: part.index_select(0, ended) for name, part in state.items()}
        initial = {name: part[columns] for name, part in self._initial.items()}
        for name, part in restart(state, initial, cut.to(self.device)).items():
            self._state[name][columns] = part
        return last

    @property
    def can_snapshot(self) -> bool:
        """Whether a resumed run continues the very same episodes."""
        return all(isinstance(group, Snapshotable) and group.can_snapshot for group in self.groups)

    def state_dict(self) -> dict[str, Any]:
        """Where acting stands: generator, last observation and, where they can be copied, the environments.

        Whether they can is found out once, but what they hold changes: they are left out whenever they cannot.
        """
        state: dict[str, Any] = {"generator": self._generator.get_state(), "version": self.version}
        if self.can_snapshot:
            with contextlib.suppress(NotSnapshotable):
                state["environments"] = [group.state_dict() for group in self.groups if isinstance(group, Snapshotable)]
                state["obs"] = map_obs(torch.clone, self._obs)
                state["state"] = {name: part.clone() for name, part in self._state.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; where its environments are not in it, or cannot be restored, start new episodes."""
        restore(self._generator, state["generator"])
        self.version = state["version"]
        self.begun_anew = self._load_environments(state)
        if self.begun_anew:
            self._obs, self._state = self._reset(), self._initial
            return
        self._obs = map_obs(lambda part: part.to(self.device), state["obs"])
        self._state = {name: part.to(self.device) for name, part in state["state"].items()}

    def _load_environments(self, state: dict[str, Any]) -> str:
        """Let every group continue; returns why one cannot, or nothing."""
        if "environments" not in state:
            if self.can_snapshot:
                return "the checkpoint is without its environments, which could not be copied then"
            return "these environments cannot be copied"
        groups = [group for group in self.groups if isinstance(group, Snapshotable)]
        if not len(groups) == len(self.groups) == len(state["environments"]):
            raise UserError(
                "the checkpoint's environments do not fit this stage; resume with the options of the original run"
            )
        try:
            for group, saved in zip(groups, state["environments"], strict=True):
                group.load_state_dict(saved)
        except NotSnapshotable as error:
            return f"the checkpoint's environments cannot be restored ({' '.join(str(error).split())})"
        return ""

    def close(self) -> None:
        """Close all environments."""
        for group in self.groups:
            group.close()
