"""Checkpoints come back exactly, damage is always noticed, and no moment of dying leaves half of one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from greenroom import archive, checkpoint
from greenroom.errors import UserError
from greenroom.transient import Transient

TORCH_TYPES = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMPY_TYPES = ("bool", "uint8", "int64", "uint64", "float32", ">f8", "complex128", "<U3", "S2", "datetime64[s]")


def tensors() -> st.SearchStrategy[Tensor]:
    def build(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
        numbers = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
        return numbers.to(dtype)

    return st.builds(build, st.sampled_from(TORCH_TYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 9))


def leaves() -> st.SearchStrategy[object]:
    arrays = st.sampled_from(NUMPY_TYPES).flatmap(lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_side=0)))
    numbers = st.integers() | st.integers(-(2**200), 2**200) | st.floats()
    plain = st.none() | st.booleans() | st.text() | st.binary()
    return plain | numbers | tensors() | arrays | st.floats(width=32).map(np.float32)


def keys() -> st.SearchStrategy[str | int]:
    awkward = st.sampled_from(["$tensor", "$dict", "__metadata__", "a/b", "", "ü", "\ud800"])
    return st.text(max_size=3) | awkward | st.integers(-3, 3)


def states() -> st.SearchStrategy[dict[str, object]]:
    def nest(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        few = st.lists(inner, max_size=3)
        return few | few.map(tuple) | st.dictionaries(keys(), inner, max_size=3)

    return st.dictionaries(st.text(max_size=3), st.recursive(leaves(), nest, max_leaves=8), max_size=4)


def assert_same(first: object, second: object) -> None:
    """Equal in type, structure and every bit (any NaN equals any other)."""
    assert type(first) is type(second)
    if isinstance(first, dict) and isinstance(second, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, Tensor) and isinstance(second, Tensor):
        assert first.dtype == second.dtype and first.shape == second.shape
        assert torch.equal(first, second)
    elif isinstance(first, np.ndarray | np.generic) and isinstance(second, np.ndarray | np.generic):
        assert first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    elif isinstance(first, float) and isinstance(second, float):
        assert first.hex() == second.hex()
    else:
        assert first == second


@pytest.mark.parametrize("large", [archive.LARGE, 5], ids=["small tensors", "large tensors"])
@settings(max_examples=100, deadline=None)
@given(states())
def test_any_nested_state_comes_back_exactly(large: int, state: dict[str, object]) -> None:
    """In one file, or with every tensor of five bytes and more in a file of its own, written five bytes at a time."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "LARGE", large)
        path = checkpoint.save(Path(folder), state, env_steps=7, updates=1)
        assert_same(checkpoint.load(path), state)


def test_what_a_run_saves_comes_back(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    generator = np.random.Generator(np.random.PCG64(5))
    state: dict[str, object] = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numpy": generator.bit_generator.state,
        "torch": torch.Generator().manual_seed(3).get_state(),
        "clock": (10**30, -0.0, math.inf, math.nan),
    }
    path = checkpoint.save(tmp_path, state, env_steps=123456, updates=9)
    assert path == tmp_path / "step_000000123456"
    assert checkpoint.env_steps_of(path) == 123456
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "tensors.safetensors"]
    found = checkpoint.load(path)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(as_tensors(found["network"]))
    assert torch.equal(twin.weight, network.weight) and torch.equal(twin.bias, network.bias)
    resumed = torch.optim.Adam(twin.parameters())
    assert isinstance(found["optimizer"], dict)
    resumed.load_state_dict(found["optimizer"])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    other = np.random.Generator(np.random.PCG64(0))
    assert isinstance(found["numpy"], dict)
    other.bit_generator.state = found["numpy"]
    assert other.random() == generator.random()
    assert_same(found["clock"], state["clock"])


def as_tensors(value: object) -> dict[str, Tensor]:
    assert isinstance(value, dict)
    return {str(name): part for name, part in value.items() if isinstance(part, Tensor)}


