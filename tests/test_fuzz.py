"""Whatever comes in from outside is understood or refused in words: configs, checkpoints, requests, environments.

Each property is tried on the same examples every time, so that a failure is one for everybody.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from greenroom import archive, checkpoint
from greenroom.algorithms import ALGORITHMS
from greenroom.config import RunConfig, dump, from_dict, load, to_dict
from greenroom.control import SOCKET, Request, ask, control
from greenroom.envs import make
from greenroom.envs.inline import InlineEnvironment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.networks import Impala, Mlp
from greenroom.policy import PolicyConfig
from greenroom.transient import Transient


def steady(examples: int) -> settings:
    """The same examples every time, so many of them, however long they take."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN | st.sampled_from(["ppo", "dqn", "mlp", "adam", 10**400, -1, 0, 1, "a:b", ":", ".a:b", "json:loads", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | PLAIN, inner, max_size=3),
    max_leaves=6,
)


# Configurations.


def configs() -> list[dict[str, Any]]:
    """One of each algorithm, as plain values."""
    networks = [PolicyConfig(network=Mlp()), PolicyConfig(network=Impala())]
    return [
        to_dict(RunConfig(env="x", algorithm=kind(), policy=networks[n % 2]))
        for n, kind in enumerate(ALGORITHMS.values())
    ]


def places_of(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values of a tree of dicts."""
    if not isinstance(tree, dict):
        return [path]
    return [path, *(found for key, part in tree.items() for found in places_of(part, (*path, key)))]


CONFIGS = configs()


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid configuration in which some values were exchanged, removed or added."""
    tree = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places_of(tree)))
        if not path:
            continue
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        match draw(st.sampled_from(["exchange", "exchange", "remove", "add"])):
            case "exchange":
                owner[path[-1]] = draw(VALUES)
            case "remove":
                del owner[path[-1]]
            case "add":
                owner[draw(st.text(max_size=5))] = draw(VALUES)
    return tree


def accepted(build: Callable[[], RunConfig]) -> bool:
    """Whether a configuration is built; one that is, survives being written down."""
    try:
        config = build()
    except UserError as problem:
        assert str(problem)
        return False
    try:
        text = dump(config)
    except UserError as problem:
        assert "env_kwargs" in str(problem)
    else:
        again = load(text, "again")
        assert to_dict(again) == to_dict(config) or _has_nan(config)
    return True


def _has_nan(config: RunConfig) -> bool:
    """Of the environment's own arguments only: NaN is not equal to itself."""
    rest = dataclasses.replace(config, env_kwargs={})
    return load(dump(rest), "rest") == rest


@steady(400)
@given(data=mutated() | VALUES)
def test_a_config_of_anything_is_built_or_refused(data: Any) -> None:
    accepted(lambda: from_dict(RunConfig, data, "config.yaml"))


@steady(60)
@given(seed=st.sampled_from(CONFIGS), kwargs=st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_whatever_environments_take_is_written_down(seed: dict[str, Any], kwargs: dict[str, Any]) -> None:
    accepted(lambda: from_dict(RunConfig, seed | {"env_kwargs": kwargs}, "config.yaml"))


SNIPPETS = [
    "env: x",
    "\n",
    "  ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "!!set ",
    "? ",
]
SNIPPETS += ["2001-13-45", "0b", "0x_", "1_0", "1e5", ".nan", "~", "<<: ", "|\n", ">\n", "'", '"', "\t", "\0", "\ud800"]
SNIPPETS += ["!!int x", "!!float x", "!!binary =", "!!timestamp x", "190:20:30", "%YAML 9", "---\n", "num_envs: 4\n"]
SNIPPETS += ["!!omap [a]", "!!pairs x", "!!bool x", "!!null x", "algorithm: {kind: ppo}\n", "[" * 3000, "\n? " * 400]


@steady(400)
@given(text=st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=4), max_size=12).map("".join))
def test_a_text_of_anything_is_a_config_or_refused(text: str) -> None:
    accepted(lambda: load(text, "config.yaml"))


@steady(200)
@given(data=st.data())
def test_a_damaged_config_file_is_a_config_or_refused(data: st.DataObject) -> None:
    text = yaml.safe_dump(data.draw(st.sampled_from(CONFIGS)), sort_keys=False)
    text = _damaged(data, text.encode()).decode(errors="replace")
    accepted(lambda: load(text, "config.yaml"))


