"""The native stages: Atari through ale-py, and EnvPool. What they promise is checked against the bare libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor

from greenroom.envs.ale import AleConfig, AleEnvironment, rom_of
from greenroom.envs.base import Environment
from greenroom.envs.check import RandomActor, check_environment
from greenroom.envs.faults import FaultConfig
from greenroom.envs.native import make_native, native_for
from greenroom.envs.tensors import env_seeds
from greenroom.errors import EnvironmentFault, UserError
from greenroom.spec import ArraySpec, Bounded, Discrete
from greenroom.types import Obs, Step


def ale(game: str, num_envs: int = 2, num_threads: int = 1, **options: object) -> Environment:
    """A native Atari stage from options by name, as the command line gives them."""
    return make_native(f"ALE/{game}-v5", num_envs, num_threads, options)


def choices(env: Environment, seed: int, steps: int) -> Iterator[Tensor]:
    """Random discrete actions, the same for the same seed."""
    assert isinstance(env.spec.action, Discrete)
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(env.spec.action.n, (env.num_envs,), generator=source)


def play(env: Environment, seed: int, steps: int) -> list[Step]:
    """`steps` random steps after a seeded reset."""
    env.reset(seed)
    answers = []
    for action in choices(env, seed, steps):
        env.send(action)
        answers.append(env.recv())
    return answers


def stacked(answers: list[Step], field: Callable[[Step], Tensor]) -> Tensor:
    """`[T, ...]` of one field."""
    return torch.stack([field(step) for step in answers])


def test_ids() -> None:
    assert [native_for(env) for env in ("ALE/Pong-v5", "envpool:Pong-v5", "CartPole-v1", "PongNoFrameskip-v4")] == [
        "ale",
        "envpool",
        None,
        None,
    ]
    assert rom_of("ALE/MsPacman-v5") == rom_of("ALE/MsPacman") == "ms_pacman"
    with closing(make_native("ALE/Pong", 1, 1, {})) as env:
        assert env.spec.name == "ALE/Pong-v5"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("ALE/Pongg-v5", "unknown Atari game 'Pongg' in 'ALE/Pongg-v5'; did you mean 'Pong'?"),
        ("ALE/Pong-v4", "the form is ALE/Pong-v5"),
        ("ALE/MazeCraze-v5", "for several players only"),
        ("CartPole-v1", "no native stage"),
    ],
)
def test_unknown_games_are_named(env: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_native(env, 1, 1, {})
    assert message in str(error.value)


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_missing_cartridge_is_named(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / folder))
    with pytest.raises(UserError, match=r"cartridge pong\.bin cannot be read .*ALE_ROMS_DIR"):
        ale("Pong")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("frame_skip", 4, "did you mean 'frameskip'"),
        ("frameskip", 0, "between 1 and"),
        ("frameskip", "four", "type int"),
        ("stack_num", True, "type int"),
        ("repeat_action_probability", 1.5, "between 0.0 and 1.0"),
        ("life_loss", "terminat", "did you mean 'terminate'"),
        ("noop_max", -1, "between 0 and"),
        ("max_num_frames_per_episode", 30, "between 32 and"),
    ],
)
def test_bad_options_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_native("ALE/Pong-v5", 1, 1, {option: value})
    assert message in str(error.value)
    assert option in str(error.value)


def test_numbers_of_actors_and_threads_are_checked() -> None:
    for num_envs, num_threads in ((0, 1), (1, -1)):
        with pytest.raises(UserError, match="num_envs"):
            make_native("ALE/Pong-v5", num_envs, num_threads, {})


@pytest.mark.parametrize(
    ("game", "full", "count"),
    [("Pong", False, 6), ("Breakout", False, 4), ("Breakout", True, 18), ("MsPacman", False, 9)],
)
def test_action_sets(game: str, full: bool, count: int) -> None:
    with closing(ale(game, 1, full_action_space=full)) as env:
        assert env.spec.action == Discrete(n=count)


def test_actions_that_do_not_exist_are_refused() -> None:
    with closing(ale("Pong")) as env:
        env.reset(0)
        for wrong in (-1, 6):
            with pytest.raises(ValueError, match=r"takes 0 … 5"):
                env.send(torch.tensor([0, wrong]))


def test_joystick_actions() -> None:
    with closing(ale("Breakout", continuous=True)) as env:
        assert isinstance(env.spec.action, Bounded)
        assert env.spec.action.shape == (3,)
        first = env.reset(0)
        for _ in range(12):
            env.send(torch.tensor([[1.0, 0.0, 0.0], [1.0, torch.pi, 0.0]]))  # right, left
            last = env.recv().obs
        assert isinstance(first, Tensor) and isinstance(last, Tensor)
        paddle = (last[:, -1, -9:] != first[:, -1, -9:]).any(1).float()
        columns = torch.arange(84.0)
        right, left = (paddle * columns).sum(1) / paddle.sum(1)
        assert right > left


def test_the_observation_is_the_emulators() -> None:
    """Grey and color pictures, in the order of the bare library's frames."""
    seeds = np.array(env_seeds(5, 2))
    for grayscale in (True, False):
        options: dict[str, Any] = {"grayscale": grayscale, "stack_num": 3, "frameskip": 2}
        options |= {"img_height": 50, "img_width": 40}
        bare = AtariVectorEnv("pong", 2, noop_max=31, use_fire_reset=False, autoreset_mode="SameStep", **options)
        frames, _ = bare.reset(seed=seeds)
        with closing(ale("Pong", **options)) as env:
            obs = env.reset(5)
            for action in choices(env, 0, 30):
                env.send(action)
                obs = env.recv().obs
                frames, *_ = bare.step(action.numpy())
            assert isinstance(obs, Tensor)
            assert obs.dtype == torch.uint8
            assert tuple(obs.shape[1:]) == env.spec.obs.shape == (3 if grayscale else 9, 50, 40)  # type: ignore[union-attr]
            for channel in range(obs.shape[1]):
                frame = frames[:, channel] if grayscale else frames[:, channel // 3, :, :, channel % 3]
                assert np.array_equal(obs[:, channel].numpy(), frame)
        bare.close()


def shifts(env: Environment, steps: int, *, fresh: bool) -> int:
    """Check `ArraySpec.stack` on every array for `steps` random steps; how many episodes ended meanwhile.

    With `fresh`, also that the first observation of a new episode is *not* the last one shifted.
    """

    def parts(obs: Obs) -> dict[str, Tensor]:
        return obs if isinstance(obs, dict) else {"": obs}

    specs = env.spec.obs if isinstance(env.spec.obs, dict) else {"": env.spec.obs}
    act, obs, ends = RandomActor(env, 0), env.reset(3), 0
    for _ in range(steps):
        env.send(act(obs))
        step = env.recv()
        cut = step.terminated | step.truncated
        for name, spec in specs.items():
            assert isinstance(spec, ArraySpec) and spec.stack > 1
            frame = spec.shape[0] // spec.stack
            reached = parts(step.obs)[name].clone()
            reached[cut] = parts(step.final_obs)[name]
            assert torch.equal(reached[:, :-frame], parts(obs)[name][:, frame:])
            if fresh:
                assert not torch.equal(parts(step.obs)[name][cut, :-frame], reached[cut, frame:]) or not cut.any()
        obs, ends = step.obs, ends + int(cut.sum())
    return ends


@pytest.mark.parametrize(
    ("game", "options", "stack"),
    [
        ("Breakout", {}, 4),
        ("Breakout", {"grayscale": False, "stack_num": 3, "maxpool": False}, 3),
        ("Pong", {"max_num_frames_per_episode": 200, "repeat_action_probability": 0.25}, 4),
    ],
)
def test_a_step_shifts_the_stack_by_one_picture(game: str, options: dict[str, object], stack: int) -> None:
    with closing(make_native(f"ALE/{game}-v5", 2, 1, options)) as env:
        assert isinstance(env.spec.obs, ArraySpec) and env.spec.obs.stack == stack
        assert shifts(env, 300, fresh=True) >= 2


def test_a_lost_life_does_not_interrupt_the_stack() -> None:
    """What is acted on next is the last observation itself: the game goes on."""
    with closing(ale("Breakout", life_loss="terminate")) as env:
        assert shifts(env, 300, fresh=False) >= 8


def test_envpools_stacks() -> None:
    pytest.importorskip("envpool")
    tasks: list[tuple[str, dict[str, object]]] = [
        ("Breakout-v5", {"gray_scale": False, "img_height": 20, "img_width": 20, "episodic_life": True}),
        ("CheetahRun-v1", {"frame_stack": 3, "max_episode_steps": 20}),
    ]
    for task, options in tasks:
        with closing(make_native(f"envpool:{task}", 2, 1, options)) as env:
            assert shifts(env, 80, fresh=False) >= 2


def test_returns_are_scores_while_the_reward_is_clipped() -> None:
    options = {"max_num_frames_per_episode": 1200}
    with (
        closing(ale("SpaceInvaders", **options)) as clipped,
        closing(ale("SpaceInvaders", reward_clipping=False, **options)) as raw,
    ):
        seen, truth = play(clipped, 3, 320), play(raw, 3, 320)
    reward, score = stacked(seen, lambda s: s.reward), stacked(truth, lambda s: s.reward)
    assert score.max() >= 5
    assert torch.equal(reward, score.clamp(-1, 1))
    ended = [(t, step) for t, step in enumerate(seen) if len(step.episodes.index)]
    assert ended
    start = torch.zeros(2, dtype=torch.int64)
    for t, step in ended:
        for index, total, length in zip(step.episodes.index, step.episodes.returns, step.episodes.lengths, strict=True):
            assert total == score[start[index] : t + 1, index].sum()
            assert length == t + 1 - start[index]
            start[index] = t + 1


def test_a_lost_life_is_an_end_to_the_learner_only() -> None:
    """The game, its episode and its pictures go on; where lives are lost is what the bare emulator says."""
    with closing(ale("Breakout")) as whole, closing(ale("Breakout", life_loss="terminate")) as lives:
        plain, signal = play(whole, 1, 400), play(lives, 1, 400)
    bare = AtariVectorEnv(
        "breakout", 2, noop_max=31, use_fire_reset=False, life_loss_info=True, autoreset_mode="SameStep"
    )
    bare.reset(seed=np.array(env_seeds(1, 2)))
    lost_lives = games = 0
    for before, after, action in zip(plain, signal, choices(whole, 1, 400), strict=True):
        _, _, terminated, _, _ = bare.step(action.numpy())
        assert np.array_equal(after.terminated.numpy(), terminated)
        assert isinstance(before.obs, Tensor) and isinstance(after.obs, Tensor) and isinstance(after.final_obs, Tensor)
        assert torch.equal(before.obs, after.obs)
        assert torch.equal(before.reward, after.reward)
        assert torch.equal(before.episodes.index, after.episodes.index)
        assert torch.equal(before.episodes.returns, after.episodes.returns)
        assert torch.equal(before.episodes.index, before.terminated.nonzero().squeeze(1))
        ended = after.terminated.nonzero().squeeze(1)
        assert len(after.final_obs) == len(ended)
        for final, index in zip(after.final_obs, ended, strict=True):
            lost = index not in before.episodes.index
            assert torch.equal(final, after.obs[index]) == lost
            lost_lives, games = lost_lives + lost, games + (not lost)
    assert games >= 2
    assert lost_lives >= 4 * games
    bare.close()


def test_the_frame_cap_truncates_on_the_true_last_observation() -> None:
    """Exactly at the cap; the last observation is the one that a game without cap shows at that step."""
    for maxpool in (True, False):
        options = {"noop_max": 0, "maxpool": maxpool}
        with (
            closing(ale("Pong", max_num_frames_per_episode=200, **options)) as capped,
            closing(ale("Pong", **options)) as free,
        ):
            cut, truth = play(capped, 2, 51), play(free, 2, 51)
        assert not stacked(cut[:49], lambda s: s.truncated | s.terminated).any()
        last = cut[49]
        assert last.truncated.all()
        assert not last.terminated.any()
        assert isinstance(last.final_obs, Tensor) and isinstance(last.obs, Tensor) and isinstance(truth[49].obs, Tensor)
        assert torch.equal(last.final_obs, truth[49].obs)
        assert last.episodes.lengths.tolist() == [50, 50]
        assert not last.obs[:, :3].any(), "a new game starts with black frames"
        assert last.obs[:, 3].any()
        assert not cut[50].truncated.any()


def test_a_cap_within_a_step_lets_the_step_finish() -> None:
    with closing(ale("Pong", noop_max=0, max_num_frames_per_episode=201)) as env:
        answers = play(env, 0, 51)
    assert stacked(answers, lambda s: s.truncated).sum(0).tolist() == [1, 1]
    assert answers[50].episodes.lengths.tolist() == [51, 51]


def test_a_finished_game_keeps_its_last_observation() -> None:
    with closing(ale("Breakout")) as env:
        answers = play(env, 1, 400)
    games = 0
    for before, now in pairwise(answers):
        assert isinstance(before.obs, Tensor) and isinstance(now.obs, Tensor) and isinstance(now.final_obs, Tensor)
        assert len(now.final_obs) == int(now.terminated.sum())
        for final, index in zip(now.final_obs, now.terminated.nonzero().squeeze(1), strict=True):
            games += 1
            assert torch.equal(final[:3], before.obs[index, 1:])
            assert not now.obs[index, :3].any()
    assert games >= 2


def test_the_same_seed_repeats_for_any_number_of_threads() -> None:
    """Sticky actions, which the emulators draw for themselves, included."""
    runs = []
    for num_threads in (0, 1, 2):
        with closing(ale("Breakout", 4, num_threads, repeat_action_probability=0.25)) as env:
            runs.append(stacked(play(env, 7, 150), lambda s: s.obs.flatten(1)))  # type: ignore[union-attr]
            if num_threads == 1:
                again = stacked(play(env, 7, 150), lambda s: s.obs.flatten(1))  # type: ignore[union-attr]
                other = stacked(play(env, 8, 150), lambda s: s.obs.flatten(1))  # type: ignore[union-attr]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[1], runs[2])
    assert torch.equal(runs[1], again)
    assert not torch.equal(runs[1], other)


def test_steps_stay_valid_after_the_next_send() -> None:
    with closing(ale("Pong")) as env:
        first = env.reset(0)
        assert isinstance(first, Tensor)
        kept = [first]
        copies = [first.clone()]
        for action in choices(env, 0, 40):
            env.send(action)
            obs = env.recv().obs
            assert isinstance(obs, Tensor)
            kept.append(obs)
            copies.append(obs.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_sticky_actions() -> None:
    """At probability 1 the first no-op is repeated for ever and actions do nothing."""
    for repeat, same in ((1.0, True), (0.0, False)):
        with closing(ale("Breakout", 2, repeat_action_probability=repeat)) as env:
            ends = []
            for action in (2, 3):
                env.reset(0)
                for _ in range(20):
                    env.send(torch.full((2,), action))
                    obs = env.recv().obs
                assert isinstance(obs, Tensor)
                ends.append(obs)
        assert torch.equal(ends[0], ends[1]) == same


def test_between_0_and_30_no_ops_start_a_game() -> None:
    """With single-frame steps and a cap of 32 frames, a game lasts 32 frames less its no-ops."""
    games, options = 20, {"img_height": 10, "img_width": 10}
    with closing(ale("Pong", 16, frameskip=1, max_num_frames_per_episode=32, **options)) as env:
        env.reset(0)
        noops: list[list[int]] = [[] for _ in range(env.num_envs)]
        while min(len(row) for row in noops) < games:
            env.send(torch.zeros(16, dtype=torch.int64))
            episodes = env.recv().episodes
            for index, length in zip(episodes.index.tolist(), episodes.lengths.tolist(), strict=True):
                noops[index].append(32 - length)
    # As many games of each: whoever drew many no-ops has finished more.
    counts = torch.bincount(torch.tensor([row[:games] for row in noops]).flatten(), minlength=31)
    assert len(counts) == 31
    assert counts.min() > 0
    expected = 16 * games / 31
    assert float(((counts - expected) ** 2 / expected).sum()) < 59.7, "chi-square, 30 degrees of freedom, 0.1 %"


def test_fire_at_a_start_is_off_and_can_be_had() -> None:
    for fire, length in ((False, 40), (True, 39)):  # one frame of the cap goes to FIRE
        with closing(
            ale("Breakout", 1, noop_max=0, use_fire_reset=fire, frameskip=1, max_num_frames_per_episode=40)
        ) as env:
            assert play(env, 0, 40)[length - 1].episodes.lengths.tolist() == [length]


def test_close_may_come_twice_and_in_the_middle() -> None:
    env = AleEnvironment("ALE/Pong-v5", 4, AleConfig(), num_threads=2)
    env.reset(0)
    env.send(torch.zeros(4, dtype=torch.int64))
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="was closed"):
        env.reset(0)


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "envpool:CartPole-v1"])
def test_the_order_of_calls(env_id: str) -> None:
    """Out of order is refused instead of waiting for ever; a reset forgets an answer that nobody fetched."""
    if env_id.startswith("envpool"):
        pytest.importorskip("envpool")
    action = torch.zeros(2, dtype=torch.int64)
    with closing(make_native(env_id, 2, 1, {})) as env:
        first = env.reset(0)
        with pytest.raises(RuntimeError, match="recv comes after send"):
            env.recv()
        env.send(action)
        with pytest.raises(RuntimeError, match="send comes after reset or recv"):
            env.send(action)
        again = env.reset(0)
        assert isinstance(first, Tensor) and isinstance(again, Tensor)
        assert torch.equal(first, again)
        env.send(action)
        assert env.recv().reward.shape == (2,)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("ALE/SpaceInvaders-v5", {"max_num_frames_per_episode": 100, "reward_clipping": False}),
        ("ALE/Pong-v5", {"max_num_frames_per_episode": 100, "grayscale": False}),
        ("ALE/Breakout-v5", {"max_num_frames_per_episode": 100, "continuous": True}),
        ("envpool:CartPole-v1", {"max_episode_steps": 20}),
        ("envpool:CheetahRun-v1", {"max_episode_steps": 20}),
        ("envpool:FrozenLake-v1", {}),
    ],
)
def test_contract(env: str, options: dict[str, object]) -> None:
    if env.startswith("envpool"):
        pytest.importorskip("envpool")
    report = check_environment(make_native(env, 4, 1, options), steps=70)
    assert report.episodes > 0
    assert report.random
    assert not report.snapshot


