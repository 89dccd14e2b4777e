"""Replay gives back exactly what happened: against a slow definition, bit for bit, wherever episodes and rings end."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import replay as study
from greenroom import archive, checkpoint, machine
from greenroom.acting import unfinished
from greenroom.batch import Batch, Sequences
from greenroom.errors import UserError
from greenroom.frames import FramePool
from greenroom.replay import Replay, ReplayConfig
from greenroom.spec import MASK, ActionSpec, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete, ObsSpec
from greenroom.sumtree import SumTree
from greenroom.transient import Transient
from greenroom.types import Episodes, Obs, Rollout, State, map_obs

CPU = torch.device("cpu")
VECTOR = ArraySpec(shape=(3,))
IMAGE = ArraySpec(shape=(4, 2, 3), dtype=torch.uint8, low=0, high=255, stack=4)
NO_EPISODES = Episodes(
    index=torch.zeros(0, dtype=torch.int64),
    returns=torch.zeros(0),
    lengths=torch.zeros(0, dtype=torch.int64),
    signals={},
)


def sequences(replay: Replay, length: int) -> int:
    """How many of so many steps may be drawn."""
    return len(replay._starts(length)) * replay.num_envs


@dataclass
class World:
    """Random episodes of B environments, and a memory of everything that happened in them.

    Pixels have three values, so that frames often look alike. A new episode's stack is black but for its newest frame,
    or its first frame four times, or four frames, or goes on with the old one (a lost life).
    """

    obs_spec: ObsSpec
    num_envs: int
    seed: int = 0
    longest: int = 12
    action_spec: ActionSpec = field(default_factory=lambda: Discrete(n=5))
    state_size: int = 0
    openings: tuple[int, ...] = (0, 1, 2, 3)
    """The kinds of stacks that episodes begin with."""

    def __post_init__(self) -> None:
        self.source = torch.Generator().manual_seed(self.seed)
        self.spec = EnvSpec(name="world", obs=self.obs_spec, action=self.action_spec)
        self.obs: list[list[Obs]] = []  # by time and environment; so are the others
        self.action: list[Tensor] = []
        self.reward: list[Tensor] = []
        self.ends: list[tuple[Tensor, Tensor]] = []
        self.final: dict[tuple[int, int], Obs] = {}
        self.states: dict[int, Tensor] = {}
        self.start_anew()

    def start_anew(self) -> None:
        """All environments begin new episodes."""
        self.now = [self._first() for _ in range(self.num_envs)]
        self.left = [self._draw(1, self.longest + 1) for _ in range(self.num_envs)]

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.source))

    def _frames(self, spec: ArraySpec, count: int) -> Tensor:
        shape = (count * spec.shape[0] // spec.stack, *spec.shape[1:]) if spec.shape else ()
        return torch.randint(0, 3, shape, generator=self.source).to(spec.dtype)

    def _first(self, before: Obs | None = None) -> Obs:
        if isinstance(self.obs_spec, dict):
            return {name: self._first_of(part) for name, part in self.obs_spec.items()}
        return self._first_of(self.obs_spec, before)

    def _first_of(self, spec: ArraySpec, before: Obs | None = None) -> Tensor:
        newest = self._frames(spec, 1)
        if spec.stack == 1:
            return newest
        repeats = (spec.stack, *[1] * (newest.ndim - 1))
        match self.openings[self._draw(0, len(self.openings))]:
            case 0:
                return torch.cat([torch.zeros_like(newest).repeat(repeats)[len(newest) :], newest])
            case 1:
                return newest.repeat(repeats)
            case 2 if isinstance(before, Tensor):
                return self._next_of(spec, before)
            case _:
                return self._frames(spec, spec.stack)

    def _next(self, before: Obs) -> Obs:
        if isinstance(before, dict):
            assert isinstance(self.obs_spec, dict)
            return {name: self._next_of(self.obs_spec[name], part) for name, part in before.items()}
        assert isinstance(self.obs_spec, ArraySpec)
        return self._next_of(self.obs_spec, before)

    def _next_of(self, spec: ArraySpec, before: Tensor) -> Tensor:
        newest = self._frames(spec, 1)
        return newest if spec.stack == 1 else torch.cat([before[len(newest) :], newest])

    def _action(self) -> Tensor:
        match self.action_spec:
            case Discrete(n=n):
                return torch.randint(n, (self.num_envs,), generator=self.source)
            case MultiDiscrete(nvec=nvec):
                return torch.stack([torch.randint(n, (self.num_envs,), generator=self.source) for n in nvec], dim=1)
            case Bounded(shape=shape):
                return torch.rand((self.num_envs, *shape), generator=self.source)

    def rollout(self, length: int) -> Rollout:
        """The next T steps."""
        shown, finals, start = [list(self.now)], [], len(self.reward)
        states = torch.rand(self.num_envs, self.state_size, generator=self.source)
        self.states[start] = states
        for _ in range(length):
            time = len(self.reward)
            self.obs.append(list(self.now))
            terminated, truncated = torch.zeros(2, self.num_envs, dtype=torch.bool)
            for env in range(self.num_envs):
                before, self.now[env] = self.now[env], self._next(self.now[env])
                self.left[env] -= 1
                if self.left[env] == 0:
                    kind = self._draw(0, 3)
                    terminated[env], truncated[env] = kind != 1, kind != 0
                    self.final[time, env] = self.now[env]
                    finals.append(self.now[env])
                    self.now[env] = self._first(before)
                    self.left[env] = self._draw(1, self.longest + 1)
            self.action.append(self._action())
            self.reward.append(torch.randint(-3, 4, (self.num_envs,), generator=self.source).float())
            self.ends.append((terminated, truncated))
            shown.append(list(self.now))
        state: State = {"hidden": states.clone()} if self.state_size else {}
        return Rollout(
            obs=stack([stack(row, self.obs_spec) for row in shown], self.obs_spec),
            action=torch.stack(self.action[start:]),
            reward=torch.stack(self.reward[start:]),
            terminated=torch.stack([terminated for terminated, _ in self.ends[start:]]),
            truncated=torch.stack([truncated for _, truncated in self.ends[start:]]),
            final_obs=stack(finals, self.obs_spec),
            extras={},
            state=state,
            next_state=state,
            final_state={},
            version=0,
            episodes=NO_EPISODES,
        )

    def breaks_off(self) -> None:
        """The process ends here, and the run is resumed with new episodes: the running ones were cut."""
        terminated, truncated = self.ends[-1]
        for env in range(self.num_envs):
            if not (terminated[env] or truncated[env]):
                truncated[env] = True
                self.final[len(self.reward) - 1, env] = self.now[env]
        self.start_anew()

    def transition(self, time: int, env: int, n_step: int, gamma: float) -> tuple[float, float, Obs]:
        """The folded reward, the discount and the next observation, by the definition."""
        total = 0.0
        for k in range(n_step):
            total += gamma**k * float(self.reward[time + k][env])
            terminated, truncated = self.ends[time + k]
            if terminated[env] or truncated[env]:
                return total, 0.0 if terminated[env] else gamma ** (k + 1), self.final[time + k, env]
            if time + k + 1 == len(self.reward):
                return total, gamma ** (k + 1), self.now[env]
        return total, gamma**n_step, self.obs[time + n_step][env]


def stack(parts: list[Obs], spec: ObsSpec) -> Obs:
    if isinstance(spec, dict):
        return {name: stack_of([part[name] for part in parts if isinstance(part, dict)], spec[name]) for name in spec}
    return stack_of([part for part in parts if isinstance(part, Tensor)], spec)


def stack_of(parts: list[Tensor], spec: ArraySpec) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros((0, *spec.shape), dtype=spec.dtype)


def moved(value: Any, device: torch.device) -> Any:
    """A dataclass with all its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        )
    return value


