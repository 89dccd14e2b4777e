"""The public names: pinned, documented, light to import, and usable in a notebook."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import greenroom
from greenroom.algorithms.ppo import PPOConfig
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig

PUBLIC = [
    "EnvironmentFault",
    "Run",
    "RunConfig",
    "UserError",
    "check_environment",
    "compare",
    "evaluate",
    "examine",
    "launch",
    "list_environments",
    "load_policy",
    "make",
    "preset",
    "resume",
    "train",
]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


def test_the_public_names_are_these() -> None:
    code = "import greenroom; print(*(name for name in dir(greenroom) if name[0] != '_'))"
    assert sorted({*python("-c", code).stdout.split()} - {"TYPE_CHECKING", "annotations"}) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(greenroom, name)
    assert callable(value)
    assert inspect.getdoc(value)
    for member, inner in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
            assert inspect.getdoc(inner), f"{name}.{member}"


def test_every_parameter_of_a_public_function_is_typed() -> None:
    for name in PUBLIC:
        value = getattr(greenroom, name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'greenroom' has no attribute 'trian'"):
        greenroom.trian  # noqa: B018


def test_importing_greenroom_loads_no_torch() -> None:
    code = "import sys, greenroom, greenroom.envs, greenroom.errors; print('torch' in sys.modules)"
    assert python("-W", "error", "-c", code).stdout == "False\n"


def test_it_runs_as_a_module() -> None:
    done = python("-m", "greenroom", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "train" in done.stdout and "resume" in done.stdout


def test_a_notebook_drives_the_loop_itself() -> None:
    config = greenroom.RunConfig(
        env="probe-observation",
        num_envs=8,
        rollout_length=4,
        total_steps=100,
        algorithm=PPOConfig(epochs=1, minibatches=2),
        policy=PolicyConfig(network=Mlp(hidden=(8,))),
        threads=1,
    )
    said: list[str] = []
    run = greenroom.Run(config, say=said.append)
    seen = [
        (progress.env_steps, progress.updates, progress.metrics["entropy"].ndim) for progress in greenroom.train(run)
    ]
    assert seen == [(32, 1, 0), (64, 2, 0), (96, 3, 0), (128, 4, 0)], "the last rollout may pass the end"
    assert run.finished and list(greenroom.train(run)) == []
    run.close()
    assert said == ["stage: device (written as batched tensor code)"]

    environment = greenroom.make("probe-observation", num_envs=4, say=said.append)
    result = greenroom.evaluate(run.algorithm.policy, environment, episodes=8, seed=0)
    assert result.episodes == 8
