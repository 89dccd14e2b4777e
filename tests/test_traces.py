"""Reference traces: short trainings, stored, that a refactor has to reproduce.

`python tests/test_traces.py NAME…` writes them anew. Do so only when a change is meant to change what is
learned, and say why in the commit.

The comparison is not exact, since the CPU's vector width and torch's version decide the order of sums: on one machine,
kernels for other instruction sets move these numbers by up to one part in a million. A changed formula moves them by
far more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from algorithm_settings import LENGTH, NUM_ENVS, SETTINGS
from greenroom.algorithms import ALGORITHMS
from greenroom.config import RunConfig
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.training import Run, train

TRACES = Path(__file__).with_name("traces")
UPDATES = 20
RELATIVE, ABSOLUTE = 1e-5, 1e-5
"""The absolute part is for numbers that are differences of larger ones, such as the explained variance."""

TWO_BODIES = ("a2c", "ppo")
"""Those that are traced with an encoder of its own for the value."""

Trace = dict[str, dict[str, list[float]]]
"""`metrics`: name → one number an update; `parameters`: name → sum, sum of squares, first and last element."""


def record(algo: str) -> Trace:
    """Train on lost sales with short episodes, so that time limits count, or where that cannot be, on a probe."""
    continuous = algo in ("sac", "td3")
    config = RunConfig(
        env="probe-continuous" if continuous else "lost-sales",
        env_kwargs={} if continuous else {"horizon": 10},
        num_envs=NUM_ENVS,
        rollout_length=LENGTH,
        total_steps=UPDATES * NUM_ENVS * LENGTH,
        device="cpu",
        algorithm=SETTINGS[algo],
        policy=PolicyConfig(network=Mlp(hidden=(16, 16)), normalize_obs=True, separate_value=algo in TWO_BODIES),
    )
    run = Run(config, say=lambda line: None)
    metrics: dict[str, list[float]] = {}
    for progress in train(run):
        for name, value in progress.metrics.items():
            metrics.setdefault(name, []).append(float(value))
        metrics.setdefault("return_sum", []).append(float(progress.rollout.episodes.returns.sum()))
    parameters = {
        name: [float(part.double().sum()), float(part.double().square().sum()), float(flat[0]), float(flat[-1])]
        for name, part in run.algorithm.policy.state_dict().items()
        for flat in (part.flatten(),)
    }
    run.close()
    return {"metrics": metrics, "parameters": parameters}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_trace(algo: str) -> None:
    found = record(algo)
    expected: Trace = json.loads((TRACES / f"{algo}.json").read_text())
    assert found.keys() == expected.keys()
    for part, series in expected.items():
        assert found[part].keys() == series.keys()
        for name, numbers in series.items():
            # In the order of time: the first difference is where the change is.
            assert found[part][name] == pytest.approx(numbers, rel=RELATIVE, abs=ABSOLUTE), f"{part} {name}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    TRACES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SETTINGS:
        (TRACES / f"{name}.json").write_text(json.dumps(record(name), indent=1) + "\n")
