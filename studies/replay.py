"""What a replay of Atari costs: memory for each transition, and the time of adding and drawing.

The games are made up: noise of 84 × 84 pixels in stacks of four, whose first stack is black but for its newest frame,
as the emulator's is. For the memory it matters only how long they last, and for the time not even that.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenroom import folder, machine
from greenroom.replay import Replay, ReplayConfig
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.types import Episodes, Rollout

SHAPE, STACK = (84, 84), 4
SPEC = EnvSpec(
    name="made-up Atari",
    obs=ArraySpec(shape=(STACK, *SHAPE), dtype=torch.uint8, low=0, high=255, stack=STACK),
    action=Discrete(n=6),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the study can be told."""

    capacity: int
    num_envs: int
    rollout_length: int
    episode_length: int
    batch_size: int
    draws: int
    device: torch.device
    replay_device: str
    out: Path


def rollouts(chosen: Options) -> Iterator[Rollout]:
    """Endless games; their frames are drawn from a bank of a thousand, which is cheaper than making each one."""
    source = torch.Generator().manual_seed(0)
    num_envs, length = chosen.num_envs, chosen.rollout_length
    bank = torch.randint(0, 256, (1024, *SHAPE), dtype=torch.uint8, generator=source)
    obs = torch.zeros((length + 1, num_envs, STACK, *SHAPE), dtype=torch.uint8)
    lead = (length, num_envs)
    none = torch.zeros(0, dtype=torch.int64)
    while True:
        obs[0] = obs[length]
        cut = torch.rand(lead, generator=source) < 1.0 / chosen.episode_length
        finals: list[Tensor] = []
        for t in range(length):
            obs[t + 1, :, :-1] = obs[t, :, 1:]
            obs[t + 1, :, -1] = bank[torch.randint(len(bank), (num_envs,), generator=source)]
            finals.append(obs[t + 1, cut[t]])
            obs[t + 1, cut[t], :-1] = 0
        yield Rollout(
            obs=obs.to(chosen.device),
            action=torch.randint(6, lead, generator=source).to(chosen.device),
            reward=torch.randn(lead, generator=source).to(chosen.device),
            terminated=cut.to(chosen.device),
            truncated=torch.zeros_like(cut).to(chosen.device),
            final_obs=torch.cat(finals).to(chosen.device),
            extras={},
            state={},
            next_state={},
            final_state={},
            version=0,
            episodes=Episodes(index=none, returns=none.float(), lengths=none, signals={}),
        )


def resident() -> int:
    """This process's memory in bytes, as far as it lies in the machine's."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long `action` takes, the device's work included."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(chosen: Options, *, prioritised: bool) -> dict[str, Any]:
    """Fill a replay to the brim and draw from it."""
    config = ReplayConfig(
        capacity=chosen.capacity,
        n_step=3,
        prioritised=prioritised,
        replay_device=chosen.replay_device,  # type: ignore[arg-type]  # argparse has checked it
    )
    games = rollouts(chosen)
    next(games)
    before = resident()
    replay = config.build(
        SPEC, num_envs=chosen.num_envs, gamma=0.99, total_steps=chosen.capacity, seed=0, device=chosen.device
    )
    machine.keep_freed_memory()  # as a run does, once its replay is there
    count = -(-chosen.capacity // (chosen.num_envs * chosen.rollout_length)) + 1
    adding = [_add(replay, next(games), chosen.device) for _ in range(count)]
    grown = resident() - before
    drawing = [seconds(lambda: replay.sample(chosen.batch_size), chosen.device) for _ in range(chosen.draws)]
    with_update = [seconds(lambda: _learn(replay, chosen), chosen.device) for _ in range(chosen.draws)]
    return {
        "draw": "prioritised" if prioritised else "uniform",
        "transitions": len(replay),
        "gigabytes": replay.nbytes / 1e9,
        "bytes_per_transition": replay.bytes_per_transition,
        "resident_bytes_per_transition": grown / len(replay),
        "add_us_per_transition": 1e6 * statistics.median(adding) / (chosen.num_envs * chosen.rollout_length),
        "draw_ms": 1e3 * statistics.median(drawing),
        "draws_per_second": 1.0 / statistics.median(drawing),
        "draw_and_update_ms": 1e3 * statistics.median(with_update),
    }


def _add(replay: Replay, rollout: Rollout, device: torch.device) -> float:
    return seconds(lambda: replay.add(rollout), device)


def _learn(replay: Replay, chosen: Options) -> None:
    batch = replay.sample(chosen.batch_size)
    replay.update_priorities(batch.index, batch.reward)


def table(chosen: Options, results: Sequence[dict[str, Any]]) -> str:
    """The results in Markdown."""
    headings = {
        "draw": "draw",
        "transitions": "transitions",
        "gigabytes": "GB",
        "bytes_per_transition": "bytes each",
        "resident_bytes_per_transition": "resident bytes each",
        "add_us_per_transition": "µs to add one",
        "draw_ms": f"ms for a batch of {chosen.batch_size}",
        "draws_per_second": "batches a second",
        "draw_and_update_ms": "ms with new priorities",
    }
    rows = [headings.values(), ["---"] * len(headings)]
    rows += [[_cell(result[name]) for name in headings] for result in results]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    where = f"{machine.cpu_kind()}, {torch.get_num_threads()} threads; learner on {chosen.device.type}, "
    where += f"replay_device {chosen.replay_device}"
    return "\n".join(
        [
            "# Replay of Atari transitions",
            "",
            f"84 × 84 uint8 in stacks of {STACK}, {chosen.num_envs} environments, rollouts of {chosen.rollout_length} "
            f"steps, episodes of {chosen.episode_length} steps on average, 3-step returns. Times are medians: of all "
            f"adds, and of {chosen.draws} draws from the full replay. Resident bytes are what this process grew by on "
            "the host.",
            "",
            *lines,
            "",
            f"Made by `{shlex.join(['python', 'studies/replay.py', *sys.argv[1:]])}`. Machine: {where}.",
            "",
        ]
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--capacity", type=int, default=1_000_000, help="transitions; a million take about 8 GB")
    made.add_argument("--num-envs", type=int, default=64)
    made.add_argument("--rollout-length", type=int, default=20)
    made.add_argument("--episode-length", type=int, default=500, help="steps, on average")
    made.add_argument("--batch-size", type=int, default=256)
    made.add_argument("--draws", type=int, default=200, help="of each kind")
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="of the learner")
    made.add_argument("--replay-device", choices=["auto", "cpu", "cuda"], default="auto")
    made.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "results" / "replay")
    chosen = Options(**vars(made.parse_args(words)))
    results = [measure(chosen, prioritised=prioritised) for prioritised in (False, True)]
    text = table(chosen, results)
    chosen.out.mkdir(parents=True, exist_ok=True)
    folder.write_json(chosen.out / "results.json", {"environment": folder.describe_environment(), "results": results})
    folder.write_text(chosen.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
