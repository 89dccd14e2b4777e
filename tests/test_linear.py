"""Fully connected layers by way of oneDNN: torch's numbers, where torch's own way is slow and layers are large."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from greenroom import linear
from greenroom.linear import Linear

# Whatever this machine's processor: torch has the operator wherever it has oneDNN.
pytestmark = pytest.mark.skipif(not linear.HAS_ONEDNN, reason="needs a torch with oneDNN's products")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what goes by way of oneDNN, as on a processor that MKL neglects; there is no size too small."""
    shapes: list[tuple[int, ...]] = []
    by_onednn = linear._by_onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(x.shape))
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(linear, "_SLOW", True)
    monkeypatch.setattr(linear, "_LARGE", 0)
    monkeypatch.setattr(linear, "_by_onednn", noted)
    return shapes


def pair(in_features: int, out_features: int) -> tuple[Linear, nn.Linear]:
    """A layer of ours and one of torch's with the same weights."""
    own, plain = Linear(in_features, out_features), nn.Linear(in_features, out_features)
    plain.load_state_dict(own.state_dict())
    return own, plain


@pytest.mark.parametrize("sizes", [(64, 64), (4, 64), (64, 13), (64, 1), (1, 1), (300, 200)])
@pytest.mark.parametrize("whole", [True, False], ids=["any gradient", "an expanded gradient"])
def test_the_numbers_and_gradients_are_torchs(counted: list[Any], sizes: tuple[int, int], whole: bool) -> None:
    torch.manual_seed(0)
    (own, plain), x, weight = pair(*sizes), torch.randn(500, sizes[0]), torch.randn(500, sizes[1])
    found: list[list[Tensor]] = []
    for layer in (own, plain):
        given = x.clone().requires_grad_()
        output = layer(given)
        (output * weight if whole else output).sum().backward()
        grads = [given.grad, layer.weight.grad, layer.bias.grad]
        found.append([output.detach(), *(grad for grad in grads if grad is not None)])
    assert len(found[0]) == 4 and counted == [(500, sizes[0]), (500, sizes[1])]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert ours.is_contiguous()


def test_nothing_is_remembered_for_gradients_that_nobody_asks_for(counted: list[Any]) -> None:
    (own, plain), x = pair(6, 5), torch.randn(7, 6)
    with torch.no_grad():
        torch.testing.assert_close(own(x), plain(x))
    assert not own(x.detach()).is_leaf  # its weights want one
    own.requires_grad_(False)
    assert own(x).grad_fn is None
    assert len(counted) == 3


def test_what_is_not_a_batch_of_floats_goes_torchs_way(counted: list[Any]) -> None:
    own, plain = pair(6, 5)
    for x in (torch.randn(6), torch.randn(2, 3, 6)):
        assert torch.equal(own(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert own(torch.randn(4, 6)).dtype is torch.bfloat16
    assert own.double()(torch.randn(4, 6, dtype=torch.float64)).dtype is torch.float64
    assert counted == []


@pytest.mark.parametrize(("slow", "rows", "there"), [(True, 1024, True), (True, 1023, False), (False, 4096, False)])
def test_only_what_is_large_goes_there_and_only_where_mkl_is_slow(
    counted: list[Any], monkeypatch: pytest.MonkeyPatch, slow: bool, rows: int, there: bool
) -> None:
    monkeypatch.setattr(linear, "_SLOW", slow)
    monkeypatch.setattr(linear, "_LARGE", 2**16)
    for sizes in ((64, 8), (8, 64)):
        Linear(*sizes)(torch.randn(rows, sizes[0]))
    assert len(counted) == (2 if there else 0)


def test_weights_are_named_as_torchs_are() -> None:
    assert Linear(2, 3).state_dict().keys() == nn.Linear(2, 3).state_dict().keys()