def assert_equal(one: Obs, other: Obs) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict) and list(one) == list(other)
        for name, part in one.items():
            assert_equal(part, other[name])
    else:
        assert isinstance(other, Tensor) and one.dtype == other.dtype
        assert torch.equal(one, other)


def build(world: World, seed: int = 0, **options: object) -> Replay:
    config = ReplayConfig(**options)  # type: ignore[arg-type]
    return config.build(world.spec, num_envs=world.num_envs, gamma=0.5, total_steps=1000, seed=seed, device=CPU)


def everything(replay: Replay) -> Batch:
    """A draw so large that every transition is in it."""
    batch = replay.sample(40 * len(replay) + 200)
    assert len(batch.index.unique()) == len(replay)
    return batch


def check(replay: Replay, world: World) -> None:
    """Every transition that may be drawn is what happened; rewards and a gamma of ½ are exact in float32."""
    batch = everything(replay)
    first = len(world.reward) * world.num_envs - len(replay)
    seen: dict[int, int] = {number: row for row, number in enumerate(batch.index.tolist())}
    assert sorted(seen) == list(range(first, len(world.reward) * world.num_envs))
    for number, row in seen.items():
        time, env = divmod(number, world.num_envs)
        reward, discount, next_obs = world.transition(time, env, replay.config.n_step, replay.gamma)
        assert_equal(map_obs(lambda part, at=row: part[at], batch.obs), world.obs[time][env])  # type: ignore[misc]
        assert_equal(map_obs(lambda part, at=row: part[at], batch.next_obs), next_obs)  # type: ignore[misc]
        assert torch.equal(batch.action[row], world.action[time][env])
        assert (float(batch.reward[row]), float(batch.discount[row])) == (reward, discount)


