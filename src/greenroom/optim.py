"""From a loss to new weights: optimisers, the learning rate's dependence on actors and time, and gradient clipping."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from greenroom.errors import UserError
from greenroom.maths.schedules import ScalingRule, linear_decay, scaled_learning_rate


class _Prompt(torch.optim.Optimizer):
    """An optimiser of torch's that is there at once.

    Some of torch's methods are hidden from its compiler, and import that when they are called: most of a second of a
    run's start. What lies beneath (`inspect.unwrap`) is the method itself.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more parameters."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)


class RMSpropTF(_Prompt):
    """TensorFlow 1's RMSProp: `ms ← decay·ms + (1-decay)·g²`, `p ← p - lr·g/√(ms+eps)`, `ms` starting at 1.

    `torch.optim.RMSprop` is another optimiser: it adds eps outside the root and starts at 0. With PAAC's eps of 0.1 and
    small gradients its steps are 3.2 times larger, and at the start, where `ms` is still 1, ten times.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, decay: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures
        """One update of all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["mean_square"] = torch.ones_like(p)
            slots = [self.state[p]["mean_square"] for p in params]
            torch._foreach_mul_(slots, group["decay"])
            torch._foreach_addcmul_(slots, grads, grads, 1.0 - group["decay"])
            root = torch._foreach_add(slots, group["eps"])
            torch._foreach_sqrt_(root)
            torch._foreach_addcdiv_(params, grads, root, -group["lr"])


class FusedAdam(_Prompt, torch.optim.Adam):
    """torch's fused Adam for parameters that are all on one device, the same bits by a shorter way to its kernel.

    On small networks torch's own way there takes several times as long as the kernel.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, eps: float) -> None:
        super().__init__(params, lr=lr, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures
        """One update of all parameters that have a gradient."""
        assert closure is None
        group, params, slots = _due(self)
        if not all(slots):
            inspect.unwrap(torch.optim.Adam.step)(self)  # which fills them
            return
        steps = [slot["step"] for slot in slots]
        torch._foreach_add_(steps, 1)
        _adam(group, params, slots, steps, lr=group["lr"], eps=group["eps"])


class FusedRAdam(_Prompt, torch.optim.RAdam):
    """torch's RAdam to within rounding, by the kernel of its fused Adam; parameters that are all on one device.

    After the first few updates RAdam is Adam with the learning rate times r and ε over the root of 1 - β₂ᵗ, where r
    rectifies the second moment's variance (Liu et al. 2020, algorithm 2). torch's own passes over all parameters a
    dozen times for it.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, eps: float) -> None:
        super().__init__(params, lr=lr, eps=eps, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures
        """One update of all parameters that have a gradient."""
        assert closure is None
        group, params, slots = _due(self)
        done = {int(slot["step"]) if slot else 0 for slot in slots}
        r = rectification(min(done, default=0) + 1, group["betas"][1])
        if len(done) != 1 or r is None:
            inspect.unwrap(torch.optim.RAdam.step)(self)
            return
        steps = [slot["step"] for slot in slots]
        torch._foreach_add_(steps, 1)
        count = done.pop() + 1
        # Counted on the processor, where nobody has to wait to read it; the kernel wants it where the parameters are.
        there = [torch.full((), float(count), device=params[0].device)] * len(params)
        eps = group["eps"] / math.sqrt(1.0 - group["betas"][1] ** count)
        _adam(group, params, slots, there, lr=group["lr"] * r, eps=eps)


def _due(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], list[Tensor], list[dict[str, Tensor]]]:
    """The only group, its parameters that have a gradient, and what is kept of each (at first nothing)."""
    (group,) = optimizer.param_groups
    params = [p for p in group["params"] if p.grad is not None]
    return group, params, [optimizer.state[p] for p in params]


def rectification(step: int, beta2: float) -> float | None:
    """r of RAdam's update number `step`, from 1 on (Liu et al. 2020, algorithm 2); None: too early for a variance."""
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / (1.0 - beta2**step)
    if length <= 5.0:
        return None
    return math.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))


