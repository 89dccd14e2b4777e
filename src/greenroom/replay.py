"""Replay memory: rollouts go in, batches of n-step transitions or of sequences come out.

Time is a ring: `capacity // num_envs` points in time of B environments, and one more, the *head*, which holds only the
newest observation. Every transition is complete whenever it exists: near the head it folds fewer rewards and bootstraps
from the newest observation; when the next rollout arrives it is lengthened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from greenroom import machine
from greenroom.batch import Batch, Sequences
from greenroom.errors import UserError
from greenroom.frames import FramePool
from greenroom.maths.returns import fold
from greenroom.seeding import generator, restore
from greenroom.spec import ActionSpec, Bounded, Discrete, EnvSpec
from greenroom.sumtree import Priorities
from greenroom.transient import Transient
from greenroom.types import Obs, Rollout, State, parts_of

ROLLOUTS = 4
"""A replay must hold at least so many rollouts."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is remembered of earlier rollouts, and how it is drawn."""

    capacity: int = 100_000
    """Transitions kept; fewer where episodes last less than some forty steps on average."""
    n_step: int = 1
    """Rewards folded into one transition."""
    prioritised: bool = False
    """Draw in proportion to the last known errors (Schaul et al. 2016), not uniformly."""
    priority_exponent: float = 0.5
    """α: a transition's priority is its absolute error to this power; 0 is uniform."""
    importance_exponent: float = 0.4
    """β at the start, which corrects for drawing unevenly; it grows linearly to 1, a full correction, over the run."""
    replay_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is kept; `auto`: on the learner's device."""

    def __post_init__(self) -> None:
        for name in ("capacity", "n_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("priority_exponent", "importance_exponent"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} must lie in [0, 1], not {getattr(self, name)}")

    def build(
        self, spec: EnvSpec, *, num_envs: int, gamma: float, total_steps: int, seed: int, device: torch.device
    ) -> Replay:
        """An empty replay.

        Args:
            spec: what is observed and done.
            num_envs: B of the rollouts.
            gamma: discount per step.
            total_steps: of the run; by then β is 1.
            seed: of the draws.
            device: the learner's: batches come out there.

        Raises:
            UserError: the capacity is too small, or too large for the memory, or `replay_device` is not there.
        """
        if self.replay_device == "cuda" and not torch.cuda.is_available():
            raise UserError("replay_device is cuda, but torch sees no CUDA device; give auto or cpu")
        where = device if self.replay_device == "auto" else torch.device(self.replay_device)
        try:
            replay = Replay(
                self,
                spec,
                num_envs=num_envs,
                gamma=gamma,
                total_steps=total_steps,
                device=device,
                where=where,
                draws=generator(seed, "replay", device=where),
            )
        except RuntimeError as problem:  # torch's for too little memory, of its own kind only on a GPU
            if "allocate" not in str(problem):
                raise
            raise UserError(f"a replay of {self.capacity} transitions {self._too_much(where)}") from problem
        # The system hands memory out when it is written to, and by then would end the run.
        if where.type == "cpu" and replay.nbytes > machine.memory():
            size = f"{replay.nbytes / 1e9:.1f} GB"
            raise UserError(f"a replay of {self.capacity} transitions takes {size}; it {self._too_much(where)}")
        return replay

    def _too_much(self, where: torch.device) -> str:
        if where.type == "cpu":
            return f"does not fit into this machine's memory of {machine.memory() / 1e9:.1f} GB; lower --capacity"
        free, _ = torch.cuda.mem_get_info(where)
        return (
            f"does not fit into the {free / 1e9:.1f} GB that the GPU has left; lower --capacity, or keep it in the "
            "machine's memory: --replay-device cpu"
        )


