"""Encoders: one observation array in, one feature vector out. The config of an encoder builds it.

`Nips` and `Nature` are PAAC's two networks (Mnih et al. 2013 and 2015 with PAAC's sizes), `Impala` the residual network
of Espeholt et al. 2018 (figure 3, without the LSTM), `Mlp` everything that is not an image. A dict observation gets one
encoder per part; the features are concatenated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from greenroom import machine
from greenroom.errors import UserError
from greenroom.linear import Linear
from greenroom.spec import ArraySpec, ObsSpec
from greenroom.types import Obs


class _BySigmoid(torch.autograd.Function):
    """tanh(x) as 1 − 2·σ(−2x), the same to some 1e-7, in place; differentiated as tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _by_sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)  # type: ignore[no-any-return]  # operators have no annotations


# Numbers would have to be made tensors in every operation: on small layers half of the time.
_ONE, _MINUS_TWO = torch.tensor(1.0, device="cpu"), torch.tensor(-2.0, device="cpu")


def _by_sigmoid(x: Tensor) -> Tensor:
    return torch.mul(x, _MINUS_TWO).sigmoid_().mul_(_MINUS_TWO).add_(_ONE)


_QUICK = machine.quick_tanh()


class Tanh(nn.Module):
    """tanh. On most CPUs torch's own takes several times as long as a sigmoid: half of a small network's time."""

    def forward(self, x: Tensor) -> Tensor:
        """Of every element; `x` is not changed."""
        # Compiled it is not MKL's, and quicker by way of a sigmoid. (`is_compiling` is true in all threads at once.)
        if x.device.type != "cpu" or x.dtype != torch.float32 or (_QUICK and not torch.compiler.is_dynamo_compiling()):
            return x.tanh()
        if not torch.is_grad_enabled():
            return _by_sigmoid(x)
        return _BySigmoid.apply(x)  # type: ignore[no-any-return, no-untyped-call]  # no annotations of its own