def test_envpool_resets_in_the_same_step() -> None:
    """CartPole's position after a step is the one before plus 0.02 s of its speed: no step, and no action, is lost."""
    pytest.importorskip("envpool")
    with closing(make_native("envpool:CartPole-v1", 3, 1, {"max_episode_steps": 12})) as env:
        obs = env.reset(4)
        lengths = torch.zeros(3, dtype=torch.int64)
        falls = limits = 0
        for t in range(60):
            env.send(torch.tensor([1, t % 2, 1]))
            step = env.recv()
            assert isinstance(obs, Tensor) and isinstance(step.obs, Tensor) and isinstance(step.final_obs, Tensor)
            lengths += 1
            cut = step.terminated | step.truncated
            reached = step.obs.clone()
            reached[cut] = step.final_obs
            torch.testing.assert_close(reached[:, 0], obs[:, 0] + 0.02 * obs[:, 1], rtol=0, atol=1e-6)
            assert torch.equal(step.truncated, lengths == 12)
            assert torch.equal(step.terminated, (reached[:, 2].abs() > 0.2095) & (lengths < 12))
            assert (step.obs[cut].abs() <= 0.05).all(), "a new episode starts near zero"
            assert torch.equal(step.episodes.lengths, lengths[cut])
            assert torch.equal(step.episodes.returns, lengths[cut].float())
            falls, limits = falls + int(step.terminated.sum()), limits + int(step.truncated.sum())
            lengths[cut] = 0
            obs = step.obs
        assert falls > 3
        assert limits > 3