@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.parametrize("obs", [VECTOR, IMAGE], ids=["vector", "image"])
def test_every_transition_is_what_happened_at_every_moment(obs: ObsSpec, n_step: int) -> None:
    """Three rollouts are shorter than eight steps; ends of all three kinds, rollout borders, and a ring that wraps."""
    world = World(obs, num_envs=3, longest=9)
    replay = build(world, capacity=4 * 4 * 3 + 7, n_step=n_step)
    assert len(replay) == 0
    for _ in range(14):
        replay.add(world.rollout(4))
        check(replay, world)
    kinds = {(bool(term[env]), bool(trunc[env])) for term, trunc in world.ends for env in range(3)}
    assert len(kinds) == 4


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    longest=st.integers(1, 50),
    length=st.integers(1, 5),
    num_envs=st.integers(1, 3),
    stack_size=st.sampled_from([1, 2, 4]),
    colours=st.sampled_from([1, 3]),
    pixels=st.sampled_from([1, 8]),
    room=st.integers(4, 9),
    rollouts=st.integers(1, 20),
    n_step=st.integers(1, 6),
)
def test_frames_that_are_kept_once_come_back_bit_for_bit(
    seed: int,
    longest: int,
    length: int,
    num_envs: int,
    stack_size: int,
    colours: int,
    pixels: int,
    room: int,
    rollouts: int,
    n_step: int,
) -> None:
    spec = ArraySpec(shape=(stack_size * colours, 1, pixels), dtype=torch.uint8, stack=stack_size)
    world = World(spec, num_envs, seed=seed, longest=longest)
    replay = build(world, capacity=room * length * num_envs, n_step=n_step)
    for _ in range(rollouts):
        replay.add(world.rollout(length))
    if len(replay):
        check(replay, world)


def test_long_episodes_lose_no_room_and_short_ones_only_room() -> None:
    for longest in (1, 60):
        world = World(ArraySpec(shape=(4, 5, 5), dtype=torch.uint8, stack=4), num_envs=2, longest=longest)
        replay = build(world, capacity=2000)
        for _ in range(300):
            replay.add(world.rollout(5))
        assert len(replay) == 2000 if longest == 60 else 200 < len(replay) < 1000
        check(replay, world)


def test_a_rollout_with_more_frames_than_there_is_room_for() -> None:
    """Each step ends an episode, and each episode begins with eight new frames."""
    spec = ArraySpec(shape=(8, 1, 9), dtype=torch.uint8, stack=8)
    world = World(spec, num_envs=2, longest=1, openings=(3,))
    replay = build(world, capacity=4 * 60 * 2)
    for _ in range(3):
        replay.add(world.rollout(60))
        assert 0 < len(replay) < 120
        check(replay, world)


def test_a_rollout_at_an_odd_address() -> None:
    world = World(ArraySpec(shape=(2, 8), dtype=torch.uint8, stack=2), num_envs=1)
    replay = build(world, capacity=100)
    for _ in range(3):
        rollout = world.rollout(4)
        assert isinstance(rollout.obs, Tensor)
        memory = torch.zeros(3 + rollout.obs.numel(), dtype=torch.uint8)
        memory[3:] = rollout.obs.flatten()
        replay.add(dataclasses.replace(rollout, obs=memory[3:].view_as(rollout.obs)))
    check(replay, world)


