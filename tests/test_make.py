"""`make`: the right stage for each environment, one line that says why, and one clear message for every wrong name."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gym_envs
from greenroom.envs import choose, list_environments, make, workers
from greenroom.envs.ale import AleEnvironment
from greenroom.envs.arguments import arguments_of
from greenroom.envs.base import Environment
from greenroom.envs.choose import largest_divisor, measure_step
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.factory import Factory
from greenroom.envs.faults import FaultConfig
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import UserError
from greenroom.machine import FreeCores


@pytest.fixture
def open_stage() -> Iterator[Callable[..., tuple[Environment, str]]]:
    opened: list[Environment] = []

    def build(env: Any, **options: Any) -> tuple[Environment, str]:
        said: list[str] = []
        opened.append(make(env, say=said.append, **options))
        assert len(said) == 1
        return opened[-1], said[0]

    yield build
    for environment in opened:
        environment.close()


def test_batched_and_native_environments_need_no_measurement(open_stage: Any) -> None:
    device, line = open_stage("lost-sales", num_envs=3, kwargs={"lead_time": 2})
    assert isinstance(device, DeviceEnvironment)
    assert line == "stage: device (written as batched tensor code)"
    native, line = open_stage("ALE/Pong-v5", num_envs=2)
    assert isinstance(native, AleEnvironment)
    assert line == "stage: native (ale steps it in C++ threads)"


@pytest.mark.parametrize(
    ("microseconds", "num_envs", "cores", "stage", "reason"),
    [
        (10, 16, 4, "inline", "one X step takes 10 µs; 16 take 160 µs here, about 120 µs in 4 processes"),
        (8, 64, 2, "joint", "one X step takes 8 µs; 64 take 512 µs here, about 316 µs in 2 processes"),
        (50, 64, 2, "joint", "one X step takes 50 µs; 64 take 3.2 ms here, about 1.7 ms in 2 processes"),
        (70, 64, 2, "workers", "one X step takes 70 µs; 64 take 4.5 ms here, about 2.3 ms in 2 workers"),
        (1000, 16, 4, "workers", "one X step takes 1.0 ms; 16 take 16.0 ms here, about 4.1 ms in 4 workers"),
        (1000, 16, 1, "inline", "one X step takes 1.0 ms; there is one core"),
        (1000, 7, 4, "inline", "one X step takes 1.0 ms; no number of workers up to 4 divides 7 environments"),
        (10, 1024, 2, "workers", "one X step takes 10 µs; 1024 take 10.2 ms here, about 5.2 ms in 2 workers"),
    ],
)
def test_rule(
    microseconds: int, num_envs: int, cores: int, stage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "measure_step", lambda factory, num_envs, faults: microseconds * 1e-6)
    monkeypatch.setattr(choose, "available_cores", lambda: cores)
    monkeypatch.setattr(FreeCores, "mean", lambda self: cores - 1.0)
    choice = choose._by_measurement(Factory(env="X"), num_envs)
    assert (choice.stage, choice.reason) == (stage, reason)


@pytest.mark.parametrize(
    ("microseconds", "cores", "stage", "reason"),
    [
        (8, 2, "inline", "one X step takes 8 µs; there is one core to spare"),
        (8, 4, "joint × 2", "one X step takes 8 µs; 64 take 512 µs here, about 316 µs in 2 processes"),
        # Who sleeps until woken can share a core.
        (50, 2, "workers × 2", "one X step takes 50 µs; 64 take 3.2 ms here, about 1.7 ms in 2 workers"),
        (1000, 1, "inline", "one X step takes 1.0 ms; there is one core"),
    ],
)
def test_a_learners_core_is_not_for_those_who_wait_for_each_other(
    microseconds: int, cores: int, stage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "measure_step", lambda factory, num_envs, faults: microseconds * 1e-6)
    monkeypatch.setattr(choose, "available_cores", lambda: cores)
    monkeypatch.setattr(FreeCores, "mean", lambda self: cores - 1.0)
    choice = choose._by_measurement(Factory(env="X"), 64, taken_cores=1)
    assert (choice.title, choice.reason) == (stage, reason)


@pytest.mark.parametrize(("taken", "spins"), [(0, True), (1, False)])
def test_nobody_spins_on_a_core_that_is_taken(taken: int, spins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    stage = WorkersEnvironment("CartPole-v1", num_envs=4, num_workers=2, joint=True, taken_cores=taken)
    assert (stage._crew._spin > 0) is spins
    stage.close()


@pytest.mark.parametrize(("free", "stage"), [(0.9, "joint"), (0.1, "inline"), (None, "joint")])
def test_busy_cores_are_left_alone(free: float | None, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "measure_step", lambda factory, num_envs, faults: 8e-6)
    monkeypatch.setattr(choose, "available_cores", lambda: 2)
    monkeypatch.setattr(FreeCores, "mean", lambda self: free)
    choice = choose._by_measurement(Factory(env="X"), 64)
    assert choice.stage == stage
    assert ("other programs have the cores" in choice.reason) == (stage == "inline")


def test_slow_environment_goes_to_workers_and_cheap_one_stays(open_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "available_cores", lambda: 2)
    slow, line = open_stage(gym_envs.Slow, num_envs=4)
    assert isinstance(slow, WorkersEnvironment)
    assert slow.num_workers == 2
    assert re.match(r"stage: workers × 2 \(one Slow step takes \d+\.\d ms", line)  # it sleeps 2 ms
    cheap, line = open_stage("CartPole-v1", num_envs=2)
    assert isinstance(cheap, InlineEnvironment)
    assert line.startswith("stage: inline (one CartPole-v1 step takes ")


def test_measurement_is_short_and_right() -> None:
    begin = time.perf_counter()
    seconds = measure_step(Factory(env=gym_envs.Slow))
    assert time.perf_counter() - begin < 0.9
    assert 0.002 <= seconds < 0.010


def test_cheap_steps_are_measured_with_several(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(factory: Factory, num_envs: int, faults: FaultConfig) -> float:
        measured.append(num_envs)
        return 20e-6 if num_envs == 1 else 9e-6

    monkeypatch.setattr(choose, "_measure", measure)
    factory = Factory(env="CartPole-v1")
    assert [measure_step(factory, num_envs) for num_envs in (1, 3, 64)] == [20e-6, 9e-6, 9e-6]
    assert measured == [1, 1, 3, 1, 8]


def test_asked_for_stage_is_given(open_stage: Any) -> None:
    inline, line = open_stage("CartPole-v1", num_envs=2, stage="inline", kwargs={"max_episode_steps": 5})
    assert isinstance(inline, InlineEnvironment)
    assert line == "stage: inline (as asked)"
    workers, line = open_stage("gym_envs:Counter", num_envs=4, num_workers=4, kwargs={"length": 3})
    assert isinstance(workers, WorkersEnvironment)
    assert line == "stage: workers × 4 (as asked)"
    joint, line = open_stage("gym_envs:Counter", num_envs=4, stage="joint", num_workers=2)
    assert isinstance(joint, WorkersEnvironment)
    assert line == "stage: joint × 2 (as asked)"


@pytest.mark.parametrize(
    ("env", "options", "words"),
    [
        ("CartPol-v1", {}, "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
        ("CartPol-v1", {"stage": "inline"}, "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
        ("CartPol-v1", {}, "did you mean 'CartPole-v1'"),
        ("cartpole-V1", {}, "did you mean 'CartPole-v1'"),
        ("lost-sale", {}, "did you mean 'lost-sales'"),
        ("xyzzy", {}, "unknown environment 'xyzzy'; `greenroom list`"),
        ("CartPole-v1", {"stage": "worker"}, "unknown stage 'worker'; did you mean 'workers'"),
        ("CartPole-v1", {"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ("CartPole-v1", {"num_workers": 0}, "num_workers must be at least 1, not 0"),
        ("CartPole-v1", {"num_workers": 3}, "num_envs=4 is not divisible by num_workers=3; use num_workers=2 or 4"),
        ("CartPole-v1", {"stage": "device"}, "no device environment 'CartPole-v1'"),
        ("CartPole-v1", {"stage": "native"}, "no native stage"),
        ("lost-sales", {"stage": "workers"}, "'lost-sales' is a device environment; use --stage device or auto"),
        (gym_envs.Counter, {"stage": "native"}, "a callable cannot run on stage native"),
        ("CartPole-v1", {"kwargs": {"suton_barto_reward": True}}, "did you mean 'sutton_barto_reward'"),
        ("gym_envs:Counter", {"kwargs": {"lenght": 3}}, "takes no argument 'lenght'; did you mean 'length'"),
        ("gym_envs:needs_argument", {}, "needs the argument 'size'"),
        ("gym_envs:Conter", {}, "module 'gym_envs' has no factory 'Conter'; did you mean 'Counter'"),
        ("gym_env:Counter", {}, "there is no module 'gym_env'"),
        ("gym_envs:not_an_env", {}, "returned int, not a gymnasium.Env"),
        ("gym_envs:Furnished", {}, "needs the argument 'parts'"),
        ("gym_envs:Furnished-v0", {"kwargs": {"part": [1]}}, "takes no argument 'part'; did you mean 'parts'"),
        ("gym_envs:Misspelt-v0", {"stage": "inline"}, "Misspelt-v0 could not be built: AttributeError: .*Furnisht"),
        ("gym_envs:broken_factory", {}, "could not be built: RuntimeError: no licence for the simulator"),
    ],
)
def test_mistakes_are_named_with_a_remedy(env: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(env, say=lambda line: None, **{"num_envs": 4, **options})


def test_missing_extra_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text(
        "import gymnasium\n"
        "def env():\n"
        "    raise gymnasium.error.DependencyNotInstalled('run `pip install \"gymnasium[box2d]\"`')\n"
        "def another():\n"
        "    raise gymnasium.error.DependencyNotInstalled('run `pip install no-extra`')\n"
    )
    (tmp_path / "importing.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r'needs the extra "box2d": pip install "greenroom\[box2d\]"'):
        make("lacking:env", num_envs=1)
    with pytest.raises(UserError, match=r"needs a package that is not installed: run `pip install no-extra`"):
        make("lacking:another", num_envs=1)
    with pytest.raises(UserError, match="importing 'importing' needs 'no_such_package_at_all', which is not installed"):
        make("importing:env", num_envs=1)


@pytest.mark.parametrize(
    ("env", "module", "extra"), [("LunarLander-v3", "Box2D", "box2d"), ("Ant-v5", "mujoco", "mujoco")]
)
def test_missing_simulator_names_its_extra(env: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=rf'{env} needs the extra "{extra}": pip install "greenroom\[{extra}\]"'):
        make(env, num_envs=1, stage="inline")


def test_a_module_that_raises_is_named_when_its_environment_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('no display')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="Raising-v0 could not be built: RuntimeError: no display"):
        make("Raising-v0", num_envs=1, stage="inline")


def test_a_registration_may_bring_the_arguments() -> None:
    assert Factory(env="gym_envs:Furnished-v0").build().unwrapped.parts == [0]  # type: ignore[attr-defined]


def test_what_registers_itself_on_import_is_not_registered_twice_in_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    environment = make("Furnished-v0", num_envs=2, stage="workers", num_workers=1)  # known here, since it is imported
    environment.reset(0)
    environment.close()
    assert "Overriding" not in capfd.readouterr().err


def test_each_environment_has_its_arguments_to_itself() -> None:
    class Handle:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is one of it")

    given, handle = [7], Handle()
    factory = Factory(env=gym_envs.Furnished, kwargs={"parts": given, "weights": handle})
    one, other = factory.build(), factory.build()
    assert one.parts == other.parts == [7, 1] and given == [7]  # type: ignore[attr-defined]
    assert one.weights is handle  # type: ignore[attr-defined]  # what cannot be copied is shared


def test_an_array_may_be_a_default() -> None:
    told = {argument.name: argument.default for argument in arguments_of("gym_envs:Furnished")}
    assert told == {"parts": "", "weights": "[1. 1.]"}


def test_a_failing_factory_keeps_its_traceback() -> None:
    with pytest.raises(UserError) as caught:
        make("gym_envs:broken_factory", num_envs=1)
    cause = caught.value.__cause__
    assert isinstance(cause, RuntimeError)
    assert cause.__traceback__ is not None


@pytest.mark.parametrize(
    ("num_envs", "limit", "expected"), [(12, 5, 4), (7, 4, 1), (64, 2, 2), (2, 16, 2), (30, 16, 15)]
)
def test_largest_divisor(num_envs: int, limit: int, expected: int) -> None:
    assert largest_divisor(num_envs, limit) == expected


def test_list_names_every_kind() -> None:
    names = list_environments()
    assert "lost-sales" in names["device"]
    assert "ALE/Pong-v5" in names["native"]
    assert "CartPole-v1" in names["gymnasium"]
    assert not set(names["native"]) & set(names["gymnasium"])
