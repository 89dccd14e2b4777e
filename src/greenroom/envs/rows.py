"""Environments that are stepped as one, seen as rows of tensors: whose rows are no numbers, and what is told of them.

No actions are recorded here, so such a failure cannot be done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from greenroom.envs.faults import FaultConfig, Tolerance
from greenroom.errors import EnvironmentFault, Fault
from greenroom.types import Obs

Answer = dict[str, Tensor]
"""What B environments answered, by what messages call it: `[B, ...]` each."""


def answer_of(obs: Obs, reward: Tensor | None = None, signals: dict[str, Tensor] | None = None) -> Answer:
    """Everything in them that may be no number."""
    answer = {} if reward is None else {"the reward": reward}
    answer |= {f"signal {name!r}": part for name, part in (signals or {}).items()}
    parts = {f"observation {name!r}": part for name, part in obs.items()} if isinstance(obs, dict) else {"": obs}
    return answer | {name or "the observation": part for name, part in parts.items() if part.is_floating_point()}


def finite(obs: Obs, *others: Tensor) -> bool:
    """Whether they surely hold no NaN or infinity. Asked at every step, so it takes a few microseconds."""
    for part in (*others, *(obs.values() if isinstance(obs, dict) else (obs,))):
        if part.is_floating_point():
            flat = part.reshape(-1)
            # The quickest way through a tensor. Squares of huge numbers are infinite too: `broken` then looks again.
            if not math.isfinite(flat.dot(flat)):
                return False
    return True


def broken(answer: Answer) -> Tensor | None:
    """Which rows hold NaN or infinity: bool `[B]`, or None where none does."""
    sound = [part.reshape(len(part), -1).isfinite().all(1) for part in answer.values()]
    rows = ~torch.stack(sound).all(0)
    return rows if bool(rows.any()) else None


class Rows:
    """The failures of B environments.

    Args:
        num_envs: B.
        faults: what is to be done about them.
    """

    def __init__(self, num_envs: int, faults: FaultConfig) -> None:
        self._restarts = faults.restarts
        self._tolerance = Tolerance(faults.max_env_restarts)
        self._finished = torch.zeros(num_envs, dtype=torch.int64)
        self._seed: int | None = None
        self._steps = 0

    def started(self, seed: int | None) -> None:
        """All start anew with a seed, or go on from a checkpoint (None)."""
        self._seed, self._steps = seed, 0
        self._finished.zero_()

    def stepped(self) -> None:
        """All have taken a step."""
        self._steps += 1

    def finished(self, index: Tensor) -> None:
        """These, int64 `[K]`, have each finished an episode."""
        self._finished[index.cpu()] += 1

    def take(
        self, rows: Tensor, answer: Answer, *, step_of: Callable[[int], int], beside: Callable[[int], str] | None = None
    ) -> tuple[Fault, ...]:
        """What is to be told of these rows, bool `[B]`, which the stage is about to start anew.

        Args:
            rows: who failed.
            answer: in what.
            step_of: the step of an environment's episode.
            beside: what else is known of an environment's failure.

        Raises:
            EnvironmentFault: they are not to be started anew, or not so many.
        """
        failed = rows.nonzero().flatten().tolist()
        faults: list[Fault] = []
        for index in failed:
            wrong = " and ".join(name for name, part in answer.items() if not bool(part[index].isfinite().all()))
            what = f"environment {index}, step {step_of(index)}: {wrong} holds NaN or infinity"
            fault = Fault(
                what=what if beside is None else f"{what}; {beside(index)}",
                traceback="",
                index=index,
                episode=int(self._finished[index]),
                step=step_of(index),
                seed=self._seed,
                steps=self._steps,
                actions=(),
                restarted=(index,) if self._restarts else (),
            )
            if not self._restarts:
                others = f"; {len(failed) - 1} other environments have failed too" if len(failed) > 1 else ""
                raise EnvironmentFault(fault.what + others, index=index, fault=fault)
            self._tolerance.count(fault)
            faults.append(fault)
        return tuple(faults)