class Replay:
    """The newest transitions of B environments. `ReplayConfig.build` makes one.

    Transitions are numbered for ever, by time and then by environment: number `time * B + environment` lies in row
    `number % rows` of every array.
    """

    def __init__(
        self,
        config: ReplayConfig,
        spec: EnvSpec,
        *,
        num_envs: int,
        gamma: float,
        total_steps: int,
        device: torch.device,
        where: torch.device,
        draws: torch.Generator,
    ) -> None:
        self.config, self.num_envs, self.gamma, self.total_steps = config, num_envs, gamma, total_steps
        if config.capacity < ROLLOUTS * num_envs:
            raise UserError(_too_small(config.capacity, 1, num_envs))
        self.times = config.capacity // num_envs + 1
        self.rows = self.times * num_envs
        self.device, self._where, self._draws = device, where, draws
        self._spec = spec
        self._first = self._now = 0  # points in time: the earliest that is whole, and the head
        self._dropped = 0  # the point in time before which lie all that must not be drawn
        self._length = 0  # T, once known
        self._allocate()

    def _allocate(self) -> None:
        """Memory in which nothing is remembered; what there was before is given back first."""
        self._pools, self._arrays = {}, {}
        spec, where = self._spec, self._where
        obs = parts_of(spec.obs)
        self._pools = {
            name: FramePool(part, times=self.times, num_envs=self.num_envs, device=where) for name, part in obs.items()
        }
        shape, dtype = _action_form(spec.action)
        self._arrays = {
            "action": torch.zeros((self.rows, *shape), dtype=dtype, device=where),
            "reward": torch.zeros(self.rows, device=where),
            "terminated": torch.zeros(self.rows, dtype=torch.bool, device=where),
            "truncated": torch.zeros(self.rows, dtype=torch.bool, device=where),
            "folded": torch.zeros(self.rows, device=where),  # the m rewards from here on
            "discount": torch.zeros(self.rows, device=where),
            "steps": torch.zeros(self.rows, dtype=torch.int32, device=where),  # m; 0: not to be learned from
        }
        self._power = torch.tensor([self.gamma**m for m in range(self.config.n_step + 1)], device=where)
        self._states: dict[str, Tensor] = {}  # [rollouts, B, ...]: the acting policy's, at the start of each rollout
        exponent = self.config.priority_exponent
        self._priorities = Priorities(self.rows, exponent, where) if self.config.prioritised else None

    def __len__(self) -> int:
        """Transitions that are remembered. Those that the rollout `dropped` are among them and never drawn."""
        return (self._now - self._first) * self.num_envs

    @property
    def nbytes(self) -> int:
        """Memory in bytes, all arrays included. The system hands it out as it is written, not before."""
        arrays = sum(part.nbytes for part in (*self._arrays.values(), *self._states.values()))
        priorities = 0 if self._priorities is None else self._priorities.nbytes
        return arrays + priorities + sum(pool.nbytes for pool in self._pools.values())

    @property
    def bytes_per_transition(self) -> float:
        """Memory over the transitions that there is room for."""
        return self.nbytes / (self.rows - self.num_envs)

    @property
    def beta(self) -> float:
        """The exponent of the importance weights now."""
        start = self.config.importance_exponent
        return start + (1.0 - start) * min(1.0, self._now * self.num_envs / self.total_steps)

    def add(self, rollout: Rollout, reward: Tensor | None = None) -> None:
        """Remember a rollout, at the expense of the oldest. Its tensors are copied.

        Where its first observation is not the one that the rollout before ended with (a resumed run may start new
        episodes), the earlier episode counts as truncated there.

        Args:
            rollout: T steps of B environments.
            reward: float32 `[T, B]` instead of `rollout.reward`.

        Raises:
            UserError: the capacity is less than `ROLLOUTS` rollouts, or T is not that of the rollouts before.
        """
        length, start = len(rollout.reward), self._now
        if ROLLOUTS * length * self.num_envs > self.config.capacity:
            raise UserError(_too_small(self.config.capacity, length, self.num_envs))
        if length != self._length and self._length:
            raise UserError(
                f"the replay has rollouts of {self._length} steps and cannot take one of {length}; use rollout_length="
                f"{self._length}"
            )
        self._length = length
        obs, final_obs = parts_of(rollout.obs), parts_of(rollout.final_obs)
        goes_on = self._goes_on(obs)
        if rollout.dropped is not None:  # what came before does not lead there
            goes_on &= ~rollout.dropped[0].to(self._where)
        for name, pool in self._pools.items():
            pool.write(start, obs[name], rollout.cut, final_obs[name], goes_on.to(rollout.cut.device))
        arrays = self._arrays
        if start > self._first:
            before = self._rows(start - 1, start)
            arrays["truncated"][before] |= ~(goes_on | arrays["terminated"][before])
        self._now += length
        here = self._rows(start, self._now)
        arrays["reward"][here] = (rollout.reward if reward is None else reward).flatten().to(self._where)
        for name in ("action", "terminated", "truncated"):
            arrays[name][here] = getattr(rollout, name).flatten(0, 1).to(self._where)
        self._write_state(start // length, rollout.state)

        oldest = max(self._first, self._now - self.times + 1)
        oldest = max(pool.first_whole(oldest, self._now) for pool in self._pools.values())
        if self._priorities is not None:
            self._priorities.drop(self._rows(self._first, min(oldest, start)))
            self._priorities.add(self._rows(max(oldest, start), self._now))
        self._first = oldest
        arrays["steps"][here] = 1
        if rollout.dropped is not None:
            self._drop(here, rollout.dropped.flatten().to(self._where))
        self._fold(max(oldest, start - self.config.n_step + 1))

    def _drop(self, here: Tensor, dropped: Tensor) -> None:
        """Of the newest rollout's rows `here`, those that are `dropped` teach nothing."""
        arrays = self._arrays
        arrays["steps"][here[dropped]] = 0
        self._dropped = self._now
        if self._priorities is not None:
            self._priorities.drop(here[dropped])

    def sample(self, batch_size: int) -> Batch:
        """Draw transitions, with replacement.

        Raises:
            ValueError: there are none.
        """
        if not len(self):
            raise ValueError("nothing can be drawn from an empty replay")
        oldest = self._first * self.num_envs
        if self._priorities is None:
            index = self._uniform(oldest, batch_size)
            row = index % self.rows
        else:
            row = self._priorities.draw(batch_size, self._draws)
            index = oldest + (row - oldest) % self.rows
        last = (row + (self._arrays["steps"][row] - 1) * self.num_envs) % self.rows
        return Batch(
            obs=self._read({name: pool.obs[row] for name, pool in self._pools.items()}),
            action=self._arrays["action"][row].to(self.device),
            reward=self._arrays["folded"][row].to(self.device),
            discount=self._arrays["discount"][row].to(self.device),
            next_obs=self._read({name: pool.successor[last] for name, pool in self._pools.items()}),
            index=index.to(self.device),
            weight=self._weight(row),
        )

    def _uniform(self, oldest: int, count: int) -> Tensor:
        """Numbers of transitions, int64 `[count]`; what must not be drawn is drawn again."""

        def draw(many: int) -> Tensor:
            return torch.randint(oldest, oldest + len(self), (many,), generator=self._draws, device=self._where)

        index = draw(count)
        while self._dropped > self._first and bool((wrong := self._arrays["steps"][index % self.rows] == 0).any()):
            index[wrong] = draw(int(wrong.sum()))
        return index

    def sample_sequences(self, batch_size: int, length: int) -> Sequences:
        """Draw sequences, with replacement; if prioritised, by the priority of their first transition.

        They begin where rollouts began, for there the acting policy's state is known. One with a step that must not be
        learned from has no weight.

        Raises:
            ValueError: there are none of this length.
        """
        starts = self._starts(length)
        if not starts:
            raise ValueError(f"the replay holds no sequence of {length} steps from a rollout's start")
        # Counted as rollout * B + environment.
        low, high = starts.start * self.num_envs, starts.stop * self.num_envs
        if self._priorities is None:
            choice = torch.randint(low, high, (batch_size,), generator=self._draws, device=self._where)
        else:
            choice = torch.arange(low, high, device=self._where)
            choice = choice[self._priorities.draw_among(self._first_of(choice) % self.rows, batch_size, self._draws)]
        index = self._first_of(choice)
        later = torch.arange(length + 1, device=self._where).unsqueeze(1) * self.num_envs
        row = (index + later) % self.rows
        step = {name: self._arrays[name][row[:-1]] for name in ("action", "reward", "terminated", "truncated")}
        ended = row[:-1][step["terminated"] | step["truncated"]]
        whole = (self._arrays["steps"][row[:-1]] > 0).all(0)
        number, column = choice // self.num_envs, choice % self.num_envs
        return Sequences(
            obs=self._read({name: pool.obs[row] for name, pool in self._pools.items()}),
            **{name: part.to(self.device) for name, part in step.items()},
            final_obs=self._read({name: pool.successor[ended] for name, pool in self._pools.items()}),
            state={name: kept[number % len(kept), column].to(self.device) for name, kept in self._states.items()},
            index=index.to(self.device),
            weight=self._weight(row[0]) * whole.to(self.device),
        )

    def update_priorities(self, index: Tensor, error: Tensor) -> None:
        """Say how surprising transitions were, or the sequences that they begin. If drawn uniformly, nothing follows.

        Args:
            index: int64 `[N]`, of a batch; what has been overwritten since is passed over.
            error: float `[N]`, temporal-difference errors; their absolute values count.
        """
        if self._priorities is not None:
            index = index.to(self._where)
            self._priorities.update(index % self.rows, error, index >= self._first * self.num_envs)

    def state_dict(self) -> dict[str, Any]:
        """All of it. The big tensors are views of the filled part, not copies: use them before the next `add`."""
        times = min(self._now + 1, self.times)
        return {
            "times": self.times,
            "num_envs": self.num_envs,
            "prioritised": self._priorities is not None,
            "now": self._now,
            "length": self._length,
            "draws": self._draws.get_state(),
            "memory": Transient(
                first=self._first,
                arrays={name: array[: times * self.num_envs] for name, array in self._arrays.items()},
                pools={name: pool.state_dict(times) for name, pool in self._pools.items()},
                states=dict(self._states),
                priorities=None if self._priorities is None else self._priorities.state_dict(),
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, and forget what is here; without its `memory` the replay is empty then.

        Raises:
            UserError: it is of another size, or one of the two is prioritised and the other is not.
        """
        saved = (state["times"], state["num_envs"], state["prioritised"])
        if saved != (self.times, self.num_envs, self._priorities is not None):
            raise UserError(
                f"the saved replay has {saved[0]} points in time of {saved[1]} environments and is "
                f"{'' if saved[2] else 'not '}prioritised; use the capacity, num_envs and prioritised of that run"
            )
        self._first = self._now = state["now"]
        self._length = state["length"]
        restore(self._draws, state["draws"])
        memory = state["memory"]
        self._allocate()
        if not memory:
            return
        self._first = memory["first"]
        self._dropped = self._now  # as far as is known: looking costs little
        for name, array in self._arrays.items():
            array[: len(memory["arrays"][name])].copy_(memory["arrays"][name])
        for name, pool in self._pools.items():
            pool.load_state_dict(memory["pools"][name])
        self._states = {name: kept.to(self._where, copy=True) for name, kept in memory["states"].items()}
        if self._priorities is not None:
            self._priorities.load_state_dict(memory["priorities"])

    def _rows(self, start: int, stop: int) -> Tensor:
        """The rows of all transitions from one point in time to before another."""
        numbers = torch.arange(start * self.num_envs, stop * self.num_envs, device=self._where)
        return numbers % self.rows

    def _goes_on(self, obs: dict[str, Tensor]) -> Tensor:
        """bool `[B]`: whether each environment's first observation is the one that is already at the head."""
        same = torch.full((self.num_envs,), self._now > self._first, device=self._where)
        for name, pool in self._pools.items():
            same &= pool.shows(self._now, obs[name][0])
        return same

    def _write_state(self, number: int, state: State) -> None:
        if not self._states:
            lead = (self.times // self._length + 1, self.num_envs)
            self._states = {
                name: part.new_zeros((*lead, *part.shape[1:]), device=self._where) for name, part in state.items()
            }
        for name, part in state.items():
            self._states[name][number % len(self._states[name])] = part.to(self._where)

    def _fold(self, start: int) -> None:
        """Fold the rewards of all transitions from the point in time `start` to the head."""
        rows = self._rows(start, self._now)
        reward, terminated, truncated = (
            self._arrays[name][rows].view(-1, self.num_envs) for name in ("reward", "terminated", "truncated")
        )
        folded, steps = fold(reward, terminated | truncated, n_step=self.config.n_step, gamma=self.gamma)
        last = torch.arange(len(steps), device=self._where).unsqueeze(1) + steps - 1
        self._arrays["folded"][rows] = folded.flatten()
        self._arrays["steps"][rows] = steps.flatten().int() * (self._arrays["steps"][rows] > 0)
        self._arrays["discount"][rows] = self._power[steps].masked_fill(terminated.gather(0, last), 0.0).flatten()

    def _starts(self, length: int) -> range:
        """The numbers of the rollouts with whose start a sequence of this length may begin."""
        if not self._length:
            return range(0)
        return range(-(-self._first // self._length), (self._now - length) // self._length + 1)

    def _first_of(self, choice: Tensor) -> Tensor:
        """The transitions with which rollouts began, for `rollout * B + environment`."""
        return choice // self.num_envs * (self._length * self.num_envs) + choice % self.num_envs

    def _weight(self, row: Tensor) -> Tensor:
        if self._priorities is None:
            return torch.ones(len(row), device=self.device)
        return self._priorities.weight(row, self.beta).to(self.device)

    def _read(self, references: dict[str, Tensor]) -> Obs:
        parts = {name: pool.read(references[name]).to(self.device) for name, pool in self._pools.items()}
        return parts.get("", parts)


def _action_form(spec: ActionSpec) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of one environment's action."""
    if isinstance(spec, Bounded):
        return spec.shape, torch.float32
    return (() if isinstance(spec, Discrete) else (len(spec.nvec),)), torch.int64


def _too_small(capacity: int, length: int, num_envs: int) -> str:
    least = ROLLOUTS * length * num_envs
    return (
        f"capacity={capacity} is too small for rollouts of {length} steps in {num_envs} environments; give at least "
        f"{least} ({ROLLOUTS} rollouts), or fewer steps or environments"
    )
