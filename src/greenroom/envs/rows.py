"""Environments that are stepped as one, seen as rows of tensors: whose rows are no numbers, and what is told of them.

No actions are recorded here, so such a failure cannot be done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from greenroom.envs.faults import FaultConfig, Tolerance
from greenroom.errors import EnvironmentFault, Fault
from greenroom.types import Obs, parts_of


def finite(obs: Obs, *others: Tensor) -> bool:
    """Whether they surely hold no NaN or infinity. Asked at every step, so it takes a few microseconds."""
    for part in (*others, *parts_of(obs).values()):
        if part.is_floating_point():
            flat = part.reshape(-1)
            # The quickest way through a tensor. The squares of huge numbers are infinite too: so only surely.
            if not math.isfinite(flat.dot(flat)):
                return False
    return True


def broken(parts: Iterable[Tensor]) -> Tensor:
    """Which rows of these, `[B, ...]` each, hold NaN or infinity: bool `[B]`."""
    return torch.stack([~part.reshape(len(part), -1).isfinite().all(1) for part in parts]).any(0)


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

    def finished(self, ended: Tensor) -> None:
        """Those where bool `[B]` is true have each finished an episode."""
        self._finished += ended.cpu()

    def failed(
        self,
        obs: Obs,
        reward: Tensor,
        signals: dict[str, Tensor],
        *,
        step_of: Callable[[int], int],
        beside: Callable[[int], str] | None = None,
    ) -> tuple[Tensor | None, tuple[Fault, ...]]:
        """Whose answers are no numbers: bool `[B]`, or None for nobody's, and what is to be told of it.

        Args:
            obs: `[B, ...]`.
            reward: `[B]`.
            signals: `[B]` each.
            step_of: the step of an environment's episode.
            beside: what else is known of an environment's failure.

        Raises:
            EnvironmentFault: they are not to be started anew, or not so many.
        """
        if finite(obs, reward, *signals.values()):
            return None, ()
        answer = {"the reward": reward, **{f"signal {name!r}": part for name, part in signals.items()}}
        answer |= {f"observation {name!r}" if name else "the observation": part for name, part in parts_of(obs).items()}
        rows = broken(answer.values())
        indices = rows.nonzero().flatten().tolist()
        if not indices:
            return None, ()
        faults: list[Fault] = []
        for index in indices:
            step = step_of(index)
            wrong = " and ".join(name for name, part in answer.items() if not bool(part[index].isfinite().all()))
            what = f"environment {index}, step {step}: {wrong} holds NaN or infinity"
            faults.append(self._fault(index, what if beside is None else f"{what}; {beside(index)}", step))
        if not self._restarts:
            others = f"; {len(faults) - 1} other environments have failed too" if len(faults) > 1 else ""
            raise EnvironmentFault(faults[0].what + others, index=indices[0], fault=faults[0])
        for number, fault in enumerate(faults):
            self._tolerance.count(fault, mended=faults[:number])
        return rows, tuple(faults)

    def _fault(self, index: int, what: str, step: int) -> Fault:
        return Fault(
            what=what,
            traceback="",
            index=index,
            episode=int(self._finished[index]),
            step=step,
            seed=self._seed,
            steps=self._steps,
            actions=(),
            restarted=(index,) if self._restarts else (),
        )
