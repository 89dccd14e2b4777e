"""One episode as a film: an animated GIF with Pillow, or an MP4 with the extra "video"."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import RenderCollection
from numpy.typing import NDArray
from torch import Tensor

from greenroom import seeding
from greenroom.envs.ale import AleEnvironment
from greenroom.envs.base import Environment
from greenroom.envs.device import model_of
from greenroom.envs.factory import Factory, Source
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.native import ale_config, native_for
from greenroom.errors import UserError, nearest
from greenroom.evaluation import device_of, evaluation_mode
from greenroom.policy import Actor
from greenroom.types import Obs, Step, map_obs, restart

Picture = NDArray[np.uint8]
"""`[height, width, 3]`, red, green and blue."""

FORMATS = (".gif", ".mp4")


class Film(Protocol):
    """One environment (B = 1) and a camera on it."""

    environment: Environment
    fps: float
    """Agent steps per second of real time."""

    def reset(self, seed: int) -> tuple[Obs, Picture]:
        """Start an episode."""
        ...

    def step(self, action: Tensor) -> tuple[Step, Picture]:
        """One step, and the picture after it: of an episode that ended, its last."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def record(
    policy: Actor,
    env: Source,
    kwargs: Mapping[str, Any],
    path: Path,
    *,
    seed: int,
    max_steps: int = 10_000,
    greedy: bool = True,
    stage: str = "auto",
    faults: FaultConfig = BY_DEFAULT,
) -> Path:
    """Film one episode, from its first observation to its last.

    Args:
        policy: as for `evaluate`.
        env: whatever `greenroom.make` takes; it must be able to draw itself.
        kwargs: the environment's own arguments, those that the policy was trained with.
        path: ends in .gif, or in .mp4 (needs the extra "video"). An existing file is kept: the film goes to a free
            name beside it.
        seed: of the episode and of sampled actions.
        max_steps: agent steps after which filming stops, ≥ 1.
        greedy: take the policy's best action instead of a sampled one.
        stage: the one the policy was trained on, because Atari looks different through Gymnasium (`inline`, `workers`).
        faults: what counts as a failure of the environment, as in training.

    Returns:
        Where the film is.

    Raises:
        UserError: a format not known or not installed, or an environment that cannot draw itself.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path.name}: a film is called NAME.gif or NAME.mp4" + nearest(path.suffix, FORMATS))
    if max_steps < 1:
        raise UserError(f"a film needs max_steps of at least 1, not {max_steps}")
    write = _write_gif if path.suffix == ".gif" else _mp4_writer()
    film = _open(env, kwargs, stage, faults)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = _free(path)
        try:
            write(free, _pictures(film, policy, seed, max_steps, greedy), film.fps)
        except BaseException:
            free.unlink(missing_ok=True)
            raise
    finally:
        film.close()
    return free


def _pictures(film: Film, policy: Actor, seed: int, max_steps: int, greedy: bool) -> Iterator[Picture]:
    """Play, and show what happens as it happens: a whole film may not fit into memory."""
    stage = film.environment.device
    device = device_of(policy, stage)
    generator = seeding.generator(seed, "video", device=device)
    with evaluation_mode(policy), torch.no_grad():
        obs, picture = film.reset(seeding.derive(seed, "video", "environment"))
        yield picture
        state = initial = policy.initial_state(1)
        for _ in range(max_steps):
            obs = map_obs(lambda part: part.to(device), obs)
            decision = policy.act(obs, state, None if greedy else generator)
            step, picture = film.step(decision.action.to(stage))
            yield picture
            if len(step.episodes.index):
                return
            obs = step.obs
            state = restart(decision.state, initial, (step.terminated | step.truncated).to(device))


def _open(env: Source, kwargs: Mapping[str, Any], stage: str, faults: FaultConfig) -> Film:
    if model_of(env):
        raise UserError(f"{env} cannot be filmed: a device environment is numbers only, it draws no pictures")
    native = native_for(env) if isinstance(env, str) and stage in ("auto", "native") else None
    if native == "ale":
        return AtariFilm(str(env), kwargs)
    if native:
        raise UserError(
            f"{env} cannot be filmed: {native} draws no pictures here; film the Gymnasium task of that name"
        )
    return GymnasiumFilm(env, kwargs, faults)


class AtariFilm:
    """Two emulators in step, from the same seed: one as the policy sees it, one in color at its full size."""

    def __init__(self, env: str, kwargs: Mapping[str, Any]) -> None:
        config = ale_config(kwargs)
        screen = dataclasses.replace(config, grayscale=False, stack_num=1, img_height=210, img_width=160)
        self.environment: Environment = AleEnvironment(env, 1, config, num_threads=1)
        self._screen = AleEnvironment(env, 1, screen, num_threads=1)
        self.fps = 60 / config.frameskip

    def reset(self, seed: int) -> tuple[Obs, Picture]:
        """Start a game."""
        return self.environment.reset(seed), _enlarged(self._screen.reset(seed))

    def step(self, action: Tensor) -> tuple[Step, Picture]:
        """One step of both; a lost life is not the episode's end."""
        self.environment.send(action)
        self._screen.send(action)
        seen, shown = self.environment.recv(), self._screen.recv()
        over = len(seen.episodes.index) > 0
        picture = shown.final_obs if over else shown.obs
        assert isinstance(picture, Tensor)
        return seen, _enlarged(picture)

    def close(self) -> None:
        """Stop both."""
        self.environment.close()
        self._screen.close()


