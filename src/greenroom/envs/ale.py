"""The native Atari stage: ale-py's C++ vector of emulators, behind the `Environment` protocol.

The defaults are PAAC's protocol (Clemente et al. 2017, arXiv 1705.04862, and the authors' code), not those of the
Gymnasium id of the same name: `gymnasium.make("ALE/Pong-v5")` repeats the last action with probability 0.25, this stage
does not. To get that: `--env.repeat_action_probability 0.25`.

Three things are decided here and not left to the emulator. The frame cap: the emulator stops in mid-step there, and
the last observation would show an older frame. The lost life as an end: the emulator's own could not be told from a
finished game. The clipped reward: scores must stay raw. One inaccuracy remains: a game that is over in mid-step ends on
a picture that is up to one step old; nothing is learned from it, since a finished game's future is worth nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greenroom.cores import make_room, one_core_each
from greenroom.envs.base import EpisodeTracker
from greenroom.envs.tensors import env_seeds
from greenroom.errors import UserError, nearest
from greenroom.spec import ActionSpec, ArraySpec, Bounded, Discrete, EnvSpec
from greenroom.types import Step

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

NO_CAP = 2**30
"""Frames: a cap that the emulator never reaches; the adapter applies the real one."""

LIFE_LOSS = ("none", "terminate")

MULTIPLAYER_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})
"""Cartridges without a one-player mode: the emulator would end the whole process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AleConfig:
    """What the emulator shows and how it takes actions. The defaults are PAAC's protocol.

    Two known differences to the authors' code remain: frames are shrunk by area, not by nearest neighbour, and the
    stack of a new game starts with black frames, where the authors play four no-op actions to fill it.
    """

    repeat_action_probability: float = 0.0
    """Chance per frame that the emulator repeats the last action ("sticky actions"); Gymnasium's v5 ids use 0.25."""
    frameskip: int = 4
    """Emulator frames an action is held for."""
    maxpool: bool = True
    """Whether an observed frame is the pixel-wise maximum of the last two emulator frames (against flicker)."""
    stack_num: int = 4
    """Observed frames in one observation, oldest first."""
    noop_max: int = 30
    """Most no-op frames at the start of a game; the number is drawn from 0 to `noop_max`, both included."""
    use_fire_reset: bool = False
    """Whether FIRE is pressed for one frame before the no-ops, where the game has it. The paper's protocol does not: it
    is left to the agent to find out which games wait for FIRE, and some do so after every lost life."""
    life_loss: str = "none"
    """"none", or "terminate": a lost life is `terminated` to the learner, while the game and its episode go on."""
    reward_clipping: bool = True
    """Whether the learner's reward is clipped to [-1, 1]. Episode returns are game scores in any case."""
    full_action_space: bool = False
    """Whether all 18 joystick actions are offered, and not only those that the game knows."""
    continuous: bool = False
    """Whether actions are a stick's (radius 0..1, angle -pi..pi, fire 0..1) and not one of a list."""
    continuous_action_threshold: float = 0.5
    """How far the stick must move, or fire be pressed, to count."""
    max_num_frames_per_episode: int = 108_000
    """Frames after which a game is `truncated` (30 minutes of play; start no-ops count; the step in hand is finished).
    The authors' code has no cap."""
    grayscale: bool = True
    """Whether frames are grey; else red, green and blue are three channels of each frame."""
    img_height: int = 84
    """Pixels."""
    img_width: int = 84
    """Pixels."""
    thread_affinity_offset: int = -1
    """First CPU core that the emulator's threads are pinned to, one each; with -1 they are where there is one for each
    core, and fewer go where the system wants them."""

    def __post_init__(self) -> None:
        """Refuse values of a wrong type or range."""
        for field in fields(self):
            kind, value = type(field.default), getattr(self, field.name)
            accepted = (int, float) if kind is float else kind
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"env option {field.name} is {value!r}; give a value of type {kind.__name__}")
        ranges = {
            "repeat_action_probability": (0.0, 1.0),
            "frameskip": (1, math.inf),
            "stack_num": (1, math.inf),
            "noop_max": (0, math.inf),
            "continuous_action_threshold": (0.0, 1.0),
            "max_num_frames_per_episode": (self.noop_max + 2, NO_CAP),
            "img_height": (1, math.inf),
            "img_width": (1, math.inf),
            "thread_affinity_offset": (-1, math.inf),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"env option {name} is {getattr(self, name)}; it must lie between {low} and {high}")
        if self.life_loss not in LIFE_LOSS:
            raise UserError(f"env option life_loss is {self.life_loss!r}" + nearest(self.life_loss, LIFE_LOSS))

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of one observation; channels = frames times colors, newest frame last."""
        return (self.stack_num * (1 if self.grayscale else 3), self.img_height, self.img_width)


def rom_of(env: str) -> str:
    """The cartridge's name for an id: "ALE/MsPacman-v5" and "ALE/MsPacman" are "ms_pacman".

    Raises:
        UserError: ale-py is not installed, or the game or version is unknown.
    """
    try:
        from ale_py import roms
    except ImportError as error:
        raise UserError(f"{env} needs the Atari emulator: pip install ale-py") from error
    known = {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids() if rom not in MULTIPLAYER_ONLY}
    match = re.fullmatch(r"ALE/([^-]+)(-v5)?", env)
    if match is None:
        raise UserError(f"{env!r} is not an Atari id; the form is ALE/Pong-v5")
    game = match[1]
    if game not in known:
        if game.lower() in {rom.replace("_", "") for rom in MULTIPLAYER_ONLY}:
            raise UserError(f"{env}: this cartridge is for several players only; choose another game")
        raise UserError(f"unknown Atari game {game!r} in {env!r}" + nearest(game, known))
    return known[game]


def check_discrete(action: Tensor, spec: EnvSpec) -> None:
    """Refuse choices that do not exist: C++ would crash or wait for ever.

    Raises:
        ValueError: `spec` takes discrete actions and one of `action` is outside `0 … n-1`.
    """
    if not isinstance(spec.action, Discrete):
        return
    lowest, highest = int(action.min()), int(action.max())
    if lowest < 0 or highest >= spec.action.n:
        raise ValueError(f"actions from {lowest} to {highest}; {spec.name} takes 0 … {spec.action.n - 1}")


class AleEnvironment:
    """B Atari games stepped by C++ threads. Its tensors are never written again: they stay valid after the next `send`.

    The same seed gives the same games for any number of threads. It cannot be snapshotted.
    """

    def __init__(self, env: str, num_envs: int, config: AleConfig, *, num_threads: int = 0) -> None:
        """Start B emulators.

        Args:
            env: "ALE/Pong-v5" or "ALE/Pong".
            num_envs: B.
            config: the protocol.
            num_threads: emulator threads; 0 takes one for each core, and more than there are cores is no gain.

        Raises:
            UserError: unknown game, missing cartridge file, or a number below its least value.
        """
        if num_envs < 1 or num_threads < 0:
            raise UserError(f"num_envs={num_envs}, num_threads={num_threads}: at least 1 environment and 0 threads")
        rom = rom_of(env)
        from ale_py.vector_env import AtariVectorEnv

        try:
            with one_core_each():
                self._ale: AtariVectorEnv | None = AtariVectorEnv(
                    rom,
                    num_envs,
                    num_threads=num_threads,
                    thread_affinity_offset=config.thread_affinity_offset,
                    max_num_frames_per_episode=NO_CAP,
                    repeat_action_probability=config.repeat_action_probability,
                    full_action_space=config.full_action_space,
                    continuous=config.continuous,
                    continuous_action_threshold=config.continuous_action_threshold,
                    autoreset_mode="SameStep",
                    img_height=config.img_height,
                    img_width=config.img_width,
                    grayscale=config.grayscale,
                    stack_num=config.stack_num,
                    frameskip=config.frameskip,
                    maxpool=config.maxpool,
                    noop_max=config.noop_max + 1,  # the emulator draws from 0 to one less than this
                    reward_clipping=False,
                    use_fire_reset=config.use_fire_reset,
                )
        except OSError as error:
            raise UserError(
                f"{env}: the cartridge {rom}.bin cannot be read ({error}); reinstall ale-py, which brings it, "
                "or correct the folder in the environment variable ALE_ROMS_DIR"
            ) from error
        self._config, self.num_envs, self.device = config, num_envs, torch.device("cpu")
        self.spec = EnvSpec(
            name=env if env.endswith("-v5") else f"{env}-v5",
            obs=ArraySpec(shape=config.obs_shape, dtype=torch.uint8, low=0, high=255, stack=config.stack_num),
            action=_action_spec(config, self._ale),
        )
        self._lives: NDArray[np.int32] = np.zeros(num_envs, np.int32)
        self._tracker = EpisodeTracker(num_envs)
        self._sent = False

    def reset(self, seed: int) -> Tensor:
        """Start B new games; every emulator is seeded anew. Returns uint8 `[B, channels, height, width]`."""
        if self._sent:
            self._running.recv()  # the emulator would hand out this answer as that of the reset
            self._sent = False
        obs, info = self._running.reset(seed=np.array(env_seeds(seed, self.num_envs)))
        self._lives = info["lives"]
        self._tracker.reset()
        return self._image(obs)

    def send(self, action: Tensor) -> None:
        """Hand over one action per game and return at once.

        Raises:
            ValueError: a discrete action outside `0 … n-1`.
            RuntimeError: the last answer has not been fetched.
        """
        if self._sent:
            raise RuntimeError("send comes after reset or recv")
        check_discrete(action, self.spec)
        self._running.send(action.numpy())
        self._sent = True

    def recv(self) -> Step:
        """Wait for all B games.

        Raises:
            RuntimeError: nothing was sent (the emulator would wait for ever).
        """
        if not self._sent:
            raise RuntimeError("recv comes after send")
        self._sent = False
        obs, score, game_over, _, info = self._running.recv()
        make_room()
        timed_out = ~game_over & (info["episode_frame_number"] >= self._config.max_num_frames_per_episode)
        # A count of 0 before the game is over is the game's last moments, not a life to start again with.
        lost_life = ~game_over & (info["lives"] < self._lives) & (info["lives"] > 0)
        terminated = game_over | lost_life if self._config.life_loss == "terminate" else game_over
        cut = terminated | timed_out
        final_obs = obs[cut]
        if game_over.any():
            final_obs[game_over[cut]] = info["final_obs"][game_over]
        if timed_out.any():
            obs, info = self._running.reset(options={"reset_mask": timed_out})
        self._lives = info["lives"]
        returns = torch.from_numpy(score).float()
        return Step(
            obs=self._image(obs),
            reward=returns.clamp(-1, 1) if self._config.reward_clipping else returns,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(timed_out),
            final_obs=self._image(final_obs),
            episodes=self._tracker.update(returns, torch.from_numpy(game_over | timed_out), {}),
            signals={},
        )

    def close(self) -> None:
        """Stop the threads and free the emulators."""
        self._sent = False
        if self._ale is not None:
            self._ale.close()
            del self._ale.ale
            self._ale = None

    @property
    def _running(self) -> AtariVectorEnv:
        if self._ale is None:
            raise RuntimeError(f"{self.spec.name} was closed")
        return self._ale

    def _image(self, frames: NDArray[np.uint8]) -> Tensor:
        """`[N, frames, height, width(, 3)]` from the emulator to `[N, channels, height, width]`."""
        image = torch.from_numpy(frames)
        if self._config.grayscale:
            return image
        return image.permute(0, 1, 4, 2, 3).reshape(len(image), *self._config.obs_shape)


def _action_spec(config: AleConfig, ale: AtariVectorEnv) -> ActionSpec:
    if config.continuous:
        return Bounded(shape=(3,), low=(0.0, -math.pi, 0.0), high=(1.0, math.pi, 1.0))
    return Discrete(n=len(ale.ale.get_action_set()))
