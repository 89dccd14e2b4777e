"""A JSON manifest and the tensors that it names, as files of one folder: durable when written, verified when read.

- Small tensors share one safetensors file.
- Each large one has a file of its own. A replay may be most of the machine's memory, so these are written piece by
  piece, and read back by mapping the file: no copy is ever made of them.
- The manifest holds the other files' sizes and SHA-256, the format's version, and the SHA-256 of its own body.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from greenroom.errors import UserError
from greenroom.folder import sync

FORMAT = 2
"""The version of the layout described above. Raise it when a reader of the old layout would go wrong. Version 1 had no
files for large tensors; it is still read."""

LARGE = 16 * 2**20
"""Bytes from which on a tensor gets a file of its own; also the size of the pieces in which it is written."""

NONSENSE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError, SafetensorError)
"""What reading a manifest leads to that has a right checksum, but that no greenroom wrote."""

_ENVELOPE = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "body":\n(.*)\n\}\n', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where the files are; several archives may share a folder."""

    folder: Path
    """A checkpoint's."""
    manifest: str
    """The manifest's name."""
    small: str
    """Name of the file of small tensors."""
    large: str
    """Large tensors are in files of this name, followed by `_0.bin`, `_1.bin`, …"""

    @property
    def exists(self) -> bool:
        """Whether there is a manifest, sound or not."""
        try:
            (self.folder / self.manifest).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # to read it tells why it cannot be read
        return True

    @property
    def files(self) -> list[Path]:
        """All files of the archive that are there, the manifest first."""
        named = [path for path in (self.folder / self.manifest, self.folder / self.small) if path.exists()]
        return named + sorted(self.folder.glob(f"{self.large}_*.bin"))

    def write(self, content: dict[str, object], tensors: dict[str, Tensor]) -> None:
        """Write all files; they are on the disk when this returns, but for their names in the folder."""
        large = {name: tensor for name, tensor in tensors.items() if tensor.nbytes >= LARGE}
        small = {name: tensor for name, tensor in tensors.items() if name not in large}
        file = self.folder / self.small
        safetensors.torch.save_file(_apart(small), file)
        with file.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        sync(file)
        manifest = {
            "format": FORMAT,
            "tensors": {"bytes": file.stat().st_size, "sha256": checksum},
            "large": {
                name: _write_large(self.folder / f"{self.large}_{number}.bin", tensor)
                for number, (name, tensor) in enumerate(large.items())
            },
        }
        body = json.dumps(manifest | content, allow_nan=False).encode()
        with (self.folder / self.manifest).open("wb") as stream:
            stream.write(b'{"sha256": "%s", "body":\n%s\n}\n' % (hashlib.sha256(body).hexdigest().encode(), body))
        sync(self.folder / self.manifest)

    def read(self) -> tuple[dict[str, Any], Callable[[str], Tensor]]:
        """The manifest, and a function that gives a tensor by its name. Large ones are read when they are asked for.

        Large tensors are the file's own pages: memory is used as they are touched, writing to one leaves the file
        alone, and deleting the file meanwhile does no harm.

        Raises:
            UserError: something is damaged, or of a newer format; so does the function.
        """
        manifest = self._read_manifest()
        self._verify(self.small, manifest["tensors"])
        tensors = safetensors.torch.load((self.folder / self.small).read_bytes())

        def tensor(name: str) -> Tensor:
            if name not in tensors:
                tensors[name] = self._map(manifest["large"][name])
            return tensors[name]

        return manifest, tensor

    @property
    def is_complete(self) -> bool:
        """Cheap: the manifest is verified, of the other files only the sizes."""
        try:
            manifest = self._read_manifest()
            sizes = {self.small: manifest["tensors"]["bytes"]}
            sizes |= {entry["file"]: entry["bytes"] for entry in manifest["large"].values()}
            return all((self.folder / name).stat().st_size == size for name, size in sizes.items())
        except (UserError, OSError, *NONSENSE):
            return False

    def _read_manifest(self) -> dict[str, Any]:
        """The manifest's body, verified, in the form of the newest format."""
        try:
            content = (self.folder / self.manifest).read_bytes()
        except FileNotFoundError:
            raise self._damaged(f"{self.manifest} is missing") from None
        except OSError as error:
            raise UserError(f"cannot read {self.folder / self.manifest}: {error.strerror}") from error
        envelope = _ENVELOPE.fullmatch(content)
        if envelope is None:
            raise self._damaged(f"{self.manifest} is cut short or altered")
        if hashlib.sha256(envelope[2]).hexdigest().encode() != envelope[1]:
            raise self._damaged(f"the checksum of {self.manifest} is wrong")
        body = json.loads(envelope[2])
        if not isinstance(body, dict) or not isinstance(body.get("format"), int):
            raise self._damaged(f"{self.manifest} is none, though its checksum is right")
        if not 1 <= body["format"] <= FORMAT:
            raise UserError(
                f"checkpoint {self.folder} has format {body['format']}, this greenroom reads formats up to {FORMAT}; "
                "use the greenroom version in the run's environment.json"
            )
        return {"large": {}} | body

    def _map(self, entry: dict[str, Any]) -> Tensor:
        """A large tensor, verified. It is not read into memory: there may be no room beside its owner's copy."""
        self._verify(entry["file"], entry)
        file = str(self.folder / entry["file"])
        flat = torch.from_file(file, shared=False, size=entry["bytes"], dtype=torch.uint8)
        return flat.view(getattr(torch, entry["dtype"])).view(entry["shape"])

    def _verify(self, name: str, expected: dict[str, Any]) -> None:
        """Read one of the files, piece by piece, and compare its size and checksum."""
        try:
            with (self.folder / name).open("rb") as file:
                size, checksum = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise self._damaged(f"{name} is missing") from None
        except OSError as error:
            raise UserError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if size != expected["bytes"]:
            raise self._damaged(f"{name} has {size} bytes instead of {expected['bytes']}")
        if checksum != expected["sha256"]:
            raise self._damaged(f"the checksum of {name} is wrong")

    def _damaged(self, how: str) -> UserError:
        return UserError(f"checkpoint {self.folder} is damaged: {how}; use another checkpoint or a copy of this one")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors wants them: on the CPU, contiguous, and no two in the same memory."""
    storages: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return found


def _write_large(file: Path, tensor: Tensor) -> dict[str, object]:
    """Write one tensor piece by piece (one that is not contiguous is copied first). Returns what reading it takes."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    checksum = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in flat.split(LARGE):
            data = piece.cpu().numpy().data
            checksum.update(data)
            stream.write(data)
    sync(file)
    return {
        "file": file.name,
        "bytes": flat.nbytes,
        "sha256": checksum.hexdigest(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