def _damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Some bytes cut off, flipped, put in or taken out, a few times."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        match data.draw(st.sampled_from(["cut", "flip", "put in", "take out"])):
            case "cut":
                del content[at:]
            case "flip" if content:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "put in":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case _:
                del content[at : at + data.draw(st.integers(1, 50))]
    return bytes(content)


@pytest.mark.parametrize(
    "name", ["", ":", "a:", ":a", ".a:b", "..:b", "\0:x", "\ud800:x", "json:loads", "broken_module:X"]
)
def test_a_component_of_any_name_is_found_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        from_dict(RunConfig, {"env": "x", "algorithm": {"kind": name}}, "config.yaml")


# Checkpoints.

FILES = ("manifest.json", "tensors.safetensors", "tensor_0.bin", "transient.json", "transient.safetensors")
STEPS = (10, 20)


def state_of(steps: int) -> dict[str, Any]:
    large, frames = torch.arange(64.0) + steps, torch.arange(40) + steps
    replay = Transient(frames=frames, first=steps)
    array = np.arange(5) + steps
    return {
        "large": large,
        "bias": torch.ones(2),
        "array": array,
        "plain": [steps, (1.5, None), b"x"],
        "replay": replay,
    }


def expected(steps: int, *, replay: bool) -> str:
    return repr(state_of(steps) | {"replay": dict(state_of(steps)["replay"]) if replay else {}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints; the newer one has files of all kinds."""
    root = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "LARGE", 200)
        for steps in STEPS:
            checkpoint.save(root, state_of(steps), env_steps=steps, updates=1)
    return root


def look_at(saved: Path, file: Path, content: bytes) -> None:
    """With other bytes in one file of the newest checkpoint, all is as it was, or the loss is told and survived."""
    whole = file.read_bytes()
    said: list[str] = []
    try:
        file.write_bytes(content)
        try:
            state = checkpoint.load(file.parent)
            assert repr(state) == expected(STEPS[1], replay=True) and content == whole
        except UserError as problem:
            assert str(file.parent) in str(problem)
        path, state = checkpoint.load_latest(saved, said.append)
        checkpoint.latest(saved)
    finally:
        file.write_bytes(whole)
    steps = checkpoint.env_steps_of(path)
    assert repr(state) == expected(steps, replay=not said)
    if content != whole:
        transient = file.name.startswith("transient")
        assert steps == STEPS[transient] and str(file.parent) in said[0] and "going back to" in said[-1]


@steady(250)
@given(data=st.data())
def test_a_damaged_checkpoint_is_noticed_and_passed_over(saved: Path, data: st.DataObject) -> None:
    file = checkpoint.every(saved)[-1] / data.draw(st.sampled_from(FILES))
    look_at(saved, file, _damaged(data, file.read_bytes()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TAGGED = st.sampled_from(
    ["$tensor", "$array", "$scalar", "$int", "$float", "$bytes", "$tuple", "$dict", "$transient", "$"]
)


TAGS = ["$tensor", "$array", "$scalar", "$int", "$float", "$bytes", "$tuple", "$dict", "$transient", "$"]


@st.composite
def manifests(draw: st.DrawFn, whole: dict[str, Any]) -> Any:
    """Anything at all, or the manifest with some parts exchanged."""
    if draw(st.booleans()):
        return draw(JSON)
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from([path for path in places_of(tree) if path]))
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = draw(JSON | st.dictionaries(st.sampled_from(TAGS), JSON, min_size=1, max_size=1))
    return tree


def sealed(body: Any) -> bytes:
    """A manifest whose checksum is right, as if somebody had meant it."""
    text = json.dumps(body).encode()
    return b'{"sha256": "%s", "body":\n%s\n}\n' % (hashlib.sha256(text).hexdigest().encode(), text)


@steady(300)
@given(data=st.data())
def test_a_manifest_of_anything_is_refused_in_words(saved: Path, data: st.DataObject) -> None:
    """One with a wrong checksum is damaged. With a right one it may say what it likes, but nothing breaks."""
    file = checkpoint.every(saved)[-1] / data.draw(st.sampled_from(["manifest.json", "transient.json"]))
    whole = file.read_bytes()
    body = data.draw(manifests(json.loads(whole)["body"]))
    look_at(saved, file, json.dumps(body).encode())
    said: list[str] = []
    try:
        file.write_bytes(sealed(body))
        for part in ((), ("plain",)):
            try:
                checkpoint.load(file.parent, part=part)
            except UserError as problem:
                assert "checkpoint" in str(problem)
        checkpoint.latest(saved)
        checkpoint.load_latest(saved, said.append)
    finally:
        file.write_bytes(whole)


# The socket.


@steady(60)
@given(streams=st.lists(st.tuples(st.binary(max_size=5000), st.integers(0, 2)), min_size=1, max_size=3))
def test_a_line_that_was_talked_rubbish_to_still_serves(
    tmp_path_factory: pytest.TempPathFactory, streams: list[tuple[bytes, int]]
) -> None:
    """People who hang up in the middle, who never listen, and who send anything."""
    folder = tmp_path_factory.mktemp("run")
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            if (asked := line.take(0.02)) is not None:
                asked.answer(verb=asked.request.verb)

    with control(folder, pytest.fail) as line:
        thread = threading.Thread(target=serve)
        thread.start()
        rude = [socket.socket(socket.AF_UNIX) for _ in streams]
        try:
            for connection, (content, manner) in zip(rude, streams, strict=True):
                connection.connect(str(folder / SOCKET))
                try:
                    connection.sendall(content)
                    if manner:
                        connection.shutdown(socket.SHUT_WR)
                except (BrokenPipeError, ConnectionResetError, OSError):  # it had hung up on a request without end
                    pass
                if manner == 2:
                    connection.close()
            assert ask(folder, Request(verb="status"), timeout=20.0) == {"verb": "status"}
        finally:
            for connection in rude:
                connection.close()
            done.set()
            thread.join()


# Environments.

NAMES = ["CartPole-v1", "gym_envs:Counter", "gym_envs:", ":", "::", "a:b", ".a:b", "a..b:c", "json:loads", "math:pi"]
NAMES += [
    "ALE/",
    "ALE/Pong-v5",
    "ALE/Nothing-v5",
    "envpool:",
    "envpool:Nothing-v1",
    "lost-sales",
    "gym_envs:needs_argument",
]
NAMES += [
    "gymnasium.envs:CartPole-v1",
    "\0:x",
    "a\0:x",
    "\ud800:x",
    "x" * 500,
    "gym_envs:gym_envs:Counter",
    "-v1",
    "/",
    "a/b",
]


KEYWORDS = ["size", "length", "lead_time", "max_episode_steps", "render_mode", "x", ""]


@steady(150)
@given(
    name=st.sampled_from(NAMES) | st.text(max_size=12),
    kwargs=st.dictionaries(
        st.sampled_from(["size", "length", "lead_time", "x", ""]) | st.text(max_size=5), VALUES, max_size=2
    ),
    stage=st.sampled_from(["auto", "inline", "native", "device", "no-stage"]),
)
@pytest.mark.filterwarnings("ignore")
def test_an_environment_of_any_name_is_built_or_refused(name: str, kwargs: dict[str, Any], stage: Any) -> None:
    given = {key: value for key, value in kwargs.items() if isinstance(key, str)}
    try:
        environment = make(name, num_envs=1, stage=stage, num_workers=None, kwargs=given, say=lambda line: None)
    except UserError as problem:
        assert str(problem)
    else:
        environment.close()


class Spiteful:
    """A value that refuses to be looked at."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("leave me alone")

    __array__ = __bool__ = __float__ = __len__ = __iter__ = __getitem__ = __contains__ = _refuse

    def __repr__(self) -> str:
        return "Spiteful()"


ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("f4", "f8", "i8", "u1", "?", "O", "c8", "U2", "M8[s]")]),
    st.sampled_from([(), (1,), (2,), (3,), (2, 1), (1, 2), (0,)]),
)
ANYTHING = st.one_of(
    ARRAYS,
    VALUES,
    st.builds(Spiteful),
    st.just({1, 2}),
    st.sampled_from([10**400, -(10**400), 1e300, math.nan, math.inf, 1j, b"x", torch.ones(2), torch.ones(3), object()]),
    st.lists(st.lists(st.floats(), max_size=2), max_size=2),
)
GOOD = st.just(np.zeros(2, np.float32))


