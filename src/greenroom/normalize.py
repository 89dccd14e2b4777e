"""Running statistics: of observations (inside the policy: they ship with it) and of returns (inside the learner)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from greenroom.errors import UserError
from greenroom.spec import ObsSpec
from greenroom.types import Obs, parts_of


class RunningMoments(nn.Module):
    """Mean and variance of everything seen, per element of `shape`, in float64 (updates of Chan et al. 1979)."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Take in `[N, *shape]`."""
        batch = batch.double()
        size = batch.shape[0]
        var, mean = torch.var_mean(batch, dim=0, correction=0)
        total = self.count + size
        delta = mean - self.mean
        self.mean += delta * (size / total)
        self.var.copy_((self.var * self.count + var * size + delta.square() * (self.count * size / total)) / total)
        self.count.copy_(total)


_FEW_PLANES = 4


def _with_channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of pictures `[..., C, H, W]` that lies in memory as `[..., H, W, C]`."""
    planes = x.unbind(-3)
    if len(planes) > _FEW_PLANES:
        return torch.stack(planes, dim=-1).to(dtype).movedim(-1, -3)
    # Each plane goes over all of the copy's memory: for few of them that is faster than writing bytes first.
    turned = x.new_empty((*planes[0].shape, len(planes)), dtype=dtype)
    for place, plane in zip(turned.unbind(-1), planes, strict=True):
        place.copy_(plane)
    return turned.movedim(-1, -3)


class ObsNormalizer(nn.Module):
    """Makes float inputs of observations: bytes become [0, 1]; float arrays, if asked for, standardised and clipped.

    Bytes go straight to `bytes_to`, the arithmetic of the network: the same numbers as by way of float32, without
    writing four times as much memory first. Statistics change only through `update`: acting and learning on one rollout
    see the same numbers.
    """

    channels_last = False
    """Whether pictures `[..., C, H, W]` are to lie in memory as `[..., H, W, C]`, for convolutions whose weights do.

    They would bring them there themselves, as floats and once more for the gradient, in four times as long.
    """

    def __init__(
        self, spec: ObsSpec, *, running: bool, clip: float = 10.0, bytes_to: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        parts = parts_of(spec)
        self.clip, self.bytes_to = clip, bytes_to
        # A module may not be called "" nor hold a dot, hence the list.
        self.names = tuple(sorted(parts))
        self._turned = {name: part.is_image and not part.colour_last for name, part in parts.items()}
        self.moments = nn.ModuleList(
            RunningMoments(parts[name].shape) if running and parts[name].dtype.is_floating_point else nn.Identity()
            for name in self.names
        )

    def _part(self, name: str, moments: nn.Module, x: Tensor) -> Tensor:
        if isinstance(moments, RunningMoments):
            scale = torch.rsqrt(moments.var + 1e-8)
            return ((x - moments.mean.float()) * scale.float()).clamp(-self.clip, self.clip)
        if x.dtype != torch.uint8:
            return x.float()
        turned = self.channels_last and self._turned[name]
        return (_with_channels_last(x, self.bytes_to) if turned else x.to(self.bytes_to)).div_(255.0)

    def forward(self, obs: Obs) -> Obs:
        """`[N, ...]` in, float32 of the same shapes out; of bytes, `bytes_to`.

        Raises:
            UserError: one array for a policy that looks at several.
        """
        if isinstance(obs, dict):
            pairs = zip(self.names, self.moments, strict=True)
            return {name: self._part(name, moments, obs[name]) for name, moments in pairs}
        if self.names != ("",):
            raise UserError(
                f"this policy looks at a dict of {' and '.join(self.names)} (and a mask of actions, if any)"
            )
        return self._part("", self.moments[0], obs)

    def update(self, obs: Obs) -> None:
        """Take in `[N, ...]` observations."""
        for name, moments in zip(self.names, self.moments, strict=True):
            if isinstance(moments, RunningMoments):
                moments.update(obs[name] if isinstance(obs, dict) else obs)


def _all(steps: Tensor) -> Tensor:
    return steps


class RewardScaler(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return (Engstrom et al. 2020).

    Rewards are never centred: a shift would change which policy is best.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.moments = RunningMoments(())
        self.register_buffer("running", torch.zeros(num_envs))

    @property
    def scale(self) -> Tensor:
        """What rewards are multiplied with now, a scalar on the device."""
        return torch.rsqrt(self.moments.var + 1e-8).float()

    @torch.no_grad()
    def forward(self, reward: Tensor, cut: Tensor, kept: Callable[[Tensor], Tensor] = _all) -> Tensor:
        """Take in rewards `[T, B]` and episode ends `[T, B]`; returns the scaled rewards.

        Args:
            reward: float32 `[T, B]`.
            cut: bool `[T, B]`.
            kept: picks from steps `[T·B]` those that count for the scale.
        """
        returns = torch.empty_like(reward)
        carry = self.gamma * (~cut).float()
        running = self.running
        for t in range(reward.shape[0]):
            returns[t] = running + reward[t]
            running = returns[t] * carry[t]
        self.running.copy_(running)
        self.moments.update(kept(returns.flatten()))
        return reward * self.scale
