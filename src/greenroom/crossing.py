"""From a stage to the learner's device: of a stack of frames only the newest crosses, and the stack is built there.

A stack shares all its frames but one with the stack before it (`ArraySpec.stack`), which the rollout's memory on the
device already holds. Where an episode ended, the first stack of the next one crosses whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenroom.spec import ObsSpec
from greenroom.types import Obs, Step, parts_of


class Crossing:
    """The way of one group's observations into a rollout's memory.

    Args:
        spec: of an observation.
        num_envs: of the group.
        device: where the memory is.
        apart: whether that is another device than the stage's; if not, all of an observation is copied.
    """

    def __init__(self, spec: ObsSpec, num_envs: int, device: torch.device, *, apart: bool) -> None:
        # Pinned, so that the processor need not wait for the copy.
        self._crossing = {
            name: torch.empty(
                (num_envs, part.shape[0] // part.stack, *part.shape[1:]) if part.stack > 1 else (num_envs, *part.shape),
                dtype=part.dtype,
                pin_memory=device.type == "cuda",
            )
            for name, part in (parts_of(spec) if apart else {}).items()
        }

    def carry(self, step: Step, before: Obs, into: Obs) -> None:
        """Write what is to be acted on next.

        A copy to a GPU may go on afterwards. What it reads is written again by the next call; before that an action is
        decided on this observation and sent to the stage, for which everybody waits.

        Args:
            step: the stage's answer, in its own memory.
            before: `[B, ...]` on the device: what was acted on.
            into: `[B, ...]` on the device: where the next observation goes.
        """
        targets, known = parts_of(into), parts_of(before)
        for name, part in parts_of(step.obs).items():
            crossing, target = self._crossing.get(name), targets[name]
            if crossing is None:
                target.copy_(part)
            elif crossing.shape == part.shape:
                target.copy_(crossing.copy_(part), non_blocking=True)
            else:
                self._build(crossing, part, known[name], target)
                began = (step.terminated | step.truncated).nonzero().squeeze(1)
                if len(began):
                    target[began.to(target.device)] = part.index_select(0, began).to(target.device)

    def _build(self, newest: Tensor, part: Tensor, before: Tensor, into: Tensor) -> None:
        """A stack that goes on, of the one before it and its own newest frame."""
        frame = newest.shape[1]
        newest.copy_(part[:, -frame:])
        into[:, :-frame] = before[:, frame:]
        into[:, -frame:].copy_(newest, non_blocking=True)
