"""A make-believe accelerator: tensors that say they are on another device, and refuse what a GPU would refuse.

`with Elsewhere(monkeypatch) as accelerator:` makes the device "meta" one that computes, on this processor. What an
operation needs must be there too, or it raises, as on a GPU; whoever makes the processor wait is written down: for a
result, or for a copy to the device that it has not been told not to wait for (from memory that is pinned, on a GPU).
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import greenroom

DEVICE = torch.device("meta")
_PACKAGE = str(Path(greenroom.__file__).parent)
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item")
"""Operations after which the processor knows something that the device has computed."""
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
"""They wait where an index is a mask."""
_MIXES = (*_INDEXING, "copy_", "_to_copy")
"""Operations whose arguments may be on both."""


class _There(torch.Tensor):
    """A tensor on the accelerator."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        made: _There = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        """torch itself refuses it for other kinds of tensors than its own."""
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was called outside the accelerator's context")


class Elsewhere(TorchDispatchMode):
    """While it is entered, the device `DEVICE` computes.

    Args:
        monkeypatch: makes generators that say they are there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        """Where the processor waited for the device: the innermost line of greenroom's, each time."""
        monkeypatch.setattr(torch, "Generator", _Generator)
        monkeypatch.setattr(torch, "tensor", _tensor)  # of "meta" it would not ask anybody
        # torch's fused optimisers ask for the device's name.
        monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        parts = tree_flatten((args, kwargs))[0]
        there = [part for part in parts if isinstance(part, _There)]
        made_there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE.type
        name = func._schema.name.removeprefix("aten::")
        if there and name not in _MIXES:
            here = [part for part in parts if isinstance(part, Tensor) and not isinstance(part, _There)]
            # Single numbers may be here, but not those that a fused optimiser's kernel reads.
            lost = [part for part in here if part.dim() or name.startswith("_fused")]
            assert not lost, f"{func}: {len(lost)} of its tensors are on the processor, {len(there)} on the device"
        masks = name in _INDEXING and any(
            part.dtype == torch.bool for part in tree_flatten(args[1])[0] if part is not None
        )
        comes_back = name == "copy_" and not isinstance(args[0], _There)
        comes_back |= name == "_to_copy" and kwargs.get("device") is not None and not made_there
        goes_there = name == "copy_" and isinstance(args[0], _There) and not isinstance(args[1], _There)
        goes_there |= name == "_to_copy" and made_there and not there
        goes_there &= not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        # Of nothing no copy is made.
        if goes_there and args[1 if name == "copy_" else 0].numel():
            self.waits.append(_whose())
        if there and ((comes_back and there[0].numel()) or masks or name in _WAITS):
            self.waits.append(_whose())
        if made_there:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        out = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if comes_back or out is None or not (there or made_there):
            return out
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return kwargs["out"] if "out" in kwargs else tree_map(_wrapped, out)


_REAL_TENSOR = torch.tensor


def _tensor(
    data: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    pin_memory: bool = False,  # there is nothing to pin for
) -> Tensor:
    made = _REAL_TENSOR(data, dtype=dtype)
    return made if device is None else made.to(device)


def _here(part: Any) -> Any:
    return part.here if isinstance(part, _There) else part


def _wrapped(part: Any) -> Any:
    return _There(part) if isinstance(part, Tensor) else part


def _whose() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE)]
    return f"{frames[-1].name}: {frames[-1].line}" if frames else "a test"


class _Generator(torch.Generator):
    """One that says it is where it was asked to be, and is on the processor."""

    where: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.where = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute there
        """Where it says it is."""
        return self.where
