"""Observations for replay, each frame kept once: a ring of frames, and references into it.

An observation is also the successor of the one before, and a stack of four frames shares three of them with its
neighbour. So a step of one environment adds one frame; the first observation of an episode and the last one, which
nobody acts on, add what they do not share.
"""

from __future__ import annotations

import bisect
import math
from typing import Any

import torch
from torch import Tensor

from greenroom.spec import ArraySpec


class FramePool:
    """The newest observations of one kind, for `times` points in time of B environments.

    Frames are numbered for ever, in the order in which they come; number n lies at `frames[n % slots]`. References are
    frame numbers, one for each plane of a stack, int64 `[..., stack]`. The references at one point in time are never
    older than those at an earlier one, so what the ring has lost is always at the beginning of time.
    """

    def __init__(self, spec: ArraySpec, *, times: int, num_envs: int, device: torch.device) -> None:
        self.stack, self.times, self.shape = spec.stack, times, spec.shape
        self.frame = (spec.shape[0] // spec.stack, *spec.shape[1:]) if spec.stack > 1 else spec.shape
        rows = times * num_envs
        # One frame for each row, a twentieth more for the ends of episodes, and always enough for the newest stacks.
        slots = rows + rows // 20 + 2 * self.stack * (self.stack + 1) * num_envs
        self.frames = torch.empty((slots, *self.frame), dtype=spec.dtype, device=device)
        self.obs = torch.zeros((rows, self.stack), dtype=torch.int64, device=device)
        """References of what was acted on; row `time % times * B + environment`."""
        self.successor = torch.zeros_like(self.obs)
        """References of what truly came next."""
        self._oldest = torch.zeros(times, dtype=torch.int64)  # on the CPU: the oldest reference at each point in time
        self._pushed = 0

    def write(self, start: int, obs: Tensor, cut: Tensor, final_obs: Tensor, goes_on: Tensor) -> None:
        """Take in one rollout.

        Args:
            start: the point in time of `obs[0]`.
            obs: `[T+1, B, ...]`.
            cut: bool `[T, B]`.
            final_obs: `[K, ...]`.
            goes_on: bool `[B]`: `obs[0]` is already here, as the last observation of the rollout before.
        """
        planes, last = self._planes(obs, 2), self._planes(final_obs, 1)
        bits, last_bits = _bits(planes, 2), _bits(last, 1)
        follows = torch.cat([goes_on.unsqueeze(0), _follows(bits[:-1], bits[1:])])
        last_follows = _follows(bits[:-1][cut], last_bits)
        new, last_new = _new(bits, follows), _new(last_bits, last_follows)
        new[0] &= ~goes_on.unsqueeze(-1)

        # At each point in time: the last observations of what just ended, then what is acted on.
        numbers = torch.zeros((len(obs), 2, *new.shape[1:]), dtype=torch.int64, device=obs.device)
        numbers[1:, 0][cut] = last_new.long()
        numbers[:, 1] = new.long()
        numbers = self._pushed - 1 + numbers.flatten().cumsum(0).view_as(numbers)
        number, last_number = numbers[:, 1], numbers[1:, 0][cut]
        self._pushed = int(numbers[-1, -1, -1, -1]) + 1
        self._push(planes.flatten(0, 2), new.flatten(), number.flatten())
        self._push(last.flatten(0, 1), last_new.flatten(), last_number.flatten())

        rows = self.obs.view(self.times, -1, self.stack)
        head = rows[start % self.times].to(obs.device)
        fresh = torch.zeros_like(goes_on)
        references = [torch.where(goes_on.unsqueeze(-1), head, _references(head, fresh, new[0], number[0]))]
        for t in range(1, len(obs)):
            references.append(_references(references[-1], follows[t], new[t], number[t]))
        here = torch.stack(references)
        after = here[1:].clone()
        after[cut] = _references(here[:-1][cut], last_follows, last_new, last_number)

        at = torch.arange(start, start + len(obs)) % self.times
        self._oldest[at] = here.flatten(1).amin(1).cpu()
        at = at.to(self.obs.device)
        rows[at] = here.to(self.obs.device)
        self.successor.view_as(rows)[at[:-1]] = after.to(self.obs.device)

    def read(self, references: Tensor) -> Tensor:
        """The observations `[..., *shape]` for references `[..., stack]`."""
        slots = references.flatten() % len(self.frames)
        return self.frames.index_select(0, slots).view(*references.shape[:-1], *self.shape)

    def shows(self, time: int, obs: Tensor) -> Tensor:
        """bool `[B]`: whether what was observed at a point in time is, bit for bit, `obs` `[B, ...]`."""
        known = self.read(self.obs.view(self.times, -1, self.stack)[time % self.times])
        same = _bits(self._planes(known, 1), 1) == _bits(self._planes(obs.to(known.device), 1), 1)
        return same.flatten(1).all(1)

    def first_whole(self, first: int, now: int) -> int:
        """The earliest point in time from `first` to `now` whose observations are all still here."""
        lost = self._pushed - len(self.frames)
        return bisect.bisect_left(range(now), lost, first, key=lambda time: int(self._oldest[time % self.times]))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(part.nbytes for part in (self.frames, self.obs, self.successor, self._oldest))

    def state_dict(self, times: int) -> dict[str, Any]:
        """The frames so far and the references of the first `times` points in time: views, not copies."""
        rows = times * (len(self.obs) // self.times)
        return {
            "frames": self.frames[: self._pushed],
            "obs": self.obs[:rows],
            "successor": self.successor[:rows],
            "oldest": self._oldest[:times],
            "pushed": self._pushed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, of a pool of the same size."""
        self._pushed = state["pushed"]
        for part, name in ((self.frames, "frames"), (self.obs, "obs"), (self.successor, "successor")):
            part[: len(state[name])].copy_(state[name])
        self._oldest[: len(state["oldest"])].copy_(state["oldest"])

    def _planes(self, obs: Tensor, lead: int) -> Tensor:
        return obs.reshape(*obs.shape[:lead], self.stack, *self.frame)

    def _push(self, planes: Tensor, new: Tensor, number: Tensor) -> None:
        """Write the new ones of N planes, unless so many have come after them that they are lost again."""
        kept = (new & (number >= self._pushed - len(self.frames))).nonzero().squeeze(-1)
        device = self.frames.device
        self.frames[(number[kept] % len(self.frames)).to(device)] = planes.index_select(0, kept).to(device)


def _bits(planes: Tensor, lead: int) -> Tensor:
    """Planes `[..., stack, *frame]` as integers `[..., stack, words]`, to compare them bit for bit, and fast."""
    shape = planes.shape
    flat = planes.reshape(*shape[: lead + 1], math.prod(shape[lead + 1 :])).contiguous().view(torch.uint8)
    in_words = flat.shape[-1] % 8 == 0 and flat.storage_offset() % 8 == 0
    return flat.view(torch.int64) if in_words else flat


def _follows(before: Tensor, after: Tensor) -> Tensor:
    """Whether a stack is the one before, moved on by a frame: bool `[...]` for bits `[..., stack, words]`."""
    return (before[..., 1:, :] == after[..., :-1, :]).flatten(-2).all(-1)


def _new(bits: Tensor, follows: Tensor) -> Tensor:
    """Which planes have to be kept: a following stack's newest; of others, each that differs from the one before it."""
    new = torch.ones(bits.shape[:-1], dtype=torch.bool, device=bits.device)
    new[..., 1:] = (bits[..., 1:, :] != bits[..., :-1, :]).any(-1)
    new[..., :-1] &= ~follows.unsqueeze(-1)
    new[..., -1] |= follows
    return new


def _references(before: Tensor, follows: Tensor, new: Tensor, number: Tensor) -> Tensor:
    """References `[N, stack]` of N observations, each after another one with references `before`."""
    moved = torch.cat([before[..., 1:], number[..., -1:]], dim=-1)
    # A plane that is not new looks like the one before it.
    whole = torch.where(new, number, 0).cummax(-1).values
    return torch.where(follows.unsqueeze(-1), moved, whole)
