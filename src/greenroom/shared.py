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

_LINE = 64
"""Bytes of a cache line: no two tensors share one."""
_LEAST = 2**20
"""Bytes of a block. Each is at least twice as large as the one before: a block needs a descriptor, and only what is
written to needs memory."""


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
        self._blocks: dict[int, Tensor] = {}
        """Offset in the file → bytes, as far as they are mapped here …"""
        self._offsets: dict[int, int] = {}
        """… and where in this process they begin → offset."""
        self._known: dict[Address, Tensor] = {}
        self._own, self._used = torch.empty(0, dtype=torch.uint8), 0
        """The block that new tensors go to, and how much of it they have."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new tensor. Its memory is given back when no process holds the file any longer."""
        size = math.prod(shape) * dtype.itemsize
        if self._used + size > len(self._own):
            offset = os.fstat(self._descriptor).st_size
            wanted = max(size, _LEAST, 2 * len(self._own))
            length = -(-wanted // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            os.ftruncate(self._descriptor, offset + length)
            self._own, self._used = self._mapped(offset, length), 0
        part = self._own[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return part.view(dtype).view(tuple(shape))

    def _mapped(self, offset: int, size: int) -> Tensor:
        if offset not in self._blocks:
            block = torch.frombuffer(mmap.mmap(self._descriptor, size, offset=offset), dtype=torch.uint8)
            self._blocks[offset], self._offsets[block.data_ptr()] = block, offset
        return self._blocks[offset]

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
        offset = self._offsets.get(tensor.untyped_storage().data_ptr())
        if offset is None:
            return None
        shape, strides, start = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        return Address(offset, len(self._blocks[offset]), tensor.dtype, shape, strides, start)

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