def test_a_frame_is_kept_once() -> None:
    """Steps of Atari: 1 frame each; an end adds its last frame, and a black one before the next game's first."""
    pool = FramePool(IMAGE, times=100, num_envs=1, device=CPU)
    frame = torch.arange(1, 101, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    black = torch.zeros(3, 2, 3, dtype=torch.uint8)
    game = torch.cat([black, frame[:9, 0]])
    first = torch.stack([game[t : t + 4] for t in range(8)]).unsqueeze(1)
    again = torch.cat([black, frame[20]])
    obs = torch.cat([first, again.view(1, 1, 4, 2, 3)])
    cut = torch.zeros(8, 1, dtype=torch.bool)
    cut[7] = True
    pool.write(0, obs, cut, game[8:12].unsqueeze(0), torch.zeros(1, dtype=torch.bool))
    assert pool.state_dict(1)["pushed"] == 1 + 8 + 1 + 2
    assert torch.equal(pool.read(pool.obs[:9]), obs[:, 0])
    assert torch.equal(pool.read(pool.successor[7:8]), game[None, 8:12])


def test_floats_that_compare_equal_are_not_taken_for_the_same() -> None:
    """The shift of a stack is verified by bits: -0.0 is not 0.0, and NaN is itself."""
    world = World(ArraySpec(shape=(2, 1), stack=2), num_envs=1, longest=100)
    replay = build(world, capacity=100)
    rollout = world.rollout(3)
    values = torch.tensor([[0.0, 1.0], [-0.0, 0.0], [0.0, float("nan")], [float("nan"), -0.0]])
    replay.add(dataclasses.replace(rollout, obs=values.view(4, 1, 2, 1)))
    batch = everything(replay)
    assert isinstance(batch.obs, Tensor) and isinstance(batch.next_obs, Tensor)
    for number in range(3):
        row = int((batch.index == number).nonzero()[0])
        assert torch.equal(batch.obs[row].view(torch.int32), values[number].view(2, 1).view(torch.int32))
        assert torch.equal(batch.next_obs[row].view(torch.int32), values[number + 1].view(2, 1).view(torch.int32))


DICT: ObsSpec = {
    "image": ArraySpec(shape=(6, 2, 2), dtype=torch.uint8, stack=2),
    "speed": ArraySpec(shape=(2,)),
    "level": ArraySpec(shape=()),
    MASK: ArraySpec(shape=(5,)),
}


@pytest.mark.parametrize(
    ("action", "form"),
    [
        (Discrete(n=5), ((), torch.int64)),
        (MultiDiscrete(nvec=(2, 3)), ((2,), torch.int64)),
        (Bounded(shape=(2, 1), low=(-1.0, -1.0), high=(1.0, 1.0)), ((2, 1), torch.float32)),
    ],
)
def test_dicts_and_all_kinds_of_actions(action: ActionSpec, form: tuple[tuple[int, ...], torch.dtype]) -> None:
    world = World(DICT, num_envs=2, action_spec=action, longest=5)
    replay = build(world, capacity=30, n_step=2)
    for _ in range(9):
        replay.add(world.rollout(3))
    check(replay, world)
    batch = replay.sample(7)
    assert (batch.action.shape[1:], batch.action.dtype) == form and len(batch.action) == 7
    assert batch.index.dtype == torch.int64
    for part in (batch.reward, batch.discount, batch.weight):
        assert part.shape == (7,) and part.dtype == torch.float32


@pytest.mark.parametrize("longest", [3, 20])
def test_episodes_that_a_resumed_run_does_not_continue_count_as_truncated(longest: int) -> None:
    world = World(VECTOR, num_envs=3, longest=longest)
    replay = build(world, capacity=100, n_step=3)
    for number in range(10):
        replay.add(world.rollout(3))
        if number % 3:
            world.breaks_off()
    check(replay, world)
    check_sequences(replay.sample_sequences(300, 7), world, 7, 0)


def test_what_was_added_is_a_copy_and_rewards_can_be_replaced() -> None:
    world = World(VECTOR, num_envs=2)
    replay = build(world, capacity=40)
    rollout = world.rollout(4)
    assert isinstance(rollout.obs, Tensor)
    scaled = rollout.reward * 2
    world.reward[:] = list(scaled.clone())
    before = copy.deepcopy(rollout)
    replay.add(rollout, scaled)
    assert torch.equal(rollout.reward, before.reward) and torch.equal(rollout.truncated, before.truncated)
    for part in (rollout.obs, rollout.reward, scaled, rollout.action, rollout.terminated, rollout.truncated):
        part.fill_(1)
    check(replay, world)


def test_uniform_draws_are_uniform_and_repeat() -> None:
    world = World(VECTOR, num_envs=2)
    replays = [build(world, seed=seed, capacity=40) for seed in (1, 1, 2)]
    for _ in range(6):
        rollout = world.rollout(5)
        for replay in replays:
            replay.add(rollout)
    one, same, other = (replay.sample(8000).index for replay in replays)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert int(one.min()) == 20 and int(one.max()) == 59
    counts = torch.bincount(one - 20)
    # 200 expected in each of 40 cells; the statistic's 99.99 % point at 39 degrees of freedom is 81.
    assert float(((counts - 200.0) ** 2 / 200.0).sum()) < 81.0


def counts_of(replay: Replay, draws: int = 10_000) -> dict[int, int]:
    numbers, counts = replay.sample(draws).index.unique(return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def test_prioritised_draws_are_in_proportion() -> None:
    """Equal shares of the sum, one draw each: every count is within one of what is expected on either side."""
    world = World(VECTOR, num_envs=2)
    replay = build(world, capacity=40, prioritised=True, priority_exponent=1.0)
    replay.add(world.rollout(5))
    errors = torch.tensor([0.5, -1.0, 2.0, 0.0, 4.0, 3.0, 0.25, 1.0, 1.5, 8.0])
    replay.update_priorities(torch.arange(10), errors)
    expected = 10_000 * (errors.abs() + 1e-6) / (errors.abs() + 1e-6).sum()
    counts = counts_of(replay)
    for number in range(10):
        assert abs(counts.get(number, 0) - float(expected[number])) <= 2
    # What is new is as important as anything ever was, and only what is still there is drawn.
    for _ in range(3):
        replay.add(world.rollout(5))
    counts = counts_of(replay)
    total = float((errors.abs() + 1e-6).sum()) + 30 * 8.0
    assert all(abs(counts[number] - 10_000 * 8.0 / total) <= 2 for number in range(9, 40))
    replay.add(world.rollout(5))
    assert sorted(counts_of(replay)) == list(range(10, 50))


def test_importance_weights_follow_the_paper() -> None:
    world = World(VECTOR, num_envs=1)
    replay = build(world, capacity=100, prioritised=True, priority_exponent=0.7, importance_exponent=0.2)
    for _ in range(20):
        replay.add(world.rollout(5))
    errors = torch.rand(100, generator=world.source)
    replay.update_priorities(torch.arange(100), errors)
    beta = 0.2 + 0.8 * 100 / 1000
    assert replay.beta == pytest.approx(beta)
    batch = replay.sample(50)
    chance = (errors.double() + 1e-6) ** 0.7
    chance /= chance.sum()
    weight = (100 * chance[batch.index]) ** -beta
    torch.testing.assert_close(batch.weight, (weight / weight.max()).float())
    assert float(batch.weight.max()) == 1.0
    for _ in range(200):
        replay.add(world.rollout(5))
    assert replay.beta == 1.0


def test_errors_without_sense_do_not_harm_the_tree() -> None:
    world = World(VECTOR, num_envs=1)
    replay = build(world, capacity=20, prioritised=True)
    replay.add(world.rollout(5))
    replay.update_priorities(torch.arange(3), torch.tensor([float("nan"), 1.0, 1.0]))
    assert set(counts_of(replay)) == {0, 1, 2, 3, 4}
    replay.update_priorities(torch.arange(3), torch.tensor([float("inf"), float("nan"), 1.0]))
    assert set(counts_of(replay)) <= {0, 1, 2, 3, 4}


def test_the_errors_of_what_is_gone_are_passed_over() -> None:
    world = World(VECTOR, num_envs=1)
    replays = [build(world, capacity=20, prioritised=True) for _ in range(2)]
    for _ in range(6):
        rollout = world.rollout(5)
        for replay in replays:
            replay.add(rollout)
    stale = torch.arange(4, 12)  # 0 … 9 are gone
    replays[0].update_priorities(stale, torch.full((8,), 0.1))
    replays[1].update_priorities(stale[6:], torch.full((2,), 0.1))
    assert torch.equal(replays[0].sample(500).index, replays[1].sample(500).index)


def test_an_error_given_twice_counts_with_its_larger_value() -> None:
    world = World(VECTOR, num_envs=1)
    replays = [build(world, capacity=20, prioritised=True) for _ in range(2)]
    rollout = world.rollout(5)
    for replay in replays:
        replay.add(rollout)
    replays[0].update_priorities(torch.tensor([3, 3, 3]), torch.tensor([5.0, 9.0, 2.0]))
    replays[1].update_priorities(torch.tensor([3]), torch.tensor([9.0]))
    assert torch.equal(replays[0].sample(500).index, replays[1].sample(500).index)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 1000), changes=st.integers(1, 5))
