"""The device stage: ends, resets, seeds, snapshots, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from greenroom import seeding
from greenroom.envs import make
from greenroom.envs.base import Snapshotable
from greenroom.envs.device import DEVICE_ENVIRONMENTS, DeviceEnvironment, make_device, model_of
from greenroom.envs.faults import FaultConfig
from greenroom.envs.lost_sales import LostSales
from greenroom.envs.model import State, Transition
from greenroom.errors import EnvironmentFault, UserError
from greenroom.presets import preset
from greenroom.spec import ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.types import Step


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """Starts at a random count of 3 … 6 and goes down by the action; terminates at 0 or below. Draws noise too."""

    horizon: int = 0
    terminates: bool = True
    claims_to_end: bool = True
    rows: int = 0

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(name="countdown", obs=ArraySpec(shape=(1,)), action=Discrete(n=3), signals=("noise",))

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        count = torch.randint(3, 7, (self.rows or num_envs,), generator=generator, device=device)
        return {"count": count, "history": torch.zeros(num_envs, 2, 2, device=device)}

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        count = state["count"] - action
        noise = torch.rand(len(count), generator=generator, device=count.device)
        return Transition(
            state={"count": count, "history": state["history"] + 1},
            reward=count.float(),
            terminated=count <= 0 if self.claims_to_end else None,
            signals={"noise": noise},
        )

    def observe(self, state: State) -> Tensor:
        return state["count"][:, None].float()


@dataclass(frozen=True, kw_only=True)
class Leaky(Countdown):
    """A countdown in which a row breaks in the state below a count of 1, as `wrong` says."""

    wrong: str = "observation"

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        if self.wrong == "raise":
            raise ValueError("no such order")
        transition = super().step(state, action, generator)
        numbers = transition.reward
        if self.wrong == "shape":
            return dataclasses.replace(transition, reward=numbers[:, None])
        if self.wrong == "reward":
            numbers = torch.where(numbers < 1, torch.inf, numbers)
        return dataclasses.replace(transition, reward=numbers)

    def observe(self, state: State) -> Tensor:
        obs = super().observe(state)
        if self.wrong == "first":
            return torch.where(obs == 6, torch.nan, obs)
        return torch.where(obs < 1, torch.nan, obs) if self.wrong == "observation" else obs


def actions_for(stage: DeviceEnvironment, generator: torch.Generator) -> Tensor:
    """Random actions of the right form."""
    form, size = stage.spec.action, stage.num_envs
    if isinstance(form, Bounded):
        return torch.rand(size, *form.shape, generator=generator)
    counts = form.nvec if isinstance(form, MultiDiscrete) else (form.n,)
    drawn = torch.stack([torch.randint(count, (size,), generator=generator) for count in counts], dim=1)
    return drawn if isinstance(form, MultiDiscrete) else drawn[:, 0]


def roll(stage: DeviceEnvironment, steps: int, action_seed: int) -> list[Step]:
    generator = torch.Generator().manual_seed(action_seed)
    heard = []
    for _ in range(steps):
        stage.send(actions_for(stage, generator))
        heard.append(stage.recv())
    return heard


def assert_equal(left: object, right: object) -> None:
    """Equal to the bit, through dicts."""
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_equal(left[name], right[name])
    else:
        assert isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)


def assert_same_steps(left: list[Step], right: list[Step]) -> None:
    for one, other in zip(left, right, strict=True):
        for name in ("obs", "reward", "terminated", "truncated", "final_obs", "signals"):
            assert_equal(getattr(one, name), getattr(other, name))
        for name in ("index", "returns", "lengths", "signals"):
            assert_equal(getattr(one.episodes, name), getattr(other.episodes, name))


def test_ends_resets_and_final_observations_by_hand() -> None:
    """Against a plain loop over environments that keeps its own books."""
    stage = DeviceEnvironment(Countdown(horizon=4), 64)
    obs = stage.reset(0)
    assert isinstance(obs, Tensor)
    generator = torch.Generator().manual_seed(1)
    count = [int(value) for value in obs[:, 0]]
    returns, lengths, noise = [0.0] * 64, [0] * 64, [0.0] * 64
    kinds = set()
    for _ in range(40):
        action = actions_for(stage, generator)
        stage.send(action)
        step = stage.recv()
        assert isinstance(step.obs, Tensor) and isinstance(step.final_obs, Tensor)
        ended: list[int] = []
        for i in range(64):
            count[i] -= int(action[i])
            returns[i] += count[i]
            lengths[i] += 1
            noise[i] += float(step.signals["noise"][i])
            terminated, truncated = count[i] <= 0, lengths[i] == 4
            assert (bool(step.terminated[i]), bool(step.truncated[i])) == (terminated, truncated)
            kinds.add((terminated, truncated))
            if not terminated and not truncated:
                assert float(step.obs[i]) == count[i]
                continue
            place = len(ended)
            ended.append(i)
            assert float(step.final_obs[place]) == count[i]
            assert float(step.episodes.returns[place]) == returns[i]
            assert int(step.episodes.lengths[place]) == lengths[i]
            assert float(step.episodes.signals["noise"][place]) == pytest.approx(noise[i], rel=1e-5)
            count[i] = int(step.obs[i])
            assert 3 <= count[i] <= 6
            assert not stage.state["history"][i].any()
            returns[i], lengths[i], noise[i] = 0.0, 0, 0.0
        assert step.episodes.index.tolist() == ended and len(step.final_obs) == len(ended)
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_horizon_of_a_model_that_never_terminates() -> None:
    stage = DeviceEnvironment(LostSales(horizon=5), 3)
    first = stage.reset(0)
    steps = roll(stage, 15, 0)
    for number, step in enumerate(steps, start=1):
        cut = number % 5 == 0
        assert step.truncated.tolist() == [cut] * 3 and not step.terminated.any()
        assert isinstance(step.final_obs, Tensor) and step.final_obs.shape == ((3 if cut else 0), 4)
        assert step.episodes.lengths.tolist() == ([5] * 3 if cut else [])
    total = torch.stack([step.reward for step in steps[5:10]]).sum(0)
    assert torch.allclose(steps[9].episodes.returns, total)
    assert torch.allclose(
        steps[9].episodes.signals["holding"] + steps[9].episodes.signals["penalty"], -steps[9].episodes.returns
    )
    assert isinstance(first, Tensor) and first.shape == (3, 4)


def test_no_horizon_never_ends() -> None:
    stage = DeviceEnvironment(LostSales(horizon=0), 2)
    stage.reset(0)
    assert not any(bool(step.truncated.any()) or bool(step.terminated.any()) for step in roll(stage, 300, 0))


@pytest.mark.parametrize("name", DEVICE_ENVIRONMENTS)
def test_same_seed_same_steps_and_other_seed_other_steps(name: str) -> None:
    kwargs = {"horizon": 7} if name == "lost-sales" else {}
    first, second = (make_device(name, 6, kwargs) for _ in range(2))
    assert_equal(first.reset(4), second.reset(4))
    assert_same_steps(roll(first, 30, 2), roll(second, 30, 2))
    first.reset(4)
    steps = roll(second, 30, 2)
    second.reset(4)
    assert_same_steps(roll(first, 30, 2), roll(second, 30, 2))
    if name == "lost-sales":
        second.reset(5)
        assert not torch.equal(roll(second, 1, 2)[0].reward, steps[0].reward)


def test_chance_depends_on_neither_actions_nor_resets() -> None:
    """Common random numbers: the noise of every step is the same, whoever ended and whatever was done."""
    noises = []
    for action_seed in (1, 2):
        stage = DeviceEnvironment(Countdown(horizon=5), 16)
        stage.reset(9)
        steps = roll(stage, 50, action_seed)
        noises.append(torch.stack([step.signals["noise"] for step in steps]))
        ends = torch.stack([step.terminated for step in steps])
        assert ends.any() and not ends.all()
    assert torch.equal(*noises)


def test_demand_path_is_common_to_all_policies() -> None:
    """With an empty shop in each period, or a full one, the same demand shows as lost units or as units sold."""
    never = DeviceEnvironment(LostSales(start="empty", lead_time=1, horizon=10), 50)
    always = DeviceEnvironment(LostSales(start="empty", lead_time=1, horizon=10), 50)
    never.reset(1)
    always.reset(1)
    for period in range(40):
        before = always.state["inventory"][:, 0].clone()
        never.send(torch.zeros(50, dtype=torch.int64))
        always.send(torch.full((50,), 40))
        demand = never.recv().signals["penalty"] / 4
        left = always.recv().signals["holding"]
        assert period % 10 == 0 or torch.equal(before - demand, left)


@pytest.mark.parametrize("name", [*DEVICE_ENVIRONMENTS, "countdown"])
def test_snapshot_continues_the_same_episodes(name: str) -> None:
    def build() -> DeviceEnvironment:
        if name == "countdown":
            return DeviceEnvironment(Countdown(horizon=4), 8)
        return make_device(name, 8, {"horizon": 9} if name == "lost-sales" else {})

    original = build()
    assert isinstance(original, Snapshotable)
    original.reset(3)
    roll(original, 13, 0)
    saved = original.state_dict()
    expected = roll(original, 20, 1)
    copy = build()
    copy.load_state_dict(saved)
    assert_same_steps(roll(copy, 20, 1), expected)
    again = build()
    again.reset(77)
    again.load_state_dict(saved)  # stepping the first copy must not have changed what was saved
    assert_same_steps(roll(again, 20, 1), expected)


def test_snapshot_of_another_size_is_refused() -> None:
    stage = make_device("lost-sales", 4)
    stage.reset(0)
    with pytest.raises(UserError, match="4 environments, not 5"):
        make_device("lost-sales", 5).load_state_dict(stage.state_dict())


def test_wrong_order_of_calls_is_loud() -> None:
    stage = make_device("lost-sales", 2)
    order = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="reset"):
        stage.send(order)
    stage.reset(0)
    with pytest.raises(RuntimeError, match="recv without send"):
        stage.recv()
    stage.send(order)
    with pytest.raises(RuntimeError, match="twice"):
        stage.send(order)
    with pytest.raises(RuntimeError, match="between send and recv"):
        stage.state_dict()
    stage.recv()
    stage.close()
    stage.close()


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("lost-sales", torch.zeros(3, dtype=torch.int64)),
        ("lost-sales", torch.zeros(2)),
        ("lost-sales", torch.zeros(2, 1, dtype=torch.int64)),
        ("probe-continuous", torch.zeros(2)),
        ("probe-multi-discrete", torch.zeros(2, 3, dtype=torch.int64)),
    ],
)
def test_actions_of_the_wrong_form_are_refused(name: str, action: Tensor) -> None:
    stage = make_device(name, 2)
    stage.reset(0)
    with pytest.raises(ValueError, match=f"{name}: actions must be"):
        stage.send(action)


@pytest.mark.parametrize("model", [Countdown(claims_to_end=False), Countdown(terminates=False)])
def test_a_model_must_say_whether_it_terminates(model: Countdown) -> None:
    stage = DeviceEnvironment(model, 2)
    stage.reset(0)
    stage.send(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(EnvironmentFault, match="terminates"):
        stage.recv()


def test_a_model_with_the_wrong_number_of_states_is_named() -> None:
    with pytest.raises(EnvironmentFault, match=r"countdown: state 'count' has shape \[3\]; .* num_envs = 2"):
        DeviceEnvironment(Countdown(rows=3), 2).reset(0)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'lost-sales'"):
        make_device("lost-sale", 2)
    with pytest.raises(UserError, match="lost-sales has no parameter 'penalti'; did you mean 'penalty'"):
        make_device("lost-sales", 2, {"penalti": 3.0})
    with pytest.raises(UserError, match="probe-action has no parameter 'mean'"):
        make_device("probe-action", 2, {"mean": 3.0})
    with pytest.raises(UserError, match="num_envs must be at least 1"):
        make_device("lost-sales", 0)


def test_a_model_of_ones_own_is_a_device_environment_by_name_or_itself() -> None:
    for env in ("test_device:Countdown", Countdown):
        stage = make(env, num_envs=2, kwargs={"horizon": 3}, say=lambda line: None)
        assert isinstance(stage, DeviceEnvironment) and stage.model == Countdown(horizon=3)
    assert preset(None, "test_device:Countdown") == dataclasses.replace(
        preset("inventory", "lost-sales"), env="test_device:Countdown"
    )
    with pytest.raises(UserError, match="is a device environment; use --stage device or auto"):
        make("test_device:Countdown", num_envs=2, stage="inline")


def test_what_only_looks_like_a_model_is_not_one() -> None:
    for env in ("CartPole-v1", "envpool:CartPole-v1", "gym_envs:Counter", "gym_envs:broken_factory", Observing):
        assert model_of(env) is None
    with pytest.raises(UserError, match="no device environment 'gym_envs:Counter', and no class with the methods init"):
        make("gym_envs:Counter", num_envs=2, stage="device")


class Observing(gymnasium.Env[Any, Any]):
    """An environment with methods of its own that are called as a model's."""

    def initial(self) -> None:
        """Nothing."""

    def observe(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fails": True}, "test_device:Unfinished could not be built: ZeroDivisionError"),
        ({}, "test_device:Unfinished: a model needs 'horizon', of type int; see greenroom.envs.model.Model"),
        ({"fail": True}, "has no parameter 'fail'; did you mean 'fails'"),
    ],
)
def test_a_model_that_lacks_something_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("test_device:Unfinished", num_envs=2, kwargs=given)


