"""Fully connected layers: `torch.nn.Linear`, by way of oneDNN where that multiplies faster than MKL.

torch multiplies float32 matrices by MKL, which has AVX512 for Intel's processors only. oneDNN, by which torch convolves
on all of them, makes no such difference. Its product is reached by the operator that torch's compiler uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from greenroom import machine

HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this torch has the operator."""
_SLOW = HAS_ONEDNN and machine.slow_products()
_LARGE = 2**16
"""Elements of a layer's inputs or outputs from which on the way to oneDNN, which is longer, pays."""


class Linear(nn.Linear):
    """The same numbers as torch's, but for rounding."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._widest = max(in_features, out_features)

    def forward(self, input: Tensor) -> Tensor:  # the parameter is named as in torch
        """`[N, in_features]` to `[N, out_features]`."""
        # What is small, as most is, must not wait for more than one question.
        if not (_SLOW and input.shape[0] * self._widest >= _LARGE and _of_floats(input)):
            return linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return _product(input, self.weight, self.bias)
        return _Product.apply(input, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]  # not annotated


def _of_floats(x: Tensor) -> bool:
    on_processor = x.device.type == "cpu" and x.dtype is torch.float32
    return on_processor and x.dim() == 2 and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        return torch.ops.greenroom.product(x, weight, bias)  # type: ignore[no-any-return]  # operators are not annotated
    return _by_onednn(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]  # as above


# torch's compiler takes that operator for its own, and its weights for constants. One of ours it leaves alone.
_OPERATORS = torch.library.Library("greenroom", "DEF")
_OPERATORS.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_OPERATORS.impl("product", _by_onednn, "CPU")
_OPERATORS.impl("product", lambda x, weight, bias: x.new_empty((x.shape[0], weight.shape[0])), "Meta")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if of_x else None,
            _of_weight(grad, x) if of_weight else None,
            grad.sum(dim=0) if of_bias else None,
        )


def _of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """`gradᵀ · x`, by MKL: long matrices are as quick there, the narrower one first."""
    return grad.t() @ x if grad.shape[1] <= x.shape[1] else (x.t() @ grad).t().contiguous()
