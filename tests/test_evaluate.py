"""Evaluation in an environment whose episodes are written down beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from fakes import ScriptedEnvironment
from greenroom.envs.base import EpisodeTracker
from greenroom.errors import EnvironmentFault, UserError
from greenroom.evaluation import Evaluation, evaluate
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.types import Decision, Obs, State, Step

ENDLESS = 10**9


@dataclass(frozen=True)
class Play:
    """One episode: how long it is and what its steps give."""

    length: int
    reward: float


class Scripted:
    """An `Environment` whose b-th member plays `scripts[b]`, the last episode over and over. Its signal is 2 a step."""

    def __init__(self, *scripts: list[Play]) -> None:
        self.scripts = scripts
        self.spec = EnvSpec(name="scripted", obs=ArraySpec(shape=(1,)), action=Discrete(n=1000), signals=("effort",))
        self.num_envs = len(scripts)
        self.device = torch.device("cpu")
        self.tracker = EpisodeTracker(self.num_envs, self.spec.signals)
        self.seeds: list[int] = []
        self.actions: list[list[int]] = []

    def reset(self, seed: int) -> Obs:
        self.seeds.append(seed)
        self.actions.clear()
        self.tracker.reset()
        self.episode = [0] * self.num_envs
        self.time = [0] * self.num_envs
        return torch.arange(float(self.num_envs)).unsqueeze(1)

    def send(self, action: Tensor) -> None:
        assert action.device == self.device
        self.actions.append(action.tolist())

    def recv(self) -> Step:
        reward, ended = torch.zeros(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool)
        for index, script in enumerate(self.scripts):
            play = script[min(self.episode[index], len(script) - 1)]
            self.time[index] += 1
            reward[index] = play.reward
            if self.time[index] == play.length:
                ended[index] = True
                self.time[index] = 0
                self.episode[index] += 1
        obs = torch.arange(float(self.num_envs)).unsqueeze(1)
        effort = torch.full((self.num_envs,), 2.0)
        return Step(
            obs=obs,
            reward=reward,
            terminated=ended,
            truncated=torch.zeros_like(ended),
            final_obs=obs[ended],
            episodes=self.tracker.update(reward, ended, {"effort": effort}),
            signals={"effort": effort},
        )

    def close(self) -> None:
        raise AssertionError("the environment is its owner's to close")


class Watched(nn.Module):
    """A policy that notes how it is called. Greedy: action 7. Sampled: uniform."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.frozen = nn.Dropout().eval()
        self.seen: set[tuple[bool, bool]] = set()

    def initial_state(self, num_envs: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        self.seen.add((self.training or self.norm.training, torch.is_grad_enabled()))
        action = torch.full((len(self.norm(obs)),), 7, device=obs.device)
        if generator is not None:
            action = torch.randint(1000, action.shape, generator=generator, device=action.device)
        return Decision(action=action, extras={}, state=state)


class Rule:
    """A classical rule: no module, nothing to learn."""

    def initial_state(self, num_envs: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        return Decision(action=torch.zeros(len(obs), dtype=torch.int64), extras={}, state=state)


class Counting:
    """Its action says how many it has taken in the episode, counting from 5."""

    def initial_state(self, num_envs: int) -> State:
        return {"count": torch.full((num_envs,), 5)}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        return Decision(action=state["count"], extras={}, state={"count": state["count"] + 1})


@pytest.mark.parametrize("greedy", [True, False])
def test_a_memory_starts_anew_with_each_episode(greedy: bool) -> None:
    """Episodes of 2 and of 3 steps, which terminate, are truncated, and do both, in turn."""
    environment = ScriptedEnvironment([0, 1], [2, 3])
    evaluate(Counting(), environment, episodes=6, seed=0, greedy=greedy)
    assert [row[0] for row in environment.actions] == [5, 6, 5, 6, 5, 6, 5, 6, 5]
    assert [row[1] for row in environment.actions] == [5, 6, 7, 5, 6, 7, 5, 6, 7]


def test_short_episodes_do_not_count_more_than_long_ones() -> None:
    """Ten episodes of environment 0 end before one of environment 1; each still contributes two."""
    environment = Scripted([Play(1, 0.0)], [Play(10, 1.0)])
    result = evaluate(Watched(), environment, episodes=4, seed=0)
    assert result.returns.tolist() == [0.0, 0.0, 10.0, 10.0]
    assert result.lengths.tolist() == [1, 1, 10, 10]
    assert (result.mean, result.length_mean, result.episodes) == (5.0, 5.5, 4)


def test_the_first_episodes_of_every_environment_count() -> None:
    one = [Play(1, 1.0), Play(2, 1.0), Play(1, 50.0)]
    other = [Play(4, 25.0), Play(2, 100.0), Play(1, -1.0)]
    result = evaluate(Watched(), Scripted(one, other), episodes=4, seed=0)
    assert result.returns.tolist() == [1.0, 2.0, 100.0, 200.0]


def test_episodes_are_rounded_up_to_the_same_number_from_every_environment() -> None:
    result = evaluate(Watched(), Scripted(*[[Play(2, 0.5)]] * 4), episodes=5, seed=0)
    assert result.episodes == 8
    assert result.ci95 == (1.0, 1.0)


def test_the_summary_of_known_returns() -> None:
    environment = Scripted(*([Play(1, float(score))] for score in range(40)))
    result = evaluate(Rule(), environment, episodes=40, seed=0)
    assert result.mean == 19.5
    assert result.std == pytest.approx(np.sqrt(40 * 41 / 12))
    assert result.iqm == 19.5
    assert result.cvar5 == 0.5
    assert result.signals == {"effort": 2.0}
    assert 19.5 - 5.0 < result.ci95[0] < 19.5 - 2.5 and 19.5 + 2.5 < result.ci95[1] < 19.5 + 5.0


def test_signals_are_summed_over_an_episode_and_averaged_over_episodes() -> None:
    result = evaluate(Rule(), Scripted([Play(1, 0.0)], [Play(5, 0.0)]), episodes=2, seed=0)
    assert result.signals == {"effort": (2.0 + 10.0) / 2}


def test_json_is_one_flat_record() -> None:
    result = evaluate(Rule(), Scripted([Play(3, 2.0)]), episodes=2, seed=0)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == {
        "mean": 6.0,
        "std": 0.0,
        "iqm": 6.0,
        "ci95": [6.0, 6.0],
        "cvar5": 6.0,
        "episodes": 2,
        "length_mean": 3.0,
        "signals/effort": 6.0,
    }


def test_the_table_shows_the_summary() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluate(Rule(), Scripted([Play(4, 2.5)]), episodes=3, seed=0).table())
    rows = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert rows == [
        "return over 3 episodes",
        "mean 10",
        "95 % interval 10 … 10",
        "standard deviation 0",
        "interquartile mean 10",
        "mean of the worst 5 % 10",
        "mean length 4 steps",
        "effort 8",
    ]


@pytest.mark.parametrize("greedy", [True, False])
def test_the_policy_is_left_as_it_was(greedy: bool) -> None:
    policy = Watched()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    evaluate(policy, Scripted([Play(3, 1.0)]), episodes=2, seed=0, greedy=greedy)
    assert policy.seen == {(False, False)}, "acted in training mode, or with gradient"
    assert policy.training and policy.norm.training and not policy.frozen.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_the_policy_gets_its_mode_back_after_a_fault() -> None:
    policy = Watched()
    with pytest.raises(UserError):
        evaluate(policy, Scripted([Play(ENDLESS, 1.0)]), episodes=1, seed=0, max_steps=3)
    assert policy.training and policy.norm.training and not policy.frozen.training


def played(seed: int, *, greedy: bool) -> tuple[list[list[int]], list[int], Evaluation]:
    environment = Scripted([Play(4, 1.0)], [Play(4, 2.0)])
    result = evaluate(Watched(), environment, episodes=4, seed=seed, greedy=greedy)
    return environment.actions, environment.seeds, result


def test_greedy_takes_the_best_action() -> None:
    assert played(0, greedy=True)[0] == [[7, 7]] * 8


def test_the_seed_decides_actions_and_episodes_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    actions, seeds, result = played(5, greedy=False)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = played(5, greedy=False)
    assert again[0] == actions and again[1] == seeds and again[2].ci95 == result.ci95
    other = played(6, greedy=False)
    assert other[0] != actions and other[1] != seeds
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"


def test_an_endless_episode_is_a_clear_error() -> None:
    environment = Scripted([Play(2, 0.0)], [Play(50, 0.0), Play(51, 0.0)])
    assert evaluate(Rule(), environment, episodes=2, seed=0, max_steps=50).lengths.tolist() == [2, 50]
    with pytest.raises(UserError, match=r"of scripted \(environment 1\) has not ended after 50 steps; .*a time limit"):
        evaluate(Rule(), environment, episodes=4, seed=0, max_steps=50)


def test_an_environment_that_has_played_its_part_may_go_on_for_ever() -> None:
    environment = Scripted([Play(1, 0.0), Play(1, 0.0), Play(ENDLESS, 0.0)], [Play(30, 0.0)])
    assert evaluate(Rule(), environment, episodes=4, seed=0, max_steps=40).lengths.tolist() == [1, 1, 30, 30]


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_return_that_is_not_finite_names_the_environment(reward: float) -> None:
    with pytest.raises(EnvironmentFault, match="environment 1 gave"):
        evaluate(Rule(), Scripted([Play(2, 0.0)], [Play(2, reward)]), episodes=2, seed=0)


@pytest.mark.parametrize(("episodes", "max_steps"), [(0, 10), (1, 0)])
def test_there_must_be_something_to_play(episodes: int, max_steps: int) -> None:
    with pytest.raises(UserError, match=f"not {episodes} and {max_steps}"):
        evaluate(Rule(), Scripted([Play(1, 0.0)]), episodes=episodes, seed=0, max_steps=max_steps)


def test_progress_tells_of_counted_episodes_only() -> None:
    heard: list[tuple[int, int]] = []
    environment = Scripted([Play(1, 0.0)], [Play(4, 0.0)])
    evaluate(Rule(), environment, episodes=4, seed=0, on_progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_environment_can_be_learned_from_afterwards() -> None:
    """No inference tensor is left in its state: they could not be changed outside inference mode."""
    environment = Scripted([Play(2, 1.0)])
    evaluate(Rule(), environment, episodes=1, seed=0)
    environment.send(torch.zeros(1))
    assert environment.recv().reward.tolist() == [1.0]


@pytest.mark.gpu
@pytest.mark.parametrize("greedy", [True, False])
def test_a_policy_on_a_gpu_acts_in_an_environment_on_the_cpu(greedy: bool) -> None:
    result = evaluate(Watched().cuda(), Scripted([Play(2, 1.0)]), episodes=2, seed=0, greedy=greedy)
    assert result.returns.tolist() == [2.0, 2.0]
