"""Optimisers: TensorFlow's RMSProp against its formula, how it differs from torch's, clipping, and the clock."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from greenroom.errors import UserError
from greenroom.optim import (
    Adam,
    FusedAdam,
    OptimizerConfig,
    RAdam,
    RMSprop,
    RMSpropTF,
    Schedule,
    Updater,
    clip_grad_norm,
    rectification,
)


def test_rmsprop_follows_the_formula() -> None:
    """Step by step in float64: ms ← 0.99 ms + 0.01 g², p ← p − lr·g / √(ms + ε), ms starting at 1."""
    source = torch.Generator().manual_seed(0)
    start = (torch.randn(3, 2, dtype=torch.float64, generator=source), torch.zeros(4, dtype=torch.float64))
    params = [nn.Parameter(part.clone()) for part in start]
    optimizer = RMSpropTF(params, lr=0.0224, decay=0.99, eps=0.1)
    flat = [part.flatten().tolist() for part in start]
    slots = [[1.0] * len(part) for part in flat]
    for _ in range(25):
        for param in params:
            param.grad = 3 * torch.randn(param.shape, dtype=torch.float64, generator=source)
        for part, slot, param in zip(flat, slots, params, strict=True):
            assert param.grad is not None
            for i, g in enumerate(param.grad.flatten().tolist()):
                slot[i] = 0.99 * slot[i] + 0.01 * g * g
                part[i] -= 0.0224 * g / math.sqrt(slot[i] + 0.1)
        optimizer.step()
        for part, param in zip(flat, params, strict=True):
            assert param.detach().flatten().tolist() == pytest.approx(part, rel=1e-12)


def test_rmsprop_leaves_parameters_without_a_gradient_alone() -> None:
    still, moving = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMSpropTF([still, moving], lr=0.1, decay=0.9, eps=0.1)
    moving.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0]
    assert moving.tolist() == pytest.approx([1 - 0.1 / math.sqrt(1.1)] * 2)


def move(optimizer: torch.optim.Optimizer, param: nn.Parameter, gradient: float) -> float:
    before = param.item()
    param.grad = torch.full_like(param, gradient)
    optimizer.step()
    return before - param.item()


def test_torch_s_rmsprop_is_another_optimiser() -> None:
    """With ε = 0.1 and small gradients: √0.1/0.1 = 3.16 times larger, at the start √1.09/0.1 = 10.4 times."""
    one, other = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))
    ours = RMSpropTF([one], lr=1.0, decay=0.99, eps=0.1)
    theirs = torch.optim.RMSprop([other], lr=1.0, alpha=0.99, eps=0.1)
    gradient = 1e-4
    assert move(theirs, other, gradient) / move(ours, one, gradient) == pytest.approx(math.sqrt(1.09) / 0.1, rel=1e-3)
    for _ in range(2000):
        ratio = move(theirs, other, gradient) / move(ours, one, gradient)
    assert ratio == pytest.approx(math.sqrt(0.1) / 0.1, rel=0.01)


def test_adam_and_clipping_are_torch_s_to_the_bit() -> None:
    """Also where a parameter has no gradient at first, or in between."""
    source = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=source) for shape in ((64, 4), (64,), (3, 2, 2, 2))]
    ours, theirs = ([nn.Parameter(part.clone()) for part in start] for _ in range(2))
    optimizer = FusedAdam(ours, lr=0.01, eps=1e-5)
    reference = torch.optim.Adam(theirs, lr=0.01, eps=1e-5, fused=True)
    for update in range(12):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.01 / (1 + update)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(one.shape, generator=source) * 10.0 ** (update % 3 - 1)
            absent = number == 1 and update in (0, 1, 5)
            one.grad, other.grad = (None, None) if absent else (gradient, gradient.clone())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 5.0)
        assert torch.equal(clip_grad_norm(ours, 5.0), norm)
        optimizer.step()
        reference.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("late", [0, 2])
def test_radam_is_torch_s_to_within_rounding(late: int) -> None:
    """From the first updates, which have no variance yet; also where a parameter has no gradient at first, or never."""
    source = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, dtype=torch.float64, generator=source) for shape in ((8, 4), (8,), (3, 2), (2,))]
    ours, theirs = ([nn.Parameter(part.clone()) for part in start] for _ in range(2))
    optimizer, reference = RAdam(eps=1e-3).build(ours), torch.optim.RAdam(theirs, eps=1e-3)
    for update in range(20):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.1 / (1 + update)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(one.shape, dtype=torch.float64, generator=source) * 10.0 ** (update % 3 - 1)
            absent = number == 3 or (number == 1 and update < late)
            one.grad, other.grad = (None, None) if absent else (gradient, gradient.clone())
        optimizer.step()
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours[3], start[3])


def test_rectification_begins_at_the_sixth_update_and_ends_at_one() -> None:
    """Liu et al. 2020 with β₂ = 0.999: ρ₆ is the first above 5; by hand, r₆ = √((ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ))."""
    assert [rectification(step, 0.999) for step in range(1, 6)] == [None] * 5
    rho = 1999.0 - 2 * 6 * 0.999**6 / (1 - 0.999**6)
    by_hand = math.sqrt((rho - 4) * (rho - 2) * 1999 / (1995 * 1997 * rho))
    assert rectification(6, 0.999) == pytest.approx(by_hand, rel=1e-12)
    assert rectification(100_000, 0.999) == pytest.approx(1.0, abs=1e-6)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def updater(config: OptimizerConfig, module: nn.Module, **changes: int) -> Updater:
    return Updater(config, module, **({"num_envs": 4, "total_steps": 1000} | changes))


def loss_of(module: nn.Linear) -> Tensor:
    loss: Tensor = module(torch.tensor([[1.0, -2.0, 0.5]])).square().sum()
    return loss


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_gradients_are_clipped_to_the_global_norm(limit: float) -> None:
    """With a huge ε, RMSProp is gradient descent at a thousandth of the rate: the step's norm is the clipped one."""
    module, reference = linear(), linear()
    loss_of(reference).backward()
    gradient = torch.cat([param.grad.flatten() for param in reference.parameters() if param.grad is not None])
    norm = float(gradient.norm())
    config = RMSprop(learning_rate=1.0, decay=0.0, eps=1e6, max_grad_norm=limit, schedule=Schedule(anneal=False))
    one = updater(config, module)
    one.advance(0)
    assert one.step(loss_of(module)).item() == pytest.approx(norm)
    pairs = zip(reference.parameters(), module.parameters(), strict=True)
    step = torch.cat([(before - after).detach().flatten() for before, after in pairs]) * 1e3
    assert float(step.norm()) == pytest.approx(min(norm, limit), rel=1e-3)
    torch.testing.assert_close(step / step.norm(), gradient / gradient.norm(), rtol=1e-3, atol=1e-4)