class Scripted(gymnasium.Env[Any, Any]):
    """Answers what it was told to; then raises what it was told to."""

    def __init__(self, answers: list[Any]) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
        self._answers = iter(answers)

    def reset(self, **_: Any) -> Any:
        return self._next()

    def step(self, action: Any) -> Any:
        return self._next()

    def _next(self) -> Any:
        answer: Any = next(self._answers, (np.zeros(2, np.float32), 0.0, False, False, {}))
        if isinstance(answer, Exception):
            raise answer
        return answer


ERRORS = st.sampled_from(
    [
        ValueError("no"),
        KeyError("x"),
        StopIteration(),
        RecursionError(),
        AssertionError(),
        MemoryError(),
        OSError(28, "full"),
    ]
)
PLAIN_RESET: st.SearchStrategy[Any] = st.tuples(GOOD, st.just({}))
RESETS = st.tuples(GOOD | ANYTHING, st.just({}) | ANYTHING) | ANYTHING | ERRORS
TRUTH = st.booleans() | st.booleans() | ANYTHING
ANSWERS = st.one_of(
    st.tuples(GOOD | ANYTHING, st.floats(-1, 1) | ANYTHING, TRUTH, TRUTH, st.just({}) | ANYTHING),
    st.tuples(GOOD, st.just(1.0), st.just(True), st.just(False), st.just({})),
    st.tuples(GOOD, st.just(1.0), TRUTH, TRUTH, st.just({})),
    st.tuples(GOOD, ANYTHING, st.just(False), st.just(False), st.just({})),
    ANYTHING,
    ERRORS,
)


