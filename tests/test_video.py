"""Films: the whole episode from first to last picture, never over an existing file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor

from greenroom.errors import UserError
from greenroom.types import Decision, Obs, State
from greenroom.video import AtariFilm, record


class Rule:
    """A policy that takes the same action always, and another one when sampled."""

    def __init__(self, action: int, sampled: int = 0) -> None:
        self.action, self.sampled = action, sampled

    def initial_state(self, num_envs: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        action = self.action if generator is None else self.sampled
        return Decision(action=torch.full((len(obs),), action), extras={}, state=state)


class Alternating:
    """A policy that takes the actions 0 and 1 in turn: what it did last is all that it goes by."""

    def initial_state(self, num_envs: int) -> State:
        return {"next": torch.zeros(num_envs, dtype=torch.int64)}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        return Decision(action=state["next"], extras={}, state={"next": 1 - state["next"]})


class Counter(gymnasium.Env[Any, Any]):
    """Counts steps, adding the action's number plus one; ends at `end`. Its picture is filled with the count."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # Gymnasium's own form
    observation_space = spaces.Box(0, 255, (1,), np.float32)
    action_space = spaces.Discrete(2)

    closed = 0
    """How many that drew were closed."""

    def __init__(self, end: int = 5, render_mode: str | None = None) -> None:
        self.end, self.render_mode, self.count = end, render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += int(action) + 1
        return np.array([self.count], np.float32), 1.0, self.count >= self.end, False, {}

    def render(self) -> Any:
        return np.full((5, 7, 3), 10 * self.count, np.uint8)

    def close(self) -> None:
        Counter.closed += self.render_mode == "rgb_array"


class Blind(Counter):
    """Draws nothing."""

    metadata = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own form


class Odd(Counter):
    """Draws something that is not a picture."""

    def render(self) -> Any:
        return np.zeros((5, 7))


def pictures(path: Path) -> list[Any]:
    """The pictures of a GIF, as arrays."""
    with Image.open(path) as film:
        arrays = []
        for index in range(film.n_frames):  # type: ignore[attr-defined]  # GifImageFile has it
            film.seek(index)
            arrays.append(np.asarray(film.convert("RGB")))
    return arrays


@pytest.mark.parametrize(
    ("greedy", "max_steps", "counts"),
    [(True, 100, [0, 1, 2, 3, 4, 5]), (False, 100, [0, 2, 4, 6]), (True, 2, [0, 1, 2])],
)
def test_a_film_shows_the_episode_and_no_more(tmp_path: Path, greedy: bool, max_steps: int, counts: list[int]) -> None:
    wanted = tmp_path / "new" / "film.gif"
    closed = Counter.closed
    path = record(Rule(0, sampled=1), Counter, {}, wanted, seed=0, max_steps=max_steps, greedy=greedy)
    assert Counter.closed == closed + 1
    assert path == wanted
    shown = pictures(path)
    assert [int(picture[0, 0, 0]) for picture in shown] == [10 * count for count in counts]
    assert all(picture.shape == (5, 7, 3) for picture in shown)
    with Image.open(path) as film:
        assert film.info["duration"] == 100, "10 pictures a second"