def test_the_sum_tree_against_numpy(size: int, seed: int, changes: int) -> None:
    source = np.random.default_rng(seed)
    tree, leaves = SumTree(size, CPU), np.zeros(size)
    for _ in range(changes):
        index = source.choice(size, int(source.integers(1, size + 1)), replace=False)
        values = source.integers(0, 4, len(index)).astype(float)
        leaves[index] = values
        tree[torch.from_numpy(index)] = torch.from_numpy(values)
    assert float(tree.total) == leaves.sum()
    assert np.array_equal(tree[torch.arange(size)].numpy(), leaves)
    if leaves.any():
        mass = np.append(source.random(50) * leaves.sum(), [0.0, leaves.sum() - 1.0, leaves.sum()])
        found = tree.find(torch.from_numpy(mass)).numpy()
        assert np.array_equal(found[:-1], np.searchsorted(leaves.cumsum(), mass[:-1], side="right"))
        assert found[-1] == np.flatnonzero(leaves)[-1]  # a sum that was rounded up falls to the last that has any


def check_sequences(drawn: Sequences, world: World, length: int, first: int) -> None:
    assert torch.equal(drawn.cut, drawn.terminated | drawn.truncated)
    finals: list[tuple[int, int, Obs]] = []
    for place, number in enumerate(drawn.index.tolist()):
        start, env = divmod(number, world.num_envs)
        assert start in world.states and start >= first and start + length <= len(world.reward)
        if world.state_size:
            assert torch.equal(drawn.state["hidden"][place], world.states[start][env])
        for later in range(length):
            time = start + later
            at = (later, place)
            assert_equal(map_obs(lambda part, at=at: part[at], drawn.obs), world.obs[time][env])  # type: ignore[misc]
            assert torch.equal(drawn.action[at], world.action[time][env])
            assert drawn.reward[at] == world.reward[time][env]
            terminated, truncated = world.ends[time]
            assert (drawn.terminated[at], drawn.truncated[at]) == (terminated[env], truncated[env])
            if terminated[env] or truncated[env]:
                finals.append((later, place, world.final[time, env]))
        end = start + length
        last = world.now[env] if end == len(world.reward) else world.obs[end][env]
        assert_equal(map_obs(lambda part, at=place: part[length, at], drawn.obs), last)  # type: ignore[misc]
    finals.sort(key=lambda item: item[:2])
    assert_equal(drawn.final_obs, stack([final for _, _, final in finals], world.obs_spec))


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("length", [2, 3, 7])
def test_sequences_are_what_happened(length: int, prioritised: bool) -> None:
    world = World(IMAGE, num_envs=2, longest=9, state_size=3)
    replay = build(world, capacity=40, n_step=2, prioritised=prioritised)
    for _ in range(12):
        replay.add(world.rollout(3))
        first = len(world.reward) - len(replay) // 2
        starts = {2 * start + env for start in world.states if start >= first for env in (0, 1)}
        starts = {number for number in starts if number // 2 + length <= len(world.reward)}
        assert sequences(replay, length) == len(starts)
        if starts:
            drawn = replay.sample_sequences(300, length)
            assert set(drawn.index.tolist()) == starts
            check_sequences(drawn, world, length, first)


def test_sequences_are_drawn_by_the_priority_of_their_start() -> None:
    world = World(VECTOR, num_envs=2)
    replay = build(world, capacity=40, prioritised=True, priority_exponent=1.0, importance_exponent=1.0)
    for _ in range(3):
        replay.add(world.rollout(4))
    starts = torch.tensor([0, 1, 8, 9])  # the fifth and the sixth, 16 and 17, are too near to the end
    replay.update_priorities(torch.arange(24), torch.full((24,), 100.0))
    replay.update_priorities(starts, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    drawn = replay.sample_sequences(1000, 8)
    counts = torch.bincount(drawn.index, minlength=10)[starts]
    assert ((counts - torch.tensor([100, 200, 300, 400])).abs() <= 2).all()
    order = drawn.index // 8 * 2 + drawn.index % 2
    torch.testing.assert_close(drawn.weight, 1.0 / (1.0 + order))


def test_what_does_not_exist_cannot_be_drawn() -> None:
    world = World(VECTOR, num_envs=2)
    replay = build(world, capacity=40)
    for draw in (lambda: replay.sample(1), lambda: replay.sample_sequences(1, 1)):
        with pytest.raises(ValueError, match=r"empty replay|no sequence of 1 steps"):
            draw()
    replay.add(world.rollout(4))
    assert sequences(replay, 4) == 2 and sequences(replay, 5) == 0
    with pytest.raises(ValueError, match="no sequence of 5 steps"):
        replay.sample_sequences(1, 5)


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("rollouts", [2, 30])
def test_resumed_from_a_checkpoint_it_draws_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: int, prioritised: bool
) -> None:
    """Before the ring is full and after it has wrapped; through files, with the large tensors streamed."""
    monkeypatch.setattr(archive, "LARGE", 100)
    world = World(DICT, num_envs=2, state_size=2)
    replay = build(world, capacity=50, n_step=3, prioritised=prioritised)
    for _ in range(rollouts):
        replay.add(world.rollout(3))
    batch = replay.sample(20)
    replay.update_priorities(batch.index, torch.rand(20, generator=world.source) * 5)
    path = checkpoint.save(tmp_path, {"replay": replay.state_dict()}, env_steps=1, updates=1)
    assert len(list(path.iterdir())) > 2
    resumed = build(world, seed=99, capacity=50, n_step=3, prioritised=prioritised)
    resumed.load_state_dict(checkpoint.load(path)["replay"])
    for _ in range(5):
        error = torch.rand(16, generator=world.source)
        drawn: list[list[Batch | Sequences]] = []
        for each in (replay, resumed):
            drawn.append([batch := each.sample(16), each.sample_sequences(4, 3)])
            each.update_priorities(batch.index, error)
        for one, other in zip(*drawn, strict=True):
            for name in (item.name for item in dataclasses.fields(one)):
                assert_equal(getattr(one, name), getattr(other, name))
        rollout = world.rollout(3)
        replay.add(rollout)
        resumed.add(rollout)
        assert len(replay) == len(resumed)
    check(resumed, world)


@pytest.mark.parametrize("obs", [DICT, IMAGE], ids=["dict", "image"])
def test_without_its_memory_it_fills_anew_and_counts_on(obs: ObsSpec) -> None:
    """What an older checkpoint leaves of it: the clock of β, the numbers of transitions, and the generator."""
    world = World(obs, num_envs=2, state_size=2)
    options: dict[str, Any] = {"capacity": 50, "n_step": 3, "prioritised": True}
    replay = build(world, **options)
    for _ in range(20):
        replay.add(world.rollout(3))
    state = replay.state_dict()
    assert isinstance(state["memory"], Transient)
    assert [name for name, part in state.items() if isinstance(part, Tensor)] == ["draws"]
    resumed = build(world, seed=99, **options)
    resumed.load_state_dict({**state, "memory": {}})
    assert len(resumed) == 0 and resumed.beta == replay.beta > 0.4
    with pytest.raises(ValueError, match="empty replay"):
        resumed.sample(1)
    assert sequences(resumed, 1) == 0
    for rollouts in range(1, 30):
        resumed.add(world.rollout(3))
        assert len(resumed) == 6 * rollouts or rollouts > 5
        check(resumed, world)
        check_sequences(resumed.sample_sequences(20, 3), world, 3, first=60)
        again = build(world, **options)
        again.load_state_dict(resumed.state_dict())
        assert_equal(again.sample(50).obs, resumed.sample(50).obs)


def test_its_state_is_no_copy() -> None:
    world = World(IMAGE, num_envs=2)
    replay = build(world, capacity=50)
    replay.add(world.rollout(3))
    pool, again = (replay.state_dict()["memory"]["pools"][""] for _ in range(2))
    assert pool["frames"].data_ptr() == again["frames"].data_ptr()
    assert 6 < len(pool["frames"]) < 50  # what has been filled, not all there is room for


def test_a_state_of_another_size_is_refused() -> None:
    world = World(VECTOR, num_envs=2)
    state = build(world, capacity=50).state_dict()
    for options in ({"capacity": 60}, {"capacity": 50, "prioritised": True}):
        with pytest.raises(UserError, match="26 points in time of 2 environments and is not prioritised; use the cap"):
            build(world, **options).load_state_dict(state)


def test_a_million_atari_transitions_fit_into_eight_gigabytes() -> None:
    """Shapes only: tensors on the meta device have no memory."""
    spec = EnvSpec(name="atari", obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8, stack=4), action=Discrete(n=18))
    replay = Replay(
        ReplayConfig(capacity=1_000_000, n_step=3, prioritised=True),
        spec,
        num_envs=64,
        gamma=0.99,
        total_steps=1,
        device=CPU,
        where=torch.device("meta"),
        draws=torch.Generator(),
    )
    assert 7.3e9 < replay.nbytes <= 8e9
    assert replay.bytes_per_transition == replay.nbytes / 1_000_000


