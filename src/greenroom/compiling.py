"""`--compile`: marked methods go through torch.compile, which makes one kernel of many small operations.

What an algorithm marks is the way from a batch to its loss, of which torch then compiles the backward pass as well.
Where every operation is a kernel to launch, acting is compiled too, but for its draws; a processor gains nothing by it.
Targets and optimisers stay as they are. Compiled arithmetic rounds differently, and repeats bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch

from greenroom.errors import UserError
from greenroom.policy import Trainee
from greenroom.types import Decision, Obs, State

_MARK = "greenroom_compilable"
F = TypeVar("F", bound=Callable[..., object])


def compilable(method: F) -> F:
    """Mark a method for `--compile`: from tensors to tensors, without draws, and changing nothing."""
    setattr(method, _MARK, True)
    return method


def compile_marked(algorithm: object, device: torch.device) -> None:
    """Compile what is marked in an algorithm and in its parts; it happens when they are first called.

    Args:
        algorithm: whose class, or whose attributes' classes, have methods marked `compilable`.
        device: where it computes.

    Raises:
        UserError: nothing is marked, or torch cannot compile here.
    """
    found = [place for owner in (algorithm, *vars(algorithm).values()) for place in _marked(owner)]
    if not found:
        raise UserError(
            f"--compile: {type(algorithm).__qualname__} has marked nothing; see `compilable` in docs/extend.md"
        )
    if reason := why_not(device):
        raise UserError(
            f"--compile: torch cannot compile on {device.type} here ({reason}); on a processor it needs a C++ compiler "
            "(g++ or clang++), on a GPU triton. Leave --compile out, or install them"
        )
    for owner, name in found:
        setattr(owner, name, _compiled(getattr(owner, name)))


class CompiledActor:
    """A policy that acts compiled; its weights stay the policy's own.

    Args:
        policy: whose `act` may be decorated with `torch.no_grad()` and with nothing else.
    """

    def __init__(self, policy: Trainee) -> None:
        self._policy = policy
        # Without its decorator, whose code all policies share.
        self._act: Callable[..., Decision] = _compiled(MethodType(inspect.unwrap(type(policy).act), policy))

    @property
    def remembers(self) -> bool:
        """As the policy."""
        return self._policy.remembers

    def initial_state(self, num_envs: int) -> State:
        """The policy's."""
        return self._policy.initial_state(num_envs)

    @torch.no_grad()
    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        """The policy's decision, to within rounding, by the same draws."""
        return self._act(obs, state, generator)


def _compiled(method: MethodType) -> Callable[..., Any]:
    # Sizes as variables: batches of any number of rows, and a resumed run's, then go through the same kernels.
    return torch.compile(_own_copy(method), dynamic=True)


def _marked(owner: object) -> Iterator[tuple[object, str]]:
    kind = type(owner)
    return ((owner, name) for name in dir(kind) if getattr(getattr(kind, name, None), _MARK, False))


def _own_copy(method: MethodType) -> MethodType:
    """With code of its own: of the same code torch compiles eight versions at most, and every object makes one."""
    plain: FunctionType = method.__func__  # type: ignore[assignment]  # a method's function is a plain one
    copy = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    return MethodType(copy, method.__self__)


def why_not(device: torch.device) -> str | None:
    """Why torch cannot compile for `device` here, found out by compiling something small; None: it can."""
    try:
        torch.compile(lambda x: (x + 1.0).tanh())(torch.zeros(64, device=device))
    except Exception as problem:  # whatever torch, the compiler or the system find
        return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    return None
