"""A long training beside evaluations, checkpoints and questions at its socket: does memory, or anything else, grow?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faults.processes import COLLECTOR, WORKER, Failure, Place, Trainer, command_line, wait_until
from greenroom import checkpoint
from greenroom.control import Request, ask
from greenroom.errors import ExitCode, UserError
from greenroom.lines import read_log

SAMPLE_SECONDS = 10.0
GROWTH = 0.01
"""Flat memory: over the last two thirds, the fitted line rises by less than this share of its level."""

_COMMON = (
    "--num-envs 8 --threads 1 --total-steps 1000000000 --eval-episodes 8 --hidden 32 --log-seconds 2 --keep 2 --quiet"
)
RUNS: dict[str, str] = {
    "workers × 2, dqn": "CartPole-v1 --algo dqn --stage workers --num-workers 2 --rollout-length 8 --batch-size 64 "
    "--replay-ratio 4 --capacity 20000 --learning-starts 1000 --save-every 20000 --eval-every 40000",
    "device, ppo": "cartpole --algo ppo --rollout-length 16 --minibatches 4 --epochs 2 --save-every 50000 "
    "--eval-every 100000",
}
"""What is trained, side by side: a replay that fills up with workers, and tensors."""


@dataclass(kw_only=True)
class _Soaked:
    """One of the runs, and what has been seen of it."""

    name: str
    run: Path
    trainer: Trainer
    samples: list[dict[str, float]]


def soak(
    place: Place, minutes: float, say: Callable[[str], None], every: float = SAMPLE_SECONDS
) -> list[dict[str, Any]]:
    """Train all of `RUNS` for so many minutes and return what was measured, one record a run.

    Raises:
        Failure: one of them ended, or did not answer, or did not end as it should.
    """
    runs = [_start(place, number, name) for number, name in enumerate(RUNS)]
    try:
        for one in runs:
            wait_until(lambda one=one: checkpoint.latest(one.run / "checkpoints"), one.trainer, nap=0.1)  # type: ignore[misc]
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < minutes * 60:
            for one in runs:
                _sample(one, passed, save=len(one.samples) % 6 == 5)
            if len(runs[0].samples) % 6 == 1:
                say("; ".join(f"{one.name}: {one.samples[-1]['rss'] / 2**20:.1f} MB" for one in runs))
            time.sleep(max(0.0, every - (time.monotonic() - begin - passed)))
        return [_finish(one) for one in runs]
    finally:
        for one in runs:
            if one.trainer.alive():
                os.kill(one.trainer.pid, 9)
                one.trainer.wait()


def _start(place: Place, number: int, name: str) -> _Soaked:
    run = place.path / f"soak-{number}"
    words = ["train", *RUNS[name].split(), *_COMMON.split(), "--run-dir", str(run)]
    return _Soaked(name=name, run=run, trainer=command_line(place, words, f"soak-{number}"), samples=[])


def _sample(one: _Soaked, seconds: float, *, save: bool) -> None:
    """Look at the processes, then ask the run how it does, and every now and then to save."""
    if not one.trainer.alive():
        raise Failure(f"{one.name} ended after {seconds:.0f} s: {one.trainer.said[-500:]}")
    helpers = (pid for who in (COLLECTOR, WORKER) for pid in one.trainer.helpers(who))
    everybody = [_usage(pid) for pid in (one.trainer.pid, *helpers)]
    total = {key: sum(usage[key] for usage in everybody) for key in everybody[0]}
    # Only now: a conversation is a thread and a descriptor for as long as it lasts.
    told = ask(one.run, Request(verb="status"), timeout=60.0)
    if save:
        ask(one.run, Request(verb="checkpoint", reason="soak"), timeout=60.0)
    one.samples.append({"seconds": seconds, "env_steps": told["env_steps"], **total})


def _usage(pid: int) -> dict[str, float]:
    """Resident bytes, open descriptors and threads of a process; zeros if it is just going."""
    found = {"rss": 0.0, "fds": 0.0, "threads": 0.0}
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found["rss"] = float(fields["VmRSS"].split()[0]) * 1024
        found["threads"] = float(fields["Threads"])
        found["fds"] = float(len(os.listdir(f"/proc/{pid}/fd")))
    return found


def _finish(one: _Soaked) -> dict[str, Any]:
    try:
        ask(one.run, Request(verb="stop", reason="soaked"), timeout=60.0)
    except UserError as problem:
        raise Failure(f"{one.name} could not be stopped: {problem}") from problem
    if (code := one.trainer.wait()) != ExitCode.STOPPED:
        raise Failure(f"{one.name} ended with exit code {code}: {one.trainer.said[-500:]}")
    record = {"run": one.name, "command": f"greenroom train {RUNS[one.name]} {_COMMON}", **judge(one.samples)}
    record["evaluations"] = len(read_log(one.run / "evaluations.jsonl"))
    record["samples"] = [
        [round(s["seconds"]), s["env_steps"], *(round(s[key] / scale, 2) for key, scale in _COLUMNS)]
        for s in one.samples
    ]
    return record


_COLUMNS = (("rss", 2**20), ("fds", 1), ("threads", 1))


def judge(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Whether it stayed flat, after a first third for filling up.

    That is: descriptors and threads were never more in the last third than in the one before, and memory grew by less
    than `GROWTH`.
    """
    third = len(samples) // 3
    late = samples[third:]
    found: dict[str, Any] = {"seconds": round(samples[-1]["seconds"]), "env_steps": samples[-1]["env_steps"]}
    seconds = np.array([one["seconds"] for one in late])
    for key, scale in _COLUMNS:
        values = np.array([one[key] for one in late]) / scale
        slope = float(np.polyfit(seconds, values, 1)[0]) if len(late) > 1 else 0.0
        level = float(np.median(values))
        found[key] = {
            "level": round(level, 2),
            "largest": round(float(values.max()), 2),
            "growth": round(slope * float(seconds[-1] - seconds[0]) / level, 5),
            "more": max(one[key] for one in samples[-third:]) > max(one[key] for one in samples[third:-third]),
        }
    found["flat"] = found["rss"]["growth"] < GROWTH and not found["fds"]["more"] and not found["threads"]["more"]
    return found
