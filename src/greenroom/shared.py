"""Memory that two processes map, and messages between them in which a tensor that lies there is only pointed to."""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Address(NamedTuple):
    """Where a tensor lies."""

    offset: int
    """Of its block in the file, in bytes."""
    size: int
    """Of its block, in bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    """First element in its block."""


class SharedMemory:
    """Tensors in one file without a name, on the processor.

    Any process that holds the file may make new ones, but no two at the same time.

    Args:
        descriptor: of the file, at first empty; it stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._blocks: dict[int, tuple[int, Tensor]] = {}
        """Address → offset in the file, and bytes: as far as they are mapped here."""
        self._known: dict[Address, Tensor] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor. Its memory is given back when no process holds the file any longer."""
        count = math.prod(shape)
        offset, size = os.fstat(self._descriptor).st_size, max(1, count) * dtype.itemsize
        os.ftruncate(self._descriptor, offset + -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
        return self._mapped(offset, size).view(dtype)[:count].view(tuple(shape))

    def _mapped(self, offset: int, size: int) -> Tensor:
        block = torch.frombuffer(mmap.mmap(self._descriptor, size, offset=offset), dtype=torch.uint8)
        self._blocks[block.data_ptr()] = offset, block
        return block

    def pack(self, message: Any) -> bytes:
        """`message` as bytes for `unpack`: tensors that lie here, or are views of such, are not copied."""
        written = io.BytesIO()
        _Packer(written, self).dump(message)
        return written.getvalue()

    def unpack(self, packed: bytes) -> Any:
        """What was packed, in this process or another one. Tensors that were pointed to are the shared ones."""
        return _Unpacker(io.BytesIO(packed), self).load()

    def address_of(self, tensor: Tensor) -> Address | None:
        """Where it lies; None: not here."""
        found = self._blocks.get(tensor.untyped_storage().data_ptr())
        if found is None:
            return None
        offset, block = found
        start = int(tensor.storage_offset())
        return Address(offset, len(block), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), start)

    def at(self, address: Address) -> Tensor:
        """The tensor that lies there, each time the same object."""
        if address not in self._known:
            block = self._mapped(address.offset, address.size).view(address.dtype)
            self._known[address] = block.as_strided(address.shape, address.strides, address.start)
        return self._known[address]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, memory: SharedMemory) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._memory = memory

    def persistent_id(self, obj: Any) -> Any:
        """Of a tensor. Other ones go as numpy's: torch's own way takes tens of times as long for a small one."""
        if type(obj) is not Tensor or obj.device.type != "cpu":
            return None
        address = self._memory.address_of(obj)
        if address is None and obj.dtype is not torch.bfloat16:  # which numpy does not have
            return obj.detach().numpy()
        return address


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memory: SharedMemory) -> None:
        super().__init__(file)
        self._memory = memory

    def persistent_load(self, pid: Any) -> Tensor:
        """What `_Packer.persistent_id` stands for."""
        return self._memory.at(pid) if isinstance(pid, Address) else torch.from_numpy(pid)