def test_every_array_is_counted() -> None:
    world = World(IMAGE, num_envs=2, state_size=3)
    replay = build(world, capacity=40, prioritised=True)
    for _ in range(30):
        replay.add(world.rollout(5))

    def total(value: object) -> int:
        if isinstance(value, dict):
            return sum(total(part) for part in value.values())
        if isinstance(value, list):
            return sum(total(part) for part in value)
        return value.nbytes if isinstance(value, Tensor) else 0

    memory = replay.state_dict()["memory"]
    assert memory["priorities"].pop("largest").nbytes == 8
    assert replay.nbytes == total(memory)


def test_too_little_room_is_refused_with_the_least_that_will_do() -> None:
    world = World(VECTOR, num_envs=8)
    with pytest.raises(UserError, match=r"capacity=31 is too small .* 1 steps in 8 environments; give at least 32 "):
        build(world, capacity=31)
    replay = build(world, capacity=100)
    with pytest.raises(UserError, match=r"capacity=100 is too small .* 4 steps in 8 environments; give at least 128 "):
        replay.add(world.rollout(4))
    replay.add(world.rollout(3))
    with pytest.raises(UserError, match="rollouts of 3 steps and cannot take one of 2; use rollout_length=3"):
        replay.add(world.rollout(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 0}, "capacity must be at least 1"),
        ({"n_step": 0}, "n_step must be at least 1"),
        ({"priority_exponent": 1.5}, "priority_exponent must lie in"),
        ({"importance_exponent": float("nan")}, "importance_exponent must lie in"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ReplayConfig(**options)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device; give auto or cpu"):
        build(World(VECTOR, num_envs=1), replay_device="cuda")


def test_the_study_measures_a_full_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: None)
    words = "--capacity 512 --num-envs 4 --rollout-length 8 --draws 2 --batch-size 8 --episode-length 50"
    study.main([*words.split(), "--out", str(tmp_path)])
    uniform, prioritised = json.loads((tmp_path / "results.json").read_text())["results"]
    for result in (uniform, prioritised):
        assert result["transitions"] == 512
        assert 84 * 84 < result["bytes_per_transition"] < 1.5 * 84 * 84
        assert result["draws_per_second"] == pytest.approx(1e3 / result["draw_ms"]) and result["draw_ms"] > 0
    assert prioritised["gigabytes"] > uniform["gigabytes"]
    assert "| prioritised | 512 |" in (tmp_path / "table.md").read_text()