class Unfinished:
    """Has no horizon, and may not even be built."""

    spec = Countdown().spec
    terminates = True
    initial = step = observe = Countdown.observe

    def __init__(self, fails: bool = False) -> None:
        _ = 1 / (1 - fails)


def descend(model: Countdown, limit: int = 100, *, restart: bool = True) -> Iterator[Step]:
    """Steps of 8 countdowns that each go down by one, or by two: those of odd number."""
    how = FaultConfig(on_env_error="restart" if restart else "stop", max_env_restarts=limit)
    stage = DeviceEnvironment(model, 8, faults=how)
    stage.reset(3)
    while True:
        stage.send(torch.arange(8) % 2 + 1)
        step = stage.recv()
        yield step


@pytest.mark.parametrize(("wrong", "words"), [("observation", "the observation holds"), ("reward", "the reward holds")])
def test_a_row_of_no_numbers_is_named_with_what_led_to_it(wrong: str, words: str) -> None:
    with pytest.raises(EnvironmentFault, match=words) as caught:
        list(descend(Leaky(wrong=wrong), restart=False))
    fault = caught.value.fault
    assert fault is not None and caught.value.index == fault.index
    count = int(torch.randint(3, 7, (8,), generator=_resets(3))[fault.index])
    by = fault.index % 2 + 1
    assert fault.step == fault.steps == -(-count // by), "the step that takes this row below 1"
    assert f"environment {fault.index}, step {fault.step}: " in fault.what
    assert f"the action {by} in the state {{'count': {count - by * (fault.step - 1)}," in fault.what
    assert (fault.seed, fault.episode, fault.actions, fault.restarted) == (3, 0, (), ())


def _resets(seed: int) -> torch.Generator:
    return seeding.generator(seed, "environment", "resets")


@pytest.mark.parametrize("wrong", ["observation", "reward"])
@pytest.mark.parametrize("terminates", [True, False])
def test_a_row_of_no_numbers_is_started_anew_if_asked(wrong: str, terminates: bool) -> None:
    model = Leaky(wrong=wrong, terminates=terminates, claims_to_end=terminates)
    failed, before = 0, torch.full((8,), torch.nan)
    for step in itertools.islice(descend(model, 10**6), 60):
        assert isinstance(step.obs, Tensor) and isinstance(step.final_obs, Tensor)
        lost = torch.zeros(8, dtype=torch.bool)
        for fault in step.faults:
            assert fault.restarted == (fault.index,)
            lost[fault.index] = True
        failed += int(lost.sum())
        assert torch.equal(lost, before - torch.arange(8) % 2 - 1 < 1), "those that went below 1"
        assert torch.equal(step.truncated, lost) and not step.terminated.any()
        assert torch.equal(step.reward == 0, lost) and torch.equal(step.signals["noise"] == 0, lost)
        assert step.reward.isfinite().all() and step.obs.isfinite().all() and step.final_obs.isfinite().all()
        assert (step.obs[lost, 0] >= 3).all(), "a new episode"
        assert len(step.final_obs) == lost.sum() and not len(step.episodes.index)
        before = step.obs[:, 0]
    assert failed > 60


def test_rows_beside_a_failed_one_never_notice() -> None:
    class Broken(LostSales):
        def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
            transition = super().step(state, action, generator)
            reward = transition.reward.clone()
            reward[1] = torch.where(reward[1] < -20, torch.nan, reward[1])
            return dataclasses.replace(transition, reward=reward)

    sound = DeviceEnvironment(LostSales(horizon=0), 4)
    broken = DeviceEnvironment(Broken(horizon=0), 4, faults=FaultConfig(on_env_error="restart", max_env_restarts=10**6))
    others, faults = torch.tensor([0, 2, 3]), 0
    for stage in (sound, broken):
        stage.reset(5)
    for one, other in zip(roll(sound, 200, 1), roll(broken, 200, 1), strict=True):
        assert isinstance(one.obs, Tensor) and isinstance(other.obs, Tensor)
        assert torch.equal(one.obs[others], other.obs[others]) and torch.equal(one.reward[others], other.reward[others])
        assert {fault.index for fault in other.faults} <= {1}
        faults += len(other.faults)
    assert faults > 3


def test_failures_are_limited_and_everything_else_ends_the_run() -> None:
    with pytest.raises(EnvironmentFault, match="failure number 6 of this sitting, max_env_restarts is 5"):
        list(descend(Leaky(), limit=5))
    with pytest.raises(EnvironmentFault, match="countdown: a step raised ValueError: no such order") as caught:
        list(descend(Leaky(wrong="raise")))
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(EnvironmentFault, match=r"countdown: the reward has shape \[8, 1\], not \[8\]"):
        list(descend(Leaky(wrong="shape")))
    with pytest.raises(EnvironmentFault, match="the first observation of an episode holds NaN or infinity"):
        list(descend(Leaky(wrong="first")))


def test_huge_numbers_are_numbers() -> None:
    class Huge(LostSales):
        def observe(self, state: State) -> Tensor:
            return super().observe(state) * 1e30

    stage = DeviceEnvironment(Huge(), 4)
    stage.reset(0)
    assert all(not step.faults for step in roll(stage, 10, 0))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", DEVICE_ENVIRONMENTS)
def test_on_a_gpu(name: str) -> None:
    """Everything stays there, and a model that never terminates does not wait for it outside the horizon."""
    stage = make_device(name, 32, {"horizon": 20} if name == "lost-sales" else {}, "cuda")
    stage.reset(0)
    action = actions_for(stage, torch.Generator()).cuda()
    for number in range(1, 45):
        quiet = name == "lost-sales" and number > 1 and number % 20 != 0
        try:
            torch.cuda.set_sync_debug_mode("error" if quiet else "default")
            stage.send(action)
            step = stage.recv()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        parts = [step.reward, step.terminated, step.truncated, step.episodes.index, step.episodes.returns]
        parts += list(step.obs.values()) if isinstance(step.obs, dict) else [step.obs]
        assert {part.device.type for part in parts} == {"cuda"}
    saved = stage.state_dict()
    expected = stage_rewards(stage, action)
    stage.load_state_dict(saved)
    assert torch.equal(stage_rewards(stage, action), expected)


def stage_rewards(stage: DeviceEnvironment, action: Tensor) -> Tensor:
    """Rewards `[25, B]` of 25 steps of one action."""
    rewards = []
    for _ in range(25):
        stage.send(action)
        rewards.append(stage.recv().reward)
    return torch.stack(rewards)