@steady(500)
@given(first=PLAIN_RESET | RESETS, reset=PLAIN_RESET | RESETS, answers=st.lists(ANSWERS, max_size=3))
@pytest.mark.filterwarnings("ignore")
def test_whatever_an_environment_answers_is_a_step_or_a_fault_with_its_place(
    first: Any, reset: Any, answers: list[Any]
) -> None:
    environment = None
    try:
        # Its first answer is for whoever looks whether infos have a mask.
        environment = InlineEnvironment(lambda: Scripted([first, reset, *answers]), num_envs=1)
        obs = environment.reset(0)
        assert isinstance(obs, torch.Tensor) and obs.shape == (1, 2) and bool(obs.isfinite().all())
        for _ in range(3):
            environment.send(torch.zeros(1, dtype=torch.int64))
            step = environment.recv()
            assert isinstance(step.obs, torch.Tensor) and bool(step.obs.isfinite().all())
            assert bool(step.reward.isfinite().all()) and step.terminated.dtype == torch.bool
    except EnvironmentFault as fault:
        assert re.match(r"environment 0, (step \d|first reset): ", str(fault)), str(fault)
    finally:
        if environment is not None:
            environment.close()


@pytest.mark.parametrize(
    ("answer", "culprit"),
    [
        ((np.zeros(2), 10**400, False, False, {}), "the reward must be one number, not 1000"),
        ((np.zeros(2), [[1], [2, 3]], False, False, {}), r"the reward must be one number, not \[\[1\], \[2, 3\]\]"),
        ((np.zeros(2), Spiteful(), False, False, {}), r"the reward must be one number, not Spiteful\(\)"),
        ((np.zeros(2), 0.0, np.zeros(2), False, {}), "terminated and truncated must be true or false, not array"),
        (
            (np.zeros(2), 0.0, False, Spiteful(), {}),
            r"terminated and truncated must .*, not False and Spiteful\(\)",
        ),
        ((Spiteful(), 0.0, False, False, {}), "the observation cannot be read: RuntimeError: leave me alone"),
    ],
)
def test_values_that_broke_more_than_the_environment(answer: Any, culprit: str) -> None:
    environment = InlineEnvironment(lambda: Scripted([(np.zeros(2), {}), (np.zeros(2), {}), answer]), num_envs=1)
    environment.reset(0)
    environment.send(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(EnvironmentFault, match=f"^environment 0, step 1: {culprit}"):
        environment.recv()
    environment.close()
