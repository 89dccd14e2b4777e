"""Collection: every entry of a rollout, two groups in turn, what a snapshot continues, and who is told what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import CopyableEnvironment, ScriptedEnvironment, TalkingPolicy
from greenroom.acting import Collector
from greenroom.envs.base import Environment
from greenroom.envs.device import make_device
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.errors import UserError
from greenroom.types import Decision, Episodes, Obs, Rollout, State, Step


def collector(groups: Sequence[Environment], *, rollout_length: int = 4, spread: int = 0, seed: int = 0) -> Collector:
    return Collector(
        groups, TalkingPolicy(spread), rollout_length=rollout_length, seed=seed, device=torch.device("cpu")
    )


def values(obs: Obs) -> list[Any]:
    assert isinstance(obs, Tensor)
    rows: list[Any] = obs.tolist()
    return rows


def facts(episodes: Episodes) -> list[tuple[float, ...]]:
    """(index, return, length, earned, steps) of each."""
    signals = (episodes.signals["earned"], episodes.signals["steps"])
    columns = (episodes.index, episodes.returns, episodes.lengths, *signals)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_every_entry_of_a_rollout() -> None:
    """Environment 0 has episodes of 2 steps, environment 1 of 3. Ends: terminated, truncated, both, in turn."""
    env = ScriptedEnvironment([0, 1], [2, 3])
    acting = collector([env])
    assert iter(acting) is acting
    first = next(acting)
    assert values(first.obs) == [
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 1], [1, 0, 1]],
        [[0, 1, 0], [1, 0, 2]],
        [[0, 1, 1], [1, 1, 0]],
        [[0, 2, 0], [1, 1, 1]],
    ]
    assert first.action.tolist() == [[0, 100], [1, 101], [10, 102], [11, 110]]
    assert first.action.tolist() == env.actions
    assert first.reward.tolist() == [[1, 11], [2, 12], [1, 13], [2, 11]]
    no, yes = False, True
    assert first.terminated.tolist() == [[no, no], [yes, no], [no, yes], [no, no]]
    assert first.truncated.tolist() == [[no, no], [no, no], [no, no], [yes, no]]
    assert first.cut.tolist() == [[no, no], [yes, no], [no, yes], [yes, no]]
    assert values(first.final_obs) == [[0, 0, 2], [1, 0, 3], [0, 1, 2]]
    assert torch.equal(first.extras["seen"], torch.tensor(values(first.obs))[:-1])
    assert first.version == 0
    assert facts(first.episodes) == [(0, 3, 2, 3, 2), (1, 36, 3, 36, 3), (0, 3, 2, 3, 2)]

    acting.version = 5
    second = next(acting)
    assert values(second.obs)[0] == [[0, 2, 0], [1, 1, 1]]  # carried over
    assert values(second.obs)[4] == [[0, 4, 0], [1, 2, 2]]
    assert second.terminated.tolist() == [[no, no], [yes, no], [no, no], [yes, no]]
    assert second.truncated.tolist() == [[no, no], [yes, yes], [no, no], [no, no]]
    assert values(second.final_obs) == [[0, 2, 2], [1, 1, 3], [0, 3, 2]]
    assert second.version == 5
    assert facts(second.episodes) == [(0, 3, 2, 3, 2), (1, 36, 3, 36, 3), (0, 3, 2, 3, 2)]


def test_the_state_follows_the_episodes() -> None:
    """Environment 0 has episodes of 2 steps, environment 1 of 3; every one starts with the initial state, 5."""
    acting = collector([ScriptedEnvironment([0, 1], [2, 3])])
    first = next(acting)
    assert first.extras["count"].tolist() == [[5, 5], [6, 6], [5, 7], [6, 5]]
    assert first.state["count"].tolist() == [5, 5]
    assert first.final_state["count"].tolist() == [7, 8, 7]  # with final_obs: what the last action left
    second = next(acting)
    assert first.next_state["count"].tolist() == second.state["count"].tolist() == [5, 6]
    assert second.extras["count"].tolist() == [[5, 6], [6, 7], [5, 5], [6, 6]]


def test_a_rollout_without_ends() -> None:
    rollout = next(collector([ScriptedEnvironment([0], [100])]))
    assert not rollout.cut.any()
    assert isinstance(rollout.final_obs, Tensor)
    assert rollout.final_obs.shape == (0, 3)
    assert facts(rollout.episodes) == []


def test_rollouts_of_one_step() -> None:
    acting = collector([ScriptedEnvironment([0], [2])], rollout_length=1)
    seen = [values(next(acting).obs) for _ in range(3)]
    assert seen == [[[[0, 0, 0]], [[0, 0, 1]]], [[[0, 0, 1]], [[0, 1, 0]]], [[[0, 1, 0]], [[0, 1, 1]]]]


def test_two_groups_fill_the_columns_of_one_rollout() -> None:
    """Final observations and episodes come in order of time, then of environment, over both groups."""
    groups = [ScriptedEnvironment([0, 1], [2, 3]), ScriptedEnvironment([2, 3, 4], [1, 3, 2])]
    rollout = next(collector(groups, rollout_length=3))
    assert values(rollout.obs)[0] == [[number, 0, 0] for number in range(5)]
    assert rollout.reward.tolist() == [[1, 11, 21, 31, 41], [2, 12, 21, 32, 42], [1, 13, 21, 33, 41]]
    assert values(rollout.final_obs) == [
        [2, 0, 1],
        [0, 0, 2],
        [2, 1, 1],
        [4, 0, 2],
        [1, 0, 3],
        [2, 2, 1],
        [3, 0, 3],
    ]
    cut = rollout.cut.nonzero().tolist()
    assert [[column, time + 1] for time, column in cut] == [[2, 1], [0, 2], [2, 2], [4, 2], [1, 3], [2, 3], [3, 3]]
    assert [int(fact[0]) for fact in facts(rollout.episodes)] == [2, 0, 2, 4, 1, 2, 3]
    assert [fact[1] for fact in facts(rollout.episodes)] == [21, 3, 21, 83, 36, 21, 96]


def test_double_buffered_data_are_what_each_group_alone_gives() -> None:
    def left() -> ScriptedEnvironment:
        return ScriptedEnvironment([0, 1, 2], [2, 3, 5])

    def right() -> ScriptedEnvironment:
        return ScriptedEnvironment([3, 4, 5], [4, 1, 7])

    both = collector([left(), right()])
    alone = [collector([left()]), collector([right()])]
    for _ in range(5):
        together, parts = next(both), [next(one) for one in alone]
        for name in ("action", "reward", "terminated", "truncated", "obs"):
            assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in parts], dim=1))
        assert torch.equal(together.extras["seen"], torch.cat([part.extras["seen"] for part in parts], dim=1))
        assert sorted(values(together.final_obs)) == sorted(v for part in parts for v in values(part.final_obs))


class Diary:
    """Wraps an environment and notes when it is asked for what."""

    def __init__(self, inner: ScriptedEnvironment, name: str, events: list[str]) -> None:
        self.inner, self.name, self.events = inner, name, events
        self.spec, self.num_envs, self.device = inner.spec, inner.num_envs, inner.device
        self.reset, self.close = inner.reset, inner.close

    def send(self, action: Tensor) -> None:
        self.events.append(f"send {self.name}")
        self.inner.send(action)

    def recv(self) -> Step:
        self.events.append(f"recv {self.name}")
        return self.inner.recv()


def test_one_group_is_stepped_while_the_policy_decides_for_the_other() -> None:
    events: list[str] = []
    groups = [Diary(ScriptedEnvironment([n], [9]), name, events) for n, name in enumerate("ab")]
    next(collector(groups, rollout_length=2))
    assert events == ["send a", "send b", "recv a", "send a", "recv b", "send b", "recv a", "recv b"]


def test_the_action_handed_over_is_the_action_stored() -> None:
    groups = [ScriptedEnvironment([0, 1], [2, 3]), ScriptedEnvironment([2, 3], [3, 2])]
    rollout = next(collector(groups, spread=9))
    handed = [left + right for left, right in zip(groups[0].actions, groups[1].actions, strict=True)]
    assert rollout.action.tolist() == handed
    assert rollout.extras["drawn"].any()
    greedy = (rollout.extras["seen"] @ torch.tensor([100.0, 10.0, 1.0])).long()
    assert torch.equal(rollout.action, greedy + rollout.extras["drawn"])


def test_seeds() -> None:
    """Each group starts from a seed of its own; the acting generator from another seed draws otherwise."""

    def seeds(seed: int) -> list[int]:
        groups = [ScriptedEnvironment([0], [2]), ScriptedEnvironment([1], [2])]
        collector(groups, seed=seed)
        return [seed for group in groups for seed in group.seeds]

    assert seeds(0) == seeds(0)
    assert len({*seeds(0), *seeds(1)}) == 4

    def drawn(seed: int) -> list[list[int]]:
        acting = collector([ScriptedEnvironment([0] * 8, [9] * 8)], spread=9, seed=seed)
        rows: list[list[int]] = next(acting).extras["drawn"].tolist()
        return rows

    assert drawn(3) == drawn(3) != drawn(4)


def copied(rollout: Rollout) -> dict[str, object]:
    """The entries of a rollout, in memory of their own."""
    parts = {
        name: getattr(rollout, name) for name in ("obs", "action", "reward", "terminated", "truncated", "final_obs")
    }
    assert all(isinstance(part, Tensor) for part in parts.values())
    return {name: part.tolist() for name, part in (parts | rollout.extras).items()} | {
        "episodes": facts(rollout.episodes),
        "version": rollout.version,
    }


def copyable() -> list[CopyableEnvironment]:
    return [CopyableEnvironment([0, 1], [2, 3]), CopyableEnvironment([2, 3], [7, 5])]


def test_a_snapshot_continues_where_it_was_taken() -> None:
    original = collector(copyable(), spread=9)
    assert original.can_snapshot
    for _ in range(2):
        next(original)
    original.version = 2
    state = original.state_dict()
    expected = [copied(next(original)) for _ in range(3)]
    resumed = collector(copyable(), spread=9, seed=99)
    resumed.load_state_dict(state)
    assert [copied(next(resumed)) for _ in range(3)] == expected
    assert expected[0]["version"] == 2


def test_a_snapshot_before_the_first_rollout() -> None:
    state = collector(copyable(), spread=9).state_dict()
    resumed = collector(copyable(), spread=9, seed=99)
    resumed.load_state_dict(state)
    assert copied(next(resumed)) == copied(next(collector(copyable(), spread=9)))


def test_without_snapshots_new_episodes_begin_from_new_seeds() -> None:
    env = ScriptedEnvironment([0, 1], [2, 3])
    original = collector([env], spread=9)
    assert not original.can_snapshot
    next(original)
    original.version = 1
    state = original.state_dict()
    assert state.keys() == {"generator", "version"}
    drawn = next(original).extras["drawn"].tolist()

    again = ScriptedEnvironment([0, 1], [2, 3])
    resumed = collector([again], spread=9)
    resumed.load_state_dict(state)
    assert again.seeds[0] == env.seeds[0] != again.seeds[1]
    rollout = next(resumed)
    assert values(rollout.obs)[0] == [[0, 0, 0], [1, 0, 0]]
    assert rollout.extras["drawn"].tolist() == drawn
    assert rollout.version == 1
    assert resumed.begun_anew == "these environments cannot be copied"


def test_one_group_that_cannot_be_copied_is_enough() -> None:
    groups = copyable()
    groups[1].can_snapshot = False
    acting = collector(groups)
    assert not acting.can_snapshot
    assert "environments" not in acting.state_dict()


def test_a_snapshot_of_another_stage_is_refused() -> None:
    state = collector(copyable()).state_dict()
    with pytest.raises(UserError, match="resume with the options of the original run"):
        collector(copyable()[:1]).load_state_dict(state)
    with pytest.raises(UserError, match="resume with the options of the original run"):
        collector([ScriptedEnvironment([0, 1], [2, 3])] * 2).load_state_dict(state)


class Moody(CopyableEnvironment):
    """Says at first that it can be copied; `refuses` names what it then refuses to do."""

    refuses = ""

    def state_dict(self) -> dict[str, object]:
        if self.refuses == "state_dict":
            raise NotSnapshotable("env.plan (builtins.list_iterator) cannot be captured")
        return super().state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        if self.refuses == "load_state_dict":
            raise NotSnapshotable("env.plan was a Plan,\n which this environment does not have")
        super().load_state_dict(state)


def moody() -> list[Moody]:
    return [Moody([0, 1], [2, 3]), Moody([2, 3], [7, 5])]


def test_environments_that_can_be_copied_no_longer_are_left_out() -> None:
    groups = moody()
    acting = collector(groups)
    next(acting)
    groups[1].refuses = "state_dict"
    state = acting.state_dict()
    assert state.keys() == {"generator", "version"}
    assert values(next(acting).obs)[0] == [[0, 2, 0], [1, 1, 1], [2, 0, 4], [3, 0, 4]]  # and all goes on
    groups[1].refuses = ""
    assert "environments" in acting.state_dict()
    acting.load_state_dict(state)
    assert acting.begun_anew == "the checkpoint is without its environments, which could not be copied then"
    assert values(next(acting).obs)[0] == [[number, 0, 0] for number in range(4)]


def test_where_environments_cannot_be_restored_new_episodes_begin_in_all() -> None:
    original = collector(moody())
    assert next(original).version == original.version == 0
    original.version = 1
    state = original.state_dict()
    groups = moody()
    resumed = collector(groups)
    groups[1].refuses = "load_state_dict"
    resumed.load_state_dict(state)
    assert resumed.begun_anew == (
        "the checkpoint's environments cannot be restored (env.plan was a Plan, which this environment does not have)"
    )
    rollout = next(resumed)
    assert values(rollout.obs)[0] == [[number, 0, 0] for number in range(4)]
    assert rollout.version == 1
    assert all(len(set(group.seeds)) == 2 for group in groups)
    groups[1].refuses = ""
    resumed.load_state_dict(state)
    assert resumed.begun_anew == ""
    assert copied(next(resumed)) == copied(next(original))


def test_a_state_is_tried_even_where_a_new_environment_cannot_be_copied() -> None:
    original, groups = collector(moody()), moody()
    next(original)
    state = original.state_dict()
    groups[0].can_snapshot = False  # what it holds after its first reset differs from time to time
    resumed = collector(groups)
    resumed.load_state_dict(state)
    assert resumed.begun_anew == ""
    assert copied(next(resumed)) == copied(next(original))


def test_time_is_split() -> None:
    alone = collector([ScriptedEnvironment([0], [2])])
    next(alone)
    assert alone.time_split["env"] > 0
    assert alone.time_split["act"] > 0
    assert alone.time_split["wait"] == 0
    double = collector([ScriptedEnvironment([0], [2]), ScriptedEnvironment([1], [2])])
    next(double)
    assert min(double.time_split.values()) > 0


def test_closing_closes_every_group() -> None:
    groups = copyable()
    collector(groups).close()
    assert [group.is_closed for group in groups] == [True, True]


@pytest.fixture
def dict_probe() -> Iterator[Environment]:
    env = make_device("probe-dict", 4)
    yield env
    env.close()


class Zero:
    remembers = False

    def initial_state(self, num_envs: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, dict)
        return Decision(action=torch.zeros(len(obs["sign"]), dtype=torch.int64), extras={}, state=state)


def test_dict_observations(dict_probe: Environment) -> None:
    rollout = next(Collector([dict_probe], Zero(), rollout_length=3, seed=0, device=torch.device("cpu")))
    assert isinstance(rollout.obs, dict)
    assert isinstance(rollout.final_obs, dict)
    assert {name: part.shape for name, part in rollout.obs.items()} == {"sign": (4, 4, 1), "one_hot": (4, 4, 2)}
    assert bool(rollout.terminated.all())
    # Every step ends: the last thing seen is what was acted on.
    for name, part in rollout.final_obs.items():
        assert torch.equal(part, rollout.obs[name][:-1].flatten(0, 1))