class Spoiling:
    """An EnvPool that answers, the third time, with NaN for its environment number 1."""

    def __init__(self, pool: Any) -> None:
        self._pool, self._answers = pool, 0

    def recv(self) -> Any:
        obs, *rest = self._pool.recv()
        self._answers += 1
        obs = np.array(obs)
        if self._answers == 3:
            obs[1, 2] = np.nan
        return obs, *rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@pytest.mark.parametrize("restart", [True, False])
def test_envpool_starts_anew_what_answers_with_nan(restart: bool) -> None:
    pytest.importorskip("envpool")
    told = FaultConfig(on_env_error="restart" if restart else "stop")
    action = torch.ones(3, dtype=torch.int64)
    with (
        closing(make_native("envpool:CartPole-v1", 3, 1, {})) as sound,
        closing(make_native("envpool:CartPole-v1", 3, 1, {}, told)) as env,
    ):
        for one in (sound, env):
            one.reset(4)
        vars(env)["_pool"] = Spoiling(vars(env)["_pool"])
        for t in range(1, 9):
            for one in (sound, env):
                one.send(action)
            expected = sound.recv()
            if t == 3 and not restart:
                with pytest.raises(EnvironmentFault, match="environment 1, step 3: the observation holds NaN"):
                    env.recv()
                return
            step = env.recv()
            assert isinstance(step.obs, Tensor) and isinstance(step.final_obs, Tensor)
            assert isinstance(expected.obs, Tensor)
            assert torch.equal(step.obs[::2], expected.obs[::2]), "the others never notice"
            assert [fault.index for fault in step.faults] == [1] * (t == 3)
            if t == 3:
                assert step.truncated.tolist() == [False, True, False] and step.reward.tolist() == [1, 0, 1]
                assert (step.obs[1].abs() <= 0.05).all() and torch.equal(step.final_obs, step.obs[1:2])
                assert not len(step.episodes.index)
            elif t > 3:  # one action more than a fresh start, each time
                assert 0.19 * (t - 3) - 0.1 < step.obs[1, 1] < 0.2 * (t - 3) + 0.1
                assert not step.truncated.any()