def test_shared_overlapping_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state: dict[str, object] = {
        "base": base,
        "tied": base.view(3, 4),
        "transposed": base.t(),
        "column": base[:, 1],
        "part": base[1],
        "expanded": torch.tensor([5]).expand(1000, 1000),
        "flat": base.view(12),
        "parameter": nn.Parameter(base),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    path = checkpoint.save(tmp_path, state, env_steps=0, updates=0)
    found = as_tensors(checkpoint.load(path))
    for name, tensor in as_tensors(state).items():
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous() and type(found[name]) is Tensor
    assert found["tied"] is found["base"]
    found["part"].zero_()
    assert torch.equal(found["base"], base)
    stored = safetensors.torch.load_file(path / "tensors.safetensors")
    assert set(stored) == {"base", "transposed", "column", "part", "expanded", "flat", "conjugate"}


def test_names_in_the_tensor_file_never_collide(tmp_path: Path) -> None:
    one, two, three, four = (torch.tensor(number) for number in (1, 2, 3, 4))
    state: dict[str, object] = {"a": {"b": one}, "a/b": two, "__metadata__": three, "a/b#2": four}
    assert_same(checkpoint.load(checkpoint.save(tmp_path, state, env_steps=0, updates=0)), state)


def test_subclasses_come_back_plain(tmp_path: Path) -> None:
    state: dict[str, object] = {"ordered": OrderedDict(b=1, a=2)}
    found = checkpoint.load(checkpoint.save(tmp_path, state, env_steps=0, updates=0))["ordered"]
    assert type(found) is dict and list(found.items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    "value",
    [object(), {1.5: 0}, {True: 0}, {1}, np.array([None]), torch.eye(2).to_sparse(), torch.eye(1, dtype=torch.cdouble)],
    ids=["object", "float key", "bool key", "set", "object array", "sparse", "complex128"],
)
def test_what_cannot_be_kept_is_refused_with_its_place(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"\(at deep/1\)"):
        checkpoint.save(tmp_path, {"deep": [0, value]}, env_steps=0, updates=0)
    assert list(tmp_path.iterdir()) == []


def small_checkpoint(root: Path, env_steps: int = 1, **options: bool | int) -> Path:
    weight, bias = torch.arange(6.0) + env_steps, torch.ones(2)
    replay = Transient(frames=torch.arange(20) + env_steps, small=torch.ones(1), first=env_steps)
    state: dict[str, object] = {"weight": weight, "bias": bias, "name": "x", "steps": env_steps, "replay": replay}
    keep, is_best = int(options.get("keep", 3)), bool(options.get("is_best", False))
    path = checkpoint.save(root, state, env_steps=env_steps, updates=1, keep=keep)
    if is_best:
        checkpoint.mark_best(root, path, float(env_steps), keep=keep)
    return path


@pytest.fixture
def weight_is_large() -> Iterator[None]:
    """The weight of `small_checkpoint` gets a file of its own, the bias does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "LARGE", 24)
        yield


TRANSIENT = ("transient.json", "transient.safetensors", "transient_0.bin")
FILES = ("manifest.json", "tensors.safetensors", "tensor_0.bin", *TRANSIENT)


@pytest.mark.usefixtures("weight_is_large")
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    path = small_checkpoint(tmp_path)
    file = path / name
    whole = file.read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), min(300, 8 * len(whole)))
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{re.escape(str(path))} is damaged: .*{name}.*; use another checkpoint"):
            checkpoint.load(path)
    file.write_bytes(whole)
    checkpoint.load(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_past_any_flipped_bit_there_is_something_to_go_on_from(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "flipped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "LARGE", 24)
        if not root.exists():
            small_checkpoint(root, 10)
            small_checkpoint(root, 20)
    file = checkpoint.every(root)[-1] / data.draw(st.sampled_from(FILES))
    whole = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << (bit % 8)
    said: list[str] = []
    try:
        file.write_bytes(damaged)
        path, state = checkpoint.load_latest(root, said.append)
    finally:
        file.write_bytes(whole)
    lost = file.name in TRANSIENT
    assert checkpoint.env_steps_of(path) == (20 if lost else 10) and state["name"] == "x"
    assert "is damaged" in said[0] and f"going back to {path}" in said[-1]


def test_a_rollback_leaves_nothing_later(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        small_checkpoint(tmp_path, steps, is_best=steps == 30)
    first, second, third = checkpoint.every(tmp_path)
    checkpoint.retreat(tmp_path, second)
    assert checkpoint.every(tmp_path) == [first, second] and not third.exists()
    assert checkpoint.best(tmp_path) is None and checkpoint.latest(tmp_path) == second


@pytest.mark.usefixtures("weight_is_large")
@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    path = small_checkpoint(tmp_path)
    file = path / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.load(path)
        # Without its transient parts a checkpoint is complete all the same.
        assert checkpoint.latest(tmp_path) == (path if name in TRANSIENT else None)
    file.write_bytes(whole + b" ")
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(path)


@pytest.mark.usefixtures("weight_is_large")
@pytest.mark.parametrize("name", FILES[1:3])
def test_tensors_of_another_checkpoint_are_noticed(tmp_path: Path, name: str) -> None:
    first, second = small_checkpoint(tmp_path, 1), small_checkpoint(tmp_path, 2)
    bytes_of_first = (first / name).read_bytes()
    (second / name).write_bytes(bytes_of_first[:-1] + bytes([bytes_of_first[-1] ^ 1]))
    with pytest.raises(UserError, match=f"the checksum of {re.escape(name)} is wrong"):
        checkpoint.load(second)


@pytest.mark.usefixtures("weight_is_large")
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path)
    (path / "tensor_0.bin").unlink()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(UserError, match=r"is damaged: tensor_0\.bin is missing; use another"):
        checkpoint.load(path)


def rewrite_manifest(path: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    text = json.dumps(change(json.loads((path / "manifest.json").read_bytes())["body"])).encode()
    checksum = hashlib.sha256(text).hexdigest().encode()
    (path / "manifest.json").write_bytes(b'{"sha256": "%s", "body":\n%s\n}\n' % (checksum, text))


def test_another_format_is_named_as_such(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path)
    rewrite_manifest(path, lambda body: body | {"format": 3})
    with pytest.raises(UserError, match="has format 3, this greenroom reads formats up to 2"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "change", [{"format": "2"}, {"tensors": None}, {"state": {"bias": {"$array": 1}}}, {"state": []}]
)
def test_a_manifest_that_makes_no_sense_is_damage_and_passed_over(tmp_path: Path, change: dict[str, object]) -> None:
    """Its checksum is right: somebody wrote it, but no greenroom."""
    first, second = small_checkpoint(tmp_path, 10), small_checkpoint(tmp_path, 20)
    rewrite_manifest(second, lambda body: body | change)
    with pytest.raises(UserError, match=r"is damaged: .*(checksum is right|right checksum)"):
        checkpoint.load(second)
    said: list[str] = []
    assert checkpoint.load_latest(tmp_path, said.append)[0] == first and "is damaged" in said[0]


def test_the_first_format_is_still_read(tmp_path: Path) -> None:
    """It knew no large tensors, and was otherwise the same."""
    path = small_checkpoint(tmp_path)
    state = checkpoint.load(path)
    rewrite_manifest(path, lambda body: {k: v for k, v in body.items() if k != "large"} | {"format": 1})
    assert checkpoint.latest(tmp_path) == path
    assert_same(checkpoint.load(path), state)


def memory(field: str) -> int:
    """One of this process's figures in /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell what memory was used")
def test_a_large_tensor_is_never_copied(tmp_path: Path) -> None:
    size = 8 * archive.LARGE
    large = torch.arange(size // 8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    path = checkpoint.save(tmp_path, {"large": large, "small": torch.ones(3)}, env_steps=0, updates=0)
    assert memory("VmHWM") < before + size / 2
    before = memory("RssAnon")
    found = checkpoint.load(path)["large"]
    copy = large.zero_().copy_(found)
    assert memory("RssAnon") < before + size / 2  # the file's own pages are not counted: they can be taken back
    assert torch.equal(copy, torch.arange(size // 8))


@pytest.mark.usefixtures("weight_is_large")
def test_a_loaded_tensor_is_ones_own(tmp_path: Path) -> None:
    """Writing to it leaves the file alone, and it outlives the file."""
    path = small_checkpoint(tmp_path)
    checkpoint.load(path)["weight"].zero_()
    found = checkpoint.load(path)["weight"]
    shutil.rmtree(path)
    assert torch.equal(found, torch.arange(6.0) + 1)


@pytest.mark.usefixtures("weight_is_large")
def test_a_part_is_read_without_the_large_tensors_of_the_rest(tmp_path: Path) -> None:
    weights = {"policy": {"w": torch.arange(10.0)}, "replay": {"frames": torch.arange(10.0, 20.0)}}
    path = checkpoint.save(tmp_path, {"run": {"algorithm": weights}}, env_steps=0, updates=0)
    (path / "tensor_1.bin").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"checksum of tensor_1\.bin"):
        checkpoint.load(path)
    part = ("run", "algorithm", "policy")
    assert_same(checkpoint.load(path, part=part), weights["policy"])
    assert checkpoint.load_latest(tmp_path, print, part=part)[0] == path
    with pytest.raises(UserError, match="has no run/other; it was written by another greenroom"):
        checkpoint.load(path, part=("run", "other"))


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint \(no manifest.json\); give a step_"):
        checkpoint.load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    path = small_checkpoint(tmp_path / "run" / "checkpoints")
    for wrong in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(UserError, match=f"it holds checkpoints: give one, such as {re.escape(str(path))}"):
            checkpoint.load(wrong)
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.load(path / "manifest.json")
    (path / "tensors.safetensors").unlink()
    with pytest.raises(UserError, match=r"damaged: tensors\.safetensors is missing"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="its name is not step_"):
        checkpoint.env_steps_of(tmp_path)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def held(path: Path) -> list[str]:
    """The files of a checkpoint's transient parts."""
    return [name for name in TRANSIENT if (path / name).exists()]


def expected_replay(env_steps: int) -> dict[str, object]:
    """What `small_checkpoint` put there."""
    return {"frames": torch.arange(20) + env_steps, "small": torch.ones(1), "first": env_steps}


def size(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in path.iterdir())


def test_only_the_newest_checkpoint_holds_transient_parts(tmp_path: Path) -> None:
    def save(steps: int) -> Path:
        replay = {"clock": steps, "memory": Transient(frames=torch.zeros(3 * archive.LARGE, dtype=torch.uint8))}
        state: dict[str, object] = {"policy": torch.ones(1000), "learner": {"replay": replay}}
        return checkpoint.save(tmp_path, state, env_steps=steps, updates=0)

    first = save(1)
    checkpoint.mark_best(tmp_path, first, 1.0)
    assert size(first) > 3 * archive.LARGE
    for steps in range(2, 6):
        newest = save(steps)
        older = [path for path in tmp_path.glob("step_*") if path != newest]
        assert size(newest) > 3 * archive.LARGE and max(map(size, older)) < 10_000
        assert all(checkpoint.load(path)["learner"]["replay"]["memory"] == {} for path in older)
    assert len(older) == 3 and first in older


@pytest.mark.usefixtures("weight_is_large")
def test_an_older_checkpoint_begins_without_its_transient_parts_and_says_so(tmp_path: Path) -> None:
    older, newest = small_checkpoint(tmp_path, 10), small_checkpoint(tmp_path, 20)
    lines: list[str] = []
    path, state = checkpoint.load_latest(tmp_path, lines.append)
    assert path == newest and lines == [] and len(state["replay"]["frames"]) == 20
    (newest / "tensor_0.bin").write_bytes(b"")
    path, state = checkpoint.load_latest(tmp_path, lines.append)
    assert path == older and state["steps"] == 10 and state["replay"] == {}
    assert len(lines) == 2 and "tensor_0.bin has 0 bytes" in lines[0]
    assert lines[1] == f"going back to {older}; lost, so it begins empty: replay"
    again = small_checkpoint(tmp_path, 15)
    assert not newest.exists() and held(again) == list(TRANSIENT)


@pytest.mark.usefixtures("weight_is_large")
@pytest.mark.parametrize("name", TRANSIENT)
def test_damaged_transient_parts_do_not_take_the_rest_with_them(tmp_path: Path, name: str) -> None:
    small_checkpoint(tmp_path, 10)
    newest = small_checkpoint(tmp_path, 20)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    lines: list[str] = []
    path, state = checkpoint.load_latest(tmp_path, lines.append)
    assert path == newest and state["replay"] == {} and torch.equal(state["weight"], torch.arange(6.0) + 20)
    assert len(lines) == 2 and f"{newest} is damaged" in lines[0] and name in lines[0]
    assert lines[1] == f"going back to {newest}; lost, so it begins empty: replay"
    assert checkpoint.load_latest(tmp_path, lines.append, part=())[0] == newest


def test_transient_parts_anywhere_in_the_state_come_back(tmp_path: Path) -> None:
    shared = torch.arange(3)
    state: dict[str, object] = {
        "a": {"b": Transient(one=shared, deep={"list": [shared, (1, 2.5)]})},
        "a/b": [Transient(two=shared, number=np.float32(3)), Transient()],
        "shared": shared,
    }
    path = checkpoint.save(tmp_path, state, env_steps=0, updates=0)
    plain = {"a": {"b": {"one": shared, "deep": {"list": [shared, (1, 2.5)]}}}}
    expected = plain | {"a/b": [{"two": shared, "number": np.float32(3)}, {}], "shared": shared}
    assert_same(checkpoint.load(path), expected)
    assert_same(checkpoint.load(path, part=("a",)), plain["a"])
    checkpoint.save(tmp_path, {}, env_steps=1, updates=0)
    assert_same(checkpoint.load(path), {"a": {"b": {}}, "a/b": [{}, {}], "shared": shared})


def test_a_transient_part_within_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a transient part cannot hold another one \(at a/b\)"):
        checkpoint.save(tmp_path, {"a": Transient(b=Transient())}, env_steps=0, updates=0)


def test_marking_the_best_writes_no_second_checkpoint(tmp_path: Path) -> None:
    first, second = small_checkpoint(tmp_path, 10), small_checkpoint(tmp_path, 20)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in second.iterdir()}
    assert checkpoint.best_score(tmp_path, until=20) == -math.inf
    checkpoint.mark_best(tmp_path, second, 1.5)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in second.iterdir()} == before
    assert checkpoint.best(tmp_path) == second and names(tmp_path) == ["best.json", first.name, second.name]
    assert checkpoint.best_score(tmp_path, until=20) == 1.5
    assert checkpoint.best_score(tmp_path, until=19) == -math.inf, "a run that went back behind it begins anew"


def test_a_new_best_lets_go_of_the_one_before(tmp_path: Path) -> None:
    small_checkpoint(tmp_path, 10, keep=1, is_best=True)
    second = small_checkpoint(tmp_path, 20, keep=1)
    assert len(names(tmp_path)) == 3
    checkpoint.mark_best(tmp_path, second, 2.0, keep=1)
    assert names(tmp_path) == ["best.json", second.name]


def test_a_disk_that_refuses_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_checkpoint(tmp_path, 10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot mark step_000000000010 as the best in .*: No space left on device"):
        checkpoint.mark_best(tmp_path, path, 1.0)
    assert checkpoint.best(tmp_path) is None


def test_a_checkpoint_is_found_by_what_people_call_it(tmp_path: Path) -> None:
    first = small_checkpoint(tmp_path, 5, is_best=True)
    second = small_checkpoint(tmp_path, 10)
    assert checkpoint.find(tmp_path, "latest") == second
    assert checkpoint.find(tmp_path, "best") == first
    assert checkpoint.find(tmp_path, "step_000000000005") == first
    with pytest.raises(UserError, match=r"no step_000000000006 checkpoint in .*; did you mean 'step_0000000000"):
        checkpoint.find(tmp_path, "step_000000000006")


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None
    small_checkpoint(tmp_path, 5, keep=2, is_best=True)
    for steps in (10, 20, 30):
        small_checkpoint(tmp_path, steps, keep=2)
    assert names(tmp_path) == ["best.json", "step_000000000005", "step_000000000020", "step_000000000030"]
    assert checkpoint.best(tmp_path) == tmp_path / "step_000000000005"
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000000000030"
    small_checkpoint(tmp_path, 40, keep=1, is_best=True)
    assert names(tmp_path) == ["best.json", "step_000000000040"]
    assert checkpoint.best(tmp_path) == tmp_path / "step_000000000040"


def test_steps_beyond_twelve_digits_sort_by_number(tmp_path: Path) -> None:
    small_checkpoint(tmp_path, 10**12 - 1)
    newest = small_checkpoint(tmp_path, 10**12)
    assert newest.name == "step_1000000000000" and checkpoint.latest(tmp_path) == newest


def test_the_same_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        small_checkpoint(tmp_path, steps)
    again = checkpoint.save(tmp_path, {"again": True}, env_steps=30, updates=3)
    assert names(tmp_path) == ["step_000000000010", "step_000000000020", "step_000000000030.1"]
    assert checkpoint.latest(tmp_path) == again and checkpoint.env_steps_of(again) == 30
    assert checkpoint.load(again) == {"again": True}


def test_going_back_drops_the_abandoned_future(tmp_path: Path) -> None:
    for steps in (10, 20, 30):
        small_checkpoint(tmp_path, steps, keep=5)
    checkpoint.mark_best(tmp_path, tmp_path / "step_000000000030", 1.0, keep=5)
    newest = small_checkpoint(tmp_path, 25, keep=1)
    assert names(tmp_path) == ["best.json", newest.name]
    assert checkpoint.best(tmp_path) is None


def test_falling_back_past_damage_and_saying_so(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoint.load_latest(tmp_path, lines.append)
    paths = [small_checkpoint(tmp_path, steps) for steps in (10, 20, 30)]
    assert checkpoint.load_latest(tmp_path, lines.append)[0] == paths[2] and lines == []
    tensors_of_newest = paths[2] / "tensors.safetensors"
    tensors_of_newest.write_bytes(tensors_of_newest.read_bytes()[:-1] + b"\x7f")
    (paths[1] / "manifest.json").unlink()
    path, state = checkpoint.load_latest(tmp_path, lines.append)
    assert path == paths[0] and state["steps"] == 10
    assert len(lines) == 3
    assert str(paths[2]) in lines[0] and "checksum" in lines[0]
    assert str(paths[1]) in lines[1] and lines[2].startswith(f"going back to {paths[0]}")
    assert checkpoint.latest(tmp_path) == paths[2]  # complete in size: only reading tells
    (paths[0] / "manifest.json").write_bytes(b"")
    with pytest.raises(
        UserError, match=f"no checkpoint in .* can be read; the newest: checkpoint {paths[2]} is damaged"
    ):
        checkpoint.load_latest(tmp_path, lines.append)


class Killed(BaseException):
    """The process died here."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Makes the n-th change on the disk, and every later one, kill the process. Returns the count of changes."""
    real: dict[str, Callable[..., object]] = {
        name: getattr(os, name) for name in ("fsync", "replace", "mkdir", "unlink")
    }
    real_rmtree = shutil.rmtree

    def arm(fatal: int) -> list[int]:
        calls = [0]

        def guarded(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                calls[0] += 1
                if calls[0] >= fatal:
                    if function is real_rmtree:  # a deletion dies half-way
                        for file in list(Path(str(arguments[0])).glob("*"))[:1]:
                            file.unlink()
                    raise Killed
                return function(*arguments, **options)

            return call

        for name, function in real.items():
            monkeypatch.setattr(os, name, guarded(function))
        monkeypatch.setattr(shutil, "rmtree", guarded(real_rmtree))
        return calls

    yield arm
    monkeypatch.undo()


@pytest.mark.usefixtures("weight_is_large")
def test_killed_at_any_moment_nothing_is_lost(
    tmp_path: Path, dying: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments, left_behind = 0, 0
    for fatal in range(1, 100):
        root = tmp_path / str(fatal)
        for steps in (5, 10):
            small_checkpoint(root, steps, keep=2, is_best=True)
        calls = dying(fatal)
        try:
            small_checkpoint(root, 20, keep=2, is_best=True)
            survived = True
        except Killed:
            survived = False
        monkeypatch.undo()
        if survived:
            moments = calls[0]
            break
        final = [path for path in root.iterdir() if path.name.startswith("step_")]
        assert final and all(checkpoint.load(path)["name"] == "x" for path in final), fatal
        assert checkpoint.latest(root) == max(final)
        assert_same(checkpoint.load(max(final))["replay"], expected_replay(checkpoint.env_steps_of(max(final))))
        left_behind += sum(held(path) != [] and TRANSIENT[0] not in held(path) for path in final)
        best = checkpoint.best(root)
        assert best is not None and checkpoint.load(best)["name"] == "x"
        assert small_checkpoint(root, 30, keep=2, is_best=True) == checkpoint.best(root)
        assert [name for name in names(root) if not name.startswith("step_")] == ["best.json"], fatal
        assert len(names(root)) == 3 and [held(path) for path in sorted(root.glob("step_*"))] == [[], list(TRANSIENT)]
    assert moments >= 20  # folder, six files, folder, rename, root, old one, four of stripping, pointer (four)
    assert left_behind == 3  # dying between the manifest and the last of its files


@pytest.mark.parametrize("function", ["fsync", "replace", "mkdir"])
def test_a_full_disk_is_reported_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    first = small_checkpoint(tmp_path, 10)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(
        UserError, match=r"cannot save checkpoint 20 .*left on device \(it needs 0.0 MB, [\d.]+ MB are free\); free"
    ):
        small_checkpoint(tmp_path, 20)
    monkeypatch.undo()
    assert names(tmp_path) == [first.name]
    checkpoint.load(first)


def test_a_disk_that_fills_up_inside_the_tensor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        small_checkpoint(tmp_path, 20)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("weight_is_large")
def test_a_disk_that_fills_up_inside_a_large_tensor(tmp_path: Path) -> None:
    first = small_checkpoint(tmp_path, 10)
    state: dict[str, object] = {"large": torch.zeros(10_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot save checkpoint 20 .*: File too large \(it needs 0.0 MB, "):
            checkpoint.save(tmp_path, state, env_steps=20, updates=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == [first.name]


def test_a_damaged_pointer_to_the_best_is_no_best(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path, 10, is_best=True)
    elsewhere = ({"checkpoint": "step_000000000011", "score": 1.0}, {"checkpoint": "../x", "score": 1.0})
    nothing = ({"checkpoint": path.name}, {"checkpoint": path.name, "score": None})
    for text in ("", "[]", "{}", *map(json.dumps, elsewhere + nothing)):
        (tmp_path / "best.json").write_text(text)
        assert checkpoint.best(tmp_path) is None and checkpoint.best_score(tmp_path, until=10) == -math.inf
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": path.name, "score": 1.0}))
    assert checkpoint.best(tmp_path) == path


def test_senseless_arguments_are_refused(tmp_path: Path) -> None:
    for env_steps, keep in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="env_steps must be at least 0"):
            checkpoint.save(tmp_path, {}, env_steps=env_steps, updates=0, keep=keep)


def test_nothing_is_ever_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    state: dict[str, object] = {"array": np.ones(2), "tensor": torch.ones(2), "rest": [1, b"x", (None,)]}
    assert_same(checkpoint.load(checkpoint.save(tmp_path, state, env_steps=0, updates=0)), state)


def test_a_checkpoint_of_another_network() -> None:
    here = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).state_dict()
    checkpoint.describe_mismatch(here, {**here, "note": "not a tensor"}, "c")
    wider = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2)).state_dict()
    with pytest.raises(UserError) as caught:
        checkpoint.describe_mismatch(here, wider, "c")
    assert str(caught.value) == (
        "checkpoint c is from another network: 0.weight is (16, 4) there and (8, 4) here; "
        "0.bias is (16,) there and (8,) here; 1.weight is (2, 16) there and (2, 8) here; "
        "it was probably saved for other observations or actions, or with other layer sizes; use its options"
    )
    deeper = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(2, 2)).state_dict()
    with pytest.raises(
        UserError, match=r"2\.weight \(2, 2\) is only there; 2\.bias \(2,\) is only there; .*another network or"
    ):
        checkpoint.describe_mismatch(here, deeper, "c")
    with pytest.raises(UserError, match=r"0\.weight \(8, 4\) is missing there; .*; and 1 more; "):
        checkpoint.describe_mismatch(here, {}, "c")