def test_the_clock_sets_the_rate() -> None:
    """PAAC's rule on 32 actors: 0.0224, falling to zero, and never below."""
    one = updater(RMSprop(schedule=Schedule(scaling="linear")), linear(), num_envs=32, total_steps=800)
    rates = []
    for _ in range(7):
        rates.append(one.advance(160).item())
        assert one.optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1])
    assert rates == pytest.approx([0.0224, 0.01792, 0.01344, 0.00896, 0.00448, 0.0, 0.0])


def test_nothing_moves_once_the_rate_is_zero() -> None:
    module = linear()
    one = updater(RMSprop(), module, total_steps=10)
    one.advance(10)
    one.advance(10)
    before = copy.deepcopy(module.state_dict())
    one.step(loss_of(module))
    assert all(torch.equal(part, before[name]) for name, part in module.state_dict().items())


@pytest.mark.parametrize("config", [Adam(), RMSprop()])
def test_saved_slots_continue_the_same_steps(config: OptimizerConfig) -> None:
    module = linear()
    one = updater(config, module)
    for _ in range(3):
        one.advance(100)
        one.step(loss_of(module))
    other_module = linear(seed=1)
    other_module.load_state_dict(module.state_dict())
    other = updater(config, other_module)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(3):
        assert torch.equal(one.advance(100), other.advance(100))
        assert torch.equal(one.step(loss_of(module)), other.step(loss_of(other_module)))
    for name, part in module.state_dict().items():
        assert torch.equal(part, other_module.state_dict()[name])


def test_slots_take_the_parameter_s_memory_layout() -> None:
    """A checkpoint's tensors are contiguous; convolutional weights may be channels-last."""
    module = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated
    one = updater(Adam(), module)
    one.advance(1)
    one.step(module(torch.ones(1, 4, 5, 5)).sum())
    state = one.state_dict()
    contiguous = {name: {k: v.contiguous() for k, v in slot.items()} for name, slot in state["slots"].items()}
    other = updater(Adam(), module)
    other.load_state_dict({"slots": contiguous, "env_steps": 1})
    slot = other.optimizer.state[module.weight]
    assert slot["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(slot["exp_avg"], state["slots"]["weight"]["exp_avg"])
    assert slot["step"].item() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0, not 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be greater than 0, not nan"),
        ({"eps": -1.0}, "eps must be greater than 0, not -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be greater than 0, not 0.0"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RMSprop(**values)  # type: ignore[arg-type]  # all of them are numbers
    if "decay" not in values:
        for kind in (Adam, RAdam):
            with pytest.raises(UserError, match=message):
                kind(**values)  # type: ignore[arg-type]