def test_envpool_repeats_and_restarts() -> None:
    pytest.importorskip("envpool")
    runs = []
    for num_threads in (1, 2):
        with closing(make_native("envpool:CartPole-v1", 4, num_threads, {})) as env:
            runs += [stacked(play(env, seed, 50), lambda s: s.obs) for seed in (1, 2, 1)]  # type: ignore[arg-type,return-value]
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(runs[0], runs[3])
    assert not torch.equal(runs[0], runs[1])


def test_envpool_episodes_are_whole_games() -> None:
    """A lost life is `terminated`; the episode ends with the game, five lives later, with its unclipped score."""
    pytest.importorskip("envpool")
    options: dict[str, object] = {"episodic_life": True, "reward_clip": True}
    with closing(make_native("envpool:Breakout-v5", 2, 1, options)) as env:
        answers = play(env, 0, 700)
    lives, scores, games = torch.zeros(2), torch.zeros(2), 0
    for step in answers:
        lives += step.terminated
        scores += step.reward
        assert len(step.final_obs) == int(step.terminated.sum())
        for index, total in zip(step.episodes.index, step.episodes.returns, strict=True):
            games += 1
            assert lives[index] == 5
            assert total >= scores[index]
            lives[index] = scores[index] = 0
    assert games >= 2