def _enlarged(screen: Tensor) -> Picture:
    """`[1, 3, 210, 160]` as a picture twice as high and, since the console's pixels are wide, four times as wide."""
    picture: Picture = screen[0].permute(1, 2, 0).repeat_interleave(2, 0).repeat_interleave(4, 1).numpy()
    return picture


class GymnasiumFilm:
    """A Gymnasium environment that draws itself (render mode `rgb_array`)."""

    def __init__(self, env: Source, kwargs: Mapping[str, Any], faults: FaultConfig) -> None:
        plain = Factory(env=env, kwargs=kwargs)
        trial = plain.build()
        modes = trial.metadata.get("render_modes", [])
        self.fps = float(trial.metadata.get("render_fps", 30))
        trial.close()
        if "rgb_array" not in modes:
            raise UserError(
                f"{plain.name} cannot be filmed: it draws no pictures. Let it take render_mode='rgb_array' and name "
                "that in metadata['render_modes']"
            )
        drawn = Factory(env=env, kwargs={**kwargs, "render_mode": "rgb_array"}).build()
        # Keeps what was drawn before the reset that comes with an episode's end.
        self._camera: RenderCollection[Any, Any] = RenderCollection(drawn, reset_clean=False)
        self.environment: Environment = InlineEnvironment(self._camera_env, num_envs=1, faults=faults)

    def reset(self, seed: int) -> tuple[Obs, Picture]:
        """Start an episode."""
        obs = self.environment.reset(seed)
        return obs, self._picture()

    def step(self, action: Tensor) -> tuple[Step, Picture]:
        """One step; after the last one, the picture is still of the episode that ended."""
        self.environment.send(action)
        step = self.environment.recv()
        return step, self._picture()

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()

    def _camera_env(self) -> gymnasium.Env[Any, Any]:
        return self._camera

    def _picture(self) -> Picture:
        """The first picture drawn since the last one that was asked for."""
        picture = np.asarray(self._camera.render()[0])
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"{self.environment.spec.name} cannot be filmed: it drew {picture.dtype} of shape {picture.shape}, "
                "not uint8 of shape (height, width, 3)"
            )
        return picture


def _free(path: Path) -> Path:
    """`path`, or the first of NAME-2, NAME-3, … that does not exist; the file is made, so that nobody else takes it."""
    candidate, number = path, 1
    while True:
        try:
            candidate.touch(exist_ok=False)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_stem(f"{path.stem}-{number}")


def _write_gif(path: Path, pictures: Iterator[Picture], fps: float) -> None:
    from PIL import Image

    images = (Image.fromarray(picture) for picture in pictures)
    shortest = 20  # milliseconds; viewers show anything faster at 10 pictures a second
    duration = max(shortest, round(1000 / fps))
    next(images).save(path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0)


class _Writer(Protocol):
    def __call__(self, path: Path, pictures: Iterator[Picture], fps: float) -> None: ...


def _mp4_writer() -> _Writer:
    try:
        from imageio_ffmpeg import write_frames  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(
            f'MP4 needs the extra "video": pip install "greenroom[video]", or use .gif ({error})'
        ) from error

    def write(path: Path, pictures: Iterator[Picture], fps: float) -> None:
        first = _even(next(pictures))
        # A block of 2: the usual color format halves width and height.
        film = write_frames(str(path), (first.shape[1], first.shape[0]), fps=fps, macro_block_size=2)
        film.send(None)
        try:
            film.send(first.tobytes())
            for picture in pictures:
                film.send(_even(picture).tobytes())
        finally:
            film.close()

    return write


def _even(picture: Picture) -> Picture:
    """Width and height rounded up to even numbers by repeating the edge."""
    height, width, _ = picture.shape
    padded: Picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded)