def test_a_memory_lasts_from_step_to_step(tmp_path: Path) -> None:
    path = record(Alternating(), Counter, {"end": 9}, tmp_path / "film.gif", seed=0, max_steps=100)
    assert [int(picture[0, 0, 0]) // 10 for picture in pictures(path)] == [0, 1, 3, 4, 6, 7, 9]


def test_the_environments_own_arguments_count(tmp_path: Path) -> None:
    path = record(Rule(0), Counter, {"end": 2}, tmp_path / "film.gif", seed=0, max_steps=9)
    assert len(pictures(path)) == 3


def test_an_existing_film_is_kept(tmp_path: Path) -> None:
    wanted = tmp_path / "film.gif"
    wanted.write_text("mine")
    made = [record(Rule(0), Counter, {}, wanted, seed=0, max_steps=3) for _ in range(2)]
    assert [path.name for path in made] == ["film-2.gif", "film-3.gif"]
    assert wanted.read_text() == "mine"


def test_the_policy_gets_its_mode_back(tmp_path: Path) -> None:
    class Zero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def initial_state(self, num_envs: int) -> State:
            return {}

        def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
            assert not self.training and not torch.is_grad_enabled()
            return Decision(action=torch.zeros(1, dtype=torch.int64), extras={}, state=state)

    policy = Zero()
    record(policy, Counter, {}, tmp_path / "film.gif", seed=0, max_steps=3)
    assert policy.training


@pytest.mark.parametrize(
    ("env", "name", "message"),
    [
        ("lost-sales", "film.gif", "device environment is numbers only"),
        (Blind, "film.gif", "Blind cannot be filmed: it draws no pictures"),
        (Odd, "film.gif", "drew float64 of shape (5, 7)"),
        ("envpool:Pong-v5", "film.gif", "envpool draws no pictures"),
        (Counter, "film.avi", "NAME.gif or NAME.mp4"),
        ("CartPoll-v1", "film.gif", "unknown environment 'CartPoll-v1'"),
    ],
)
def test_what_cannot_be_filmed_is_named_and_leaves_nothing(
    env: str | Callable[..., Any], name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        record(Rule(0), env, {}, tmp_path / name, seed=0, max_steps=3)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_mp4(tmp_path: Path) -> None:
    """Odd sizes are rounded up; every picture is there, in order."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = record(Rule(0), Counter, {"end": 20}, tmp_path / "film.mp4", seed=0, max_steps=50)
    command = [ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True)
    assert b" 8x6," in decoded.stderr and b" 10 fps" in decoded.stderr
    shades = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 6 * 8 * 3).mean(1).tolist()
    assert shades == pytest.approx([10 * count for count in range(21)], abs=6)


def test_mp4_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install \"greenroom\[video\]\", or use \.gif"):
        record(Rule(0), Counter, {}, tmp_path / "film.mp4", seed=0, max_steps=3)
    assert not list(tmp_path.iterdir())


def test_cartpole_is_filmed(tmp_path: Path) -> None:
    path = record(Rule(1), "CartPole-v1", {}, tmp_path / "film.gif", seed=0, max_steps=500)
    shown = pictures(path)
    assert 8 <= len(shown) <= 12, "always pushing to the right"
    assert shown[0].shape == (400, 600, 3)


def test_the_two_emulators_of_an_atari_film_stay_in_step() -> None:
    """Sticky actions, no-ops and the frame cap included: the color picture, shrunk and grey, is the newest frame."""
    film = AtariFilm("ALE/Breakout-v5", {"repeat_action_probability": 0.25, "img_height": 210, "img_width": 160})
    generator = torch.Generator().manual_seed(0)
    film.reset(3)
    games = 0
    for _ in range(300):
        step, picture = film.step(torch.randint(4, (1,), generator=generator))
        over = len(step.episodes.index)
        assert picture.shape == (420, 640, 3)
        games += over
        if not over:
            assert isinstance(step.obs, Tensor)
            luminance = picture[::2, ::4] @ np.array([0.299, 0.587, 0.114])
            assert np.abs(luminance - step.obs[0, -1].numpy()).max() <= 2
    film.close()
    assert games >= 1


def test_an_atari_films_last_picture_is_of_the_game_that_ended() -> None:
    pictures = []
    for cap in (80, 1000):
        film = AtariFilm("ALE/Pong-v5", {"max_num_frames_per_episode": cap, "noop_max": 0})
        film.reset(0)
        for _ in range(20):
            step, picture = film.step(torch.zeros(1, dtype=torch.int64))
        film.close()
        assert len(step.episodes.index) == (cap == 80)
        pictures.append(picture)
    assert np.array_equal(pictures[0], pictures[1])


def test_atari_is_filmed_whole_in_spite_of_lost_lives(tmp_path: Path) -> None:
    path = record(
        Rule(1),
        "ALE/Breakout-v5",
        {"life_loss": "terminate", "max_num_frames_per_episode": 400, "noop_max": 0},
        tmp_path / "film.gif",
        seed=0,
        max_steps=1000,
    )
    with Image.open(path) as film:
        assert film.size == (640, 420)
        frames = 0
        for index in range(film.n_frames):  # type: ignore[attr-defined]  # GifImageFile has it
            film.seek(index)
            frames += round(film.info["duration"] / 67)
    assert abs(frames - 101) <= 2, "100 steps; equal pictures are merged into longer ones"