def test_a_replay_that_does_not_fit_is_refused_before_it_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(capacity: int) -> Replay:
        config = ReplayConfig(capacity=capacity)
        cpu = torch.device("cpu")
        return config.build(World(DICT, num_envs=2).spec, num_envs=2, gamma=0.5, total_steps=9, seed=0, device=cpu)

    with pytest.raises(UserError, match=r"a replay of 1000000000000 transitions does not fit.*lower --capacity"):
        build(10**12)
    size = build(1000).nbytes
    monkeypatch.setattr("greenroom.machine.memory", lambda: size - 1)
    with pytest.raises(UserError, match=r"a replay of 1000 transitions takes 0\.0 GB; it does not fit"):
        build(1000)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("where", ["auto", "cpu"])
@pytest.mark.parametrize("prioritised", [False, True])
def test_on_the_accelerator_it_gives_the_same_back(where: str, prioritised: bool) -> None:
    gpu = torch.device("cuda")
    world = World(DICT, num_envs=2, state_size=2)
    config = ReplayConfig(capacity=60, n_step=3, prioritised=prioritised, replay_device=where)  # type: ignore[arg-type]
    replay = config.build(world.spec, num_envs=2, gamma=0.5, total_steps=1000, seed=0, device=gpu)
    for _ in range(15):
        replay.add(moved(world.rollout(4), gpu))
    try:
        torch.cuda.set_sync_debug_mode("error" if where == "auto" else "default")
        batch = replay.sample(2000)
        replay.update_priorities(batch.index, batch.reward)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_host = moved(batch, CPU)
    sequences = moved(replay.sample_sequences(50, 6), CPU)
    assert isinstance(batch.obs, dict)
    assert batch.obs["image"].device.type == batch.index.device.type == "cuda"
    for row, number in enumerate(on_host.index.tolist()):
        reward, discount, next_obs = world.transition(number // 2, number % 2, 3, 0.5)
        assert_equal(map_obs(lambda part, at=row: part[at], on_host.next_obs), next_obs)  # type: ignore[misc]
        assert (float(on_host.reward[row]), float(on_host.discount[row])) == (reward, discount)
    check_sequences(sequences, world, 6, 0)


@pytest.mark.parametrize("prioritised", [False, True])
def test_what_a_rollout_drops_is_never_drawn_and_nothing_leads_there(prioritised: bool) -> None:
    world = World(VECTOR, num_envs=4, seed=3, longest=9)
    replay = build(world, capacity=160, n_step=3, prioritised=prioritised)
    lost_steps: dict[tuple[int, int], None] = {}
    cut_before: set[tuple[int, int]] = set()
    for _ in range(14):
        start = len(world.reward)
        rollout = world.rollout(5)
        lost = rollout.truncated & ~rollout.terminated
        lost[:, 2:] = False  # the other environments never fail
        dropped = unfinished(lost, rollout.cut)
        replay.add(dataclasses.replace(rollout, dropped=dropped if bool(dropped.any()) else None))
        lost_steps |= {(start + t, env): None for t, env in dropped.nonzero().tolist()}
        cut_before |= {(start - 1, env) for env in dropped[0].nonzero().flatten().tolist()}
        batch = replay.sample(400)
        for number, reward, discount in zip(
            batch.index.tolist(), batch.reward.tolist(), batch.discount.tolist(), strict=True
        ):
            time, env = divmod(number, world.num_envs)
            assert (time, env) not in lost_steps
            total, power = 0.0, 1.0
            for k in range(3):
                total += power * float(world.reward[time + k][env])
                power *= replay.gamma
                terminated, truncated = (bool(ends[env]) for ends in world.ends[time + k])
                if terminated or truncated or (time + k, env) in cut_before or time + k + 1 == len(world.reward):
                    break
            assert reward == pytest.approx(total, abs=1e-4)
            assert discount == pytest.approx(0.0 if terminated else power)
    assert len(lost_steps) > 10 and cut_before
    again = build(world, capacity=160, n_step=3, prioritised=prioritised)
    again.load_state_dict(copy.deepcopy(replay.state_dict()))
    assert torch.equal(again.sample(400).index, replay.sample(400).index)


def test_a_sequence_with_a_dropped_step_has_no_weight() -> None:
    world = World(VECTOR, num_envs=3, seed=1, state_size=2)
    replay = build(world, capacity=120)
    dropped = torch.zeros(5, 3, dtype=torch.bool)
    dropped[1:3, 0] = True
    replay.add(world.rollout(5))
    replay.add(dataclasses.replace(world.rollout(5), dropped=dropped))
    replay.add(world.rollout(5))
    drawn = replay.sample_sequences(200, 5)
    failed = (drawn.index // world.num_envs == 5) & (drawn.index % world.num_envs == 0)
    assert 0 < int(failed.sum()) < 200
    assert torch.equal(drawn.weight == 0.0, failed)
