"""docs/extend.md, executed: a user's own algorithm, network and environment, from a package outside greenroom."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import greenroom
from greenroom.cli import main
from greenroom.config import component, load_file
from greenroom.networks import Encoder, NetworkConfig, Nips
from greenroom.spec import ArraySpec

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(mine/\w+\.py)`.*?\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^greenroom .*", PAGE, re.MULTILINE)]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documented package in a folder of its own, which is the current one."""
    (tmp_path / "mine").mkdir()
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_page_shows_all_four_in_few_lines() -> None:
    assert list(FILES) == ["mine/awr.py", "mine/residual.py", "mine/sgd.py", "mine/coin.py"]
    for name, source in FILES.items():
        lines = [
            line
            for line in source.splitlines()
            if line.strip() and not line.lstrip().startswith(('"""', "from ", "import "))
        ]
        assert len(lines) < 40, f"{name} has {len(lines)} lines"


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_the_documented_commands_run(words: list[str], mine: Path) -> None:
    short = ["--total-steps", "4096", "--eval-episodes", "4", "--stage", "inline", "--quiet", "--run-dir", "run"]
    assert main([*words, *short]) == 0
    option, value = words[-2:]
    config = (mine / "run" / "config.yaml").read_text()
    assert f"{option.removeprefix('--').removeprefix('env.')}: {value}" in config
    assert main(["resume", "run", "--total-steps", "6144", "--quiet"]) == 0
    assert main(["evaluate", "run", "--episodes", "4", "--json"]) == 0
    assert load_file(mine / "run" / "config.yaml").total_steps == 6144


def test_the_options_of_one_s_own_have_help(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "CartPole-v1", "--algo", "mine.awr:AWR", "--network", "mine.residual:Residual", "--help"])
    shown = capsys.readouterr().out
    for option, text in (("--beta", "Temperature"), ("--blocks", "How many blocks"), ("--width", "Features")):
        assert option in shown
        assert text in shown


def test_the_documented_check_passes(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(mine)
    source = next(
        block for block in re.findall(r"```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "check_" in block
    )
    exec(compile(source, "extend.md", "exec"), {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.nowhere:AWR", "mine.nowhere:AWR: there is no module"),
        ("mine.awr:Lerner", "module 'mine.awr' has no class 'Lerner'; did you mean 'Learner'?"),
        ("mine.awr:Learner", "mine.awr:Learner is not a dataclass with the method policy"),
        ("mine.residual:Residual", "is not a dataclass with the method policy"),
        ("awr", "no algorithm 'awr'"),
    ],
)
def test_what_is_no_algorithm_is_refused(
    name: str, message: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "CartPole-v1", "--algo", name]) == 2
    assert message in capsys.readouterr().err


def test_an_optimiser_without_what_is_asked_of_it_is_refused(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "mine" / "poor.py").write_text(FILES["mine/sgd.py"].replace("schedule: Schedule", "plan: Schedule"))
    assert main(["train", "CartPole-v1", "--algo", "a2c", "--optimizer", "mine.poor:SGD"]) == 2
    assert "is not a dataclass with the field learning_rate and the field schedule" in capsys.readouterr().err


def test_one_s_own_network_sees_what_comes_in_parts_too(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where there is a mask; of greenroom's own, those for pictures leave the rest to a plain one."""
    monkeypatch.syspath_prepend(mine)
    name = "mine.residual:Residual"
    own = component(NetworkConfig, name)()
    spec = {"x": ArraySpec(shape=(3,)), "y": ArraySpec(shape=(2,))}
    assert all(of_ones_own(part) for part in Encoder(own, spec).parts)
    assert not any(of_ones_own(part) for part in Encoder(Nips(), spec).parts)
    words = ["train", "mine.coin:Coin", "--network", name, "--total-steps", "512", "--run-dir", "run", "--quiet"]
    assert main([*words, "--algo", "ppo", "--eval-episodes", "4", "--stage", "inline"]) == 0
    policy: Any = greenroom.load_policy("run")[1]
    assert of_ones_own(policy)


def of_ones_own(module: torch.nn.Module) -> bool:
    return any(type(part).__module__ == "mine.residual" for part in module.modules())


@pytest.mark.parametrize(("env", "algo"), [("Pendulum-v1", "sac:SACConfig"), ("CartPole-v1", "dqn:DQNConfig")])
def test_a_user_s_algorithm_need_not_be_an_actor_critic(env: str, algo: str) -> None:
    """What the family's preset says of actor-critics is not for it."""
    config = greenroom.preset(None, env, algo=f"greenroom.algorithms.{algo}")
    greenroom.Run(dataclasses.replace(config, num_envs=2), say=lambda line: None).close()


def test_a_component_says_what_it_is_by_default(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (mine / "mine" / "residual.py").read_text()
    assert re.search(r"width: int = \d+", source)
    (mine / "mine" / "bare.py").write_text(re.sub(r"width: int = \d+", "width: int", source))
    assert main(["train", "CartPole-v1", "--network", "mine.bare:Residual"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "mine.bare:Residual: give every field a default" in told and "'width'" in told


def test_wrong_values_of_one_s_own_options_are_refused(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "CartPole-v1", "--algo", "mine.awr:AWR", "--beta", "cold"])
    assert end.value.code == 2
    assert "beta" in capsys.readouterr().err