def test_envpool_observations_of_other_kinds() -> None:
    pytest.importorskip("envpool")
    with closing(make_native("envpool:FrozenLake-v1", 2, 1, {})) as env:
        first = env.reset(0)
        assert isinstance(first, Tensor)
        assert torch.equal(first, torch.eye(16)[[0, 0]]), "the lake starts at field 0 of 16"
    with closing(make_native("envpool:CheetahRun-v1", 2, 1, {"max_episode_steps": 5})) as env:
        assert isinstance(env.spec.action, Bounded)
        env.reset(0)
        for _ in range(5):
            env.send(torch.zeros(2, 6))
            step = env.recv()
        assert isinstance(step.obs, dict) and isinstance(step.final_obs, dict)
        assert {name: (part.dtype, tuple(part.shape)) for name, part in step.final_obs.items()} == {
            "position": (torch.float32, (2, 8)),
            "velocity": (torch.float32, (2, 9)),
        }
        assert step.truncated.all()
        assert not torch.equal(step.obs["position"], step.final_obs["position"])


def test_envpool_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("envpool")
    for env, options, message in (
        ("envpool:CartPool-v1", {}, "did you mean 'CartPole-v1'"),
        ("envpool:zzz", {}, "list_all_envs"),
        ("envpool:CartPole-v1", {"max_episode_step": 3}, "did you mean 'max_episode_steps'"),
        ("envpool:CartPole-v1", {"seed": 3}, "no option 'seed'"),
        ("envpool:CartPole-v1", {"max_episode_steps": "many"}, "does not take these options"),
    ):
        with pytest.raises(UserError) as error:
            make_native(env, 1, 1, options)
        assert message in str(error.value)
    with closing(make_native("envpool:CartPole-v1", 1, 1, {})) as made:
        made.reset(0)
        with pytest.raises(ValueError, match=r"takes 0 … 1"):
            made.send(torch.tensor([2]))
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match=r"pip install \"greenroom\[envpool\]\""):
        make_native("envpool:CartPole-v1", 1, 1, {})