Activation = Literal["tanh", "relu", "silu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


def _mlp(sizes: Iterable[int], activation: type[nn.Module], *, layer_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [Linear(fan_in, fan_out), *_norm(nn.LayerNorm(fan_out), layer_norm), activation()]
    return layers


def _norm(layer: nn.Module, wanted: bool) -> list[nn.Module]:
    return [layer] if wanted else []


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation of every pixel's channels, `[N, C, H, W]`, as in PQN's released code."""

    def forward(self, input: Tensor) -> Tensor:  # the parameter is named as in torch
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Fully connected layers on the flattened array."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    """Nonlinearity after each layer."""
    layer_norm: bool = False
    """Normalise each layer's outputs (Ba et al. 2016) before the nonlinearity, as PQN does."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"hidden must be one or more widths of at least 1, not {list(self.hidden)}")

    def build(self, spec: ArraySpec) -> tuple[nn.Module, int]:
        """The module `[N, *shape] → [N, features]`, and `features`."""
        sizes = (math.prod(spec.shape), *self.hidden)
        layers = _mlp(sizes, _ACTIVATIONS[self.activation], layer_norm=self.layer_norm)
        return nn.Sequential(nn.Flatten(), *layers), self.hidden[-1]


def _convolutions(
    layers: Iterable[tuple[int, int, int]], features: int, spec: ArraySpec, *, layer_norm: bool
) -> tuple[nn.Module, int]:
    """VALID convolutions (filters, kernel, stride) with ReLU, then one fully connected layer of `features`."""
    modules, channels = _picture(spec)
    for filters, kernel, stride in layers:
        modules += [nn.Conv2d(channels, filters, kernel, stride), *_norm(_ChannelNorm(filters), layer_norm), nn.ReLU()]
        channels = filters
    body = nn.Sequential(*modules, nn.Flatten())
    last = _mlp([_output_size(body, spec), features], nn.ReLU, layer_norm=layer_norm)
    return nn.Sequential(*body, *last), features


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def _picture(spec: ArraySpec) -> tuple[list[nn.Module], int]:
    """What brings a picture to `[N, C, H, W]`, and C."""
    if len(spec.shape) != 3:
        raise UserError(f"a convolutional network needs 3 axes (C, H, W), not {list(spec.shape)}; use --network mlp")
    return ([_ChannelsFirst()], spec.shape[2]) if spec.colour_last else ([], spec.shape[0])


def _output_size(body: nn.Module, spec: ArraySpec) -> int:
    try:
        with torch.no_grad():
            return int(body(torch.zeros(1, *spec.shape)).shape[1])
    except RuntimeError as problem:
        shape = list(spec.shape)
        raise UserError(f"observations of {shape} are too small for this network; use --network mlp") from problem


@dataclass(frozen=True, kw_only=True)
class Nips:
    """PAAC's arch_nips: 16×8×8/4 → 32×4×4/2 → 256."""

    layer_norm: bool = False
    """Normalise each layer's outputs before the nonlinearity: every pixel's channels, as PQN does."""

    def build(self, spec: ArraySpec) -> tuple[nn.Module, int]:
        """The module `[N, C, H, W] → [N, 256]`, and 256."""
        return _convolutions([(16, 8, 4), (32, 4, 2)], 256, spec, layer_norm=self.layer_norm)


@dataclass(frozen=True, kw_only=True)
class Nature:
    """PAAC's arch_nature: 32×8×8/4 → 64×4×4/2 → 64×3×3/1 → 512."""

    layer_norm: bool = False
    """Normalise each layer's outputs before the nonlinearity: every pixel's channels, as PQN does."""

    def build(self, spec: ArraySpec) -> tuple[nn.Module, int]:
        """The module `[N, C, H, W] → [N, 512]`, and 512."""
        return _convolutions([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512, spec, layer_norm=self.layer_norm)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


@dataclass(frozen=True, kw_only=True)
class Impala:
    """IMPALA's residual network: three sections of 16, 32 and 32 channels, two residual blocks each."""

    width: int = 1
    """Multiplies all channel counts."""
    features: int = 256
    """Size of the last layer."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.features < 1:
            raise UserError(f"width and features must be at least 1, not {self.width} and {self.features}")

    def build(self, spec: ArraySpec) -> tuple[nn.Module, int]:
        """The module `[N, C, H, W] → [N, features]`, and `features`."""
        modules, channels = _picture(spec)
        for filters in (16 * self.width, 32 * self.width, 32 * self.width):
            modules += [
                nn.Conv2d(channels, filters, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                _Residual(filters),
                _Residual(filters),
            ]
            channels = filters
        body = nn.Sequential(*modules, nn.ReLU(), nn.Flatten())
        return nn.Sequential(*body, Linear(_output_size(body, spec), self.features), nn.ReLU()), self.features


class NetworkConfig(Protocol):
    """What a network's config offers: a frozen dataclass that builds the encoder of one array."""

    def build(self, spec: ArraySpec) -> tuple[nn.Module, int]:
        """The module from float `[N, *spec.shape]` to `[N, features]`, and `features`.

        Raises:
            UserError: arrays of this shape are not for this network.
        """
        ...


class Encoder(nn.Module):
    """Features of a whole observation.

    In a dict observation, images go through `network` unless that is an `Mlp`, and then through `Nature`; all other
    parts through `network` if that is an `Mlp`, or one of the user's own and there are no images; else through a
    default `Mlp`.
    """

    def __init__(self, network: NetworkConfig, spec: ObsSpec) -> None:
        super().__init__()
        if not isinstance(spec, dict):
            module, self.features = network.build(spec)
            self.parts = nn.ModuleList([module])
            self.names: tuple[str, ...] = ()
            return
        images = any(part.is_image for part in spec.values())
        flat = network if isinstance(network, Mlp) or (of_ones_own(network) and not images) else Mlp()
        picture = Nature() if isinstance(network, Mlp) else network
        self.names = tuple(sorted(spec))
        built = [(picture if spec[name].is_image else flat).build(spec[name]) for name in self.names]
        self.parts = nn.ModuleList([module for module, _ in built])
        self.features = sum(size for _, size in built)

    def forward(self, obs: Obs) -> Tensor:
        """Float observation `[N, ...]` (one array or a dict) to `[N, features]`."""
        if isinstance(obs, dict):
            return torch.cat([part(obs[name]) for name, part in zip(self.names, self.parts, strict=True)], dim=-1)
        return self.parts[0](obs)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def of_ones_own(network: NetworkConfig) -> bool:
    """Whether it is none of greenroom's, and so may be for any kind of array."""
    return not isinstance(network, Mlp | Nips | Nature | Impala)


Initialisation = Literal["orthogonal", "fan_in"]


def initialise(module: nn.Module, rule: Initialisation, gain: float) -> None:
    """Set every weight of `module` in place.

    `orthogonal`: orthogonal weights of the given gain, zero biases. `fan_in`: weights *and* biases uniform within
    ±1/√fan_in (PAAC's released code; the gain is not used there). Recurrent layers always get orthogonal weights of
    gain 1 and zero biases.
    """
    for layer in module.modules():
        if isinstance(layer, nn.RNNCellBase):
            for name, part in layer.named_parameters():
                nn.init.zeros_(part) if name.startswith("bias") else nn.init.orthogonal_(part)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        assert layer.bias is not None
        if rule == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        else:
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
