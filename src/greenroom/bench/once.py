"""One run's speed in a process of its own: `python -m greenroom.bench.once < config.yaml` prints what `scripts` reads.

Besides the rate: `resident`, the process's memory in bytes, a GPU's included, and `parameters`, how many numbers are
trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import torch

import greenroom
from greenroom.algorithms import updaters_of
from greenroom.bench.scripts import Answer
from greenroom.config import RunConfig, load
from greenroom.measure import begun
from greenroom.training import train


def measure(config: RunConfig, *, seconds: float, warm_up: float) -> Answer:
    """Train for `warm_up` seconds and at least one update, then count for `seconds`."""
    said: list[str] = []
    run = begun(config, said.append)
    try:
        steps, begin, warm = 0, 0.0, time.perf_counter() + warm_up
        for progress in train(run):
            now = time.perf_counter()
            if not begin:
                steps, begin = (progress.env_steps, now) if now >= warm else (0, 0.0)
            elif now - begin >= seconds:
                break
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - begin
        trained = sum(tensor.numel() for updater in updaters_of(run.algorithm) for tensor in updater.params)
        more = {"resident": float(resident() + on_gpu(run.device)), "parameters": float(trained)}
        compiled = ["compiled"] if config.compile else []
        how = "; ".join([config.collect, said[0].removeprefix("stage: "), *_arithmetic(said), *compiled])
        return Answer(steps=run.env_steps - steps, seconds=taken, version=greenroom.__version__, setting=how, more=more)
    finally:
        run.close()


def _arithmetic(said: list[str]) -> list[str]:
    """What a run says of arithmetic other than float32's, which nobody else here uses."""
    return [line.removeprefix("precision: ").split(" (")[0] for line in said if line.startswith("precision: ")]


def resident() -> int:
    """This process's memory in bytes, as far as it lies in the machine's; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def on_gpu(device: torch.device) -> int:
    """The most bytes of a GPU that tensors have taken; 0 where none is used."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main() -> None:
    """Read a config, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    given = parser.parse_args()
    answer = measure(load(sys.stdin.read(), "standard input"), seconds=given.seconds, warm_up=given.warm_up)
    print(json.dumps(dataclasses.asdict(answer)))


if __name__ == "__main__":
    main()