def _adam(
    group: dict[str, Any],
    params: list[Tensor],
    slots: list[dict[str, Tensor]],
    steps: list[Tensor],
    *,
    lr: float,
    eps: float,
) -> None:
    """Adam's update number `steps` (Kingma & Ba 2015), in one kernel."""
    torch._fused_adam_(
        params,
        [p.grad for p in params if p.grad is not None],
        [slot["exp_avg"] for slot in slots],
        [slot["exp_avg_sq"] for slot in slots],
        [],
        steps,
        lr=lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def clip_grad_norm(params: Iterable[torch.nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of parameters on one device down to a global norm of `max_norm`; the norm before that.

    torch's `clip_grad_norm_`, the same bits at half the cost on small networks.
    """
    grads = [p.grad for p in params if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate depends on the number of actors and on time."""

    scaling: ScalingRule = "constant"
    """`constant`, or a rate per actor that grows with `num_envs`: `linear` (PAAC), `sqrt`, `capped`; equal at 32."""
    anneal: bool = True
    """Let the learning rate fall linearly to zero."""
    anneal_steps: int = 0
    """Environment steps at which zero is reached; 0: at the end of the run."""

    def __post_init__(self) -> None:
        if self.anneal_steps < 0:
            raise UserError(f"anneal_steps must be at least 0, not {self.anneal_steps}")

    def at(self, base: float, env_steps: int, *, num_envs: int, total_steps: int) -> float:
        """The learning rate after `env_steps` of a run of `total_steps`."""
        rate = scaled_learning_rate(base, num_envs, self.scaling)
        return rate * linear_decay(env_steps, self.anneal_steps or total_steps) if self.anneal else rate


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015), as torch implements it."""

    learning_rate: float = 3e-4
    """Size of the updates; per actor unless `scaling` is `constant`."""
    schedule: Schedule = Schedule()
    """How the learning rate depends on the number of actors and on time."""
    eps: float = 1e-5
    """Added to the root of the second moment."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate, eps=self.eps, max_grad_norm=self.max_grad_norm)

    def build(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `params`."""
        return FusedAdam(params, lr=self.learning_rate, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class RAdam:
    """Rectified Adam (Liu et al. 2020) with torch's details: PQN's optimiser."""

    learning_rate: float = 2.5e-4
    """Size of the updates; per actor unless `scaling` is `constant`."""
    schedule: Schedule = Schedule()
    """How the learning rate depends on the number of actors and on time."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate, eps=self.eps, max_grad_norm=self.max_grad_norm)

    def build(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `params`."""
        return FusedRAdam(params, lr=self.learning_rate, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class RMSprop:
    """TensorFlow 1's RMSProp, which PAAC's figures were made with (see `RMSpropTF`)."""

    learning_rate: float = 0.0007
    """Size of the updates; per actor unless `scaling` is `constant`."""
    schedule: Schedule = Schedule(scaling="linear")
    """How the learning rate depends on the number of actors and on time."""
    decay: float = 0.99
    """Of the running mean of squared gradients."""
    eps: float = 0.1
    """Added *inside* the root."""
    max_grad_norm: float = 3.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        _check_positive(learning_rate=self.learning_rate, eps=self.eps, max_grad_norm=self.max_grad_norm)
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"decay must lie in [0, 1), not {self.decay}")

    def build(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `params`."""
        return RMSpropTF(params, lr=self.learning_rate, decay=self.decay, eps=self.eps)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:  # NaN included
            raise UserError(f"{name} must be greater than 0, not {value}")


class OptimizerConfig(Protocol):
    """What an optimiser's config offers."""

    @property
    def learning_rate(self) -> float:
        """Size of the updates."""
        ...

    @property
    def schedule(self) -> Schedule:
        """How the learning rate depends on the number of actors and on time."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Gradients are scaled down to this global norm."""
        ...

    def build(self, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over `params`."""
        ...


class Updater:
    """Owns the optimiser of one set of parameters and the clock of its schedule: loss in, new weights out."""

    def __init__(self, config: OptimizerConfig, module: torch.nn.Module, *, num_envs: int, total_steps: int) -> None:
        self.config = config
        self.num_envs, self.total_steps = num_envs, total_steps
        self.named = list(module.named_parameters())
        self.params = [param for _, param in self.named]
        self.optimizer = config.build(self.params)
        self.env_steps = 0
        self.scale = 1.0
        """Multiplies the scheduled learning rate: what an operator or a health check changes while a run goes on."""

    @property
    def learning_rate(self) -> float:
        """The rate that the next `advance` sets."""
        schedule, base = self.config.schedule, self.config.learning_rate
        return self.scale * schedule.at(base, self.env_steps, num_envs=self.num_envs, total_steps=self.total_steps)

    def advance(self, env_steps: int) -> Tensor:
        """Set the learning rate by the clock, then move the clock on by `env_steps`. Returns the rate."""
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.env_steps += env_steps
        return torch.tensor(rate)

    def step(self, loss: Tensor) -> Tensor:
        """One update. Returns the gradient's global norm before clipping, a scalar on the device."""
        for param in self.params:
            param.grad = None
        loss.backward()
        norm = clip_grad_norm(self.params, self.config.max_grad_norm)
        self.optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Optimiser slots by parameter name, the clock, and the scale."""
        slots = {name: dict(self.optimizer.state[param]) for name, param in self.named if param in self.optimizer.state}
        return {"slots": slots, "env_steps": self.env_steps, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with saved slots, and with none where none were saved."""
        self.env_steps = state["env_steps"]
        self.scale = state.get("scale", 1.0)  # checkpoints of version 0.1.0 have none
        self.optimizer.state.clear()
        for name, param in self.named:
            if name in state["slots"]:
                self.optimizer.state[param] = {
                    key: self._slot(param, value) for key, value in state["slots"][name].items()
                }

    def _slot(self, param: torch.nn.Parameter, saved: Tensor) -> Tensor:
        """A slot of the parameter's shape takes its device and memory layout too; a counter is where torch puts it."""
        if saved.shape == param.shape:
            return torch.empty_like(param).copy_(saved)
        # A fused kernel reads it on the parameter's device, the others on the processor.
        return saved.to(param.device, copy=True) if self.optimizer.defaults.get("fused") else saved.clone()
