"""What a person gets wrong: one message with culprit and remedy, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.errors import UserError
from greenroom.session import launch


def split(words: str) -> list[str]:
    """What a shell makes of them."""
    return words.split()


TINY = split(
    "--num-envs 4 --rollout-length 4 --minibatches 2 --epochs 1 --total-steps 64 --eval-episodes 4 --hidden 8 "
    "--sinks --threads 1 --quiet --preset classic-ppo"
)
Capture = pytest.CaptureFixture[str]


def rejected(words: list[str], capsys: Capture, said_by_others: str = "") -> str:
    """The one message that a command ends with; the same with `--debug` raises instead."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == said_by_others
    assert "Traceback" not in said.err
    messages = [line for line in said.err.splitlines() if line.startswith("greenroom: ")]
    assert len(messages) == 1, said.err
    with pytest.raises(Exception) as caught:  # that it is raised, whatever it is
        main([*words, "--debug"])
    assert type(caught.value).__name__ in ("UserError", "EnvironmentFault")
    capsys.readouterr()
    return messages[0]


@pytest.mark.parametrize(
    ("words", "culprit", "remedy"),
    [
        (["CartPole-v2"], "unknown environment 'CartPole-v2'", "did you mean 'CartPole-v1'?"),
        (["lost-sale"], "unknown environment 'lost-sale'", "did you mean 'lost-sales'?"),
        (["ALE/Pongg-v5"], "'Pongg'", "did you mean 'Pong'?"),
        (["xyzzy"], "unknown environment 'xyzzy'", "`greenroom list` shows those that are known"),
        (["gym_envs:Countr"], "no factory 'Countr'", "did you mean 'Counter'?"),
        (["gym_envz:Counter"], "there is no module 'gym_envz'", "install its package or run from its folder"),
        (
            ["gym_envs:broken_factory"],
            "broken_factory could not be built",
            "RuntimeError: no licence for the simulator",
        ),
        (["gym_envs:not_an_env"], "gym_envs:not_an_env returned int", "not a gymnasium.Env"),
        (["gym_envs:needs_argument"], "needs the argument 'size'", "--env.size VALUE"),
        (["broken_envs:observes_text"], "observation space", "Text"),
        (["broken_envs:unbounded_action"], "action space", "finite bounds"),
        (["CartPole-v1", "--stage", "native"], "'CartPole-v1' has no native stage", "Use --stage auto"),
        (["CartPole-v1", "--stage", "device"], "no device environment 'CartPole-v1'", "did you mean 'cartpole'"),
        (["lost-sales", "--stage", "inline"], "is a device environment", "use --stage device or auto"),
        (
            ["CartPole-v1", "--stage", "workers", "--num-workers", "3"],
            "num_envs=4 is not divisible by num_workers=3",
            "num_workers=2 or 4",
        ),
        (["lost-sales", "--collect", "double", "--num-envs", "5"], "num_envs must be even, not 5", "collect=double"),
        (["lost-sales", "--minibatches", "17"], "minibatches (17)", "num_envs × rollout_length = 16"),
        (["lost-sales", "--total-steps", "0"], "total_steps must be at least 1, not 0", ""),
        (["lost-sales", "--env.lead_time", "0"], "lead_time must be a whole number", "1 or more, not 0"),
        (["lost-sales", "--env.observe_parameters", "yes please"], "observe_parameters must be true or false", ""),
        (
            ["lost-sales", "--check", "greenroom.envs.factory:Factory"],
            "--check greenroom.envs.factory:Factory",
            "TypeError",
        ),
        (["lost-sales", "--critic-patience", "0"], "critic_patience must be at least 1, not 0", ""),
        (["lost-sales", "--collapse-episodes", "1"], "collapse_episodes must be at least 2, not 1", ""),
        (["lost-sales", "--constraint-episodes", "0"], "constraint_episodes must be at least 2, not 0", ""),
        (["lost-sales", "--still-looks", "0"], "still_looks must be at least 1, not 0", ""),
        (["CartPole-v1", "--network", "nips"], "a convolutional network needs 3 axes", "use --network mlp"),
    ],
)
def test_training_that_cannot_start(
    words: list[str], culprit: str, remedy: str, tmp_path: Path, capsys: Capture
) -> None:
    tiny = TINY if "nips" not in words else [word for word in TINY if word not in ("--hidden", "8")]
    message = rejected(["train", "--run-dir", str(tmp_path / "run"), *tiny, *words], capsys)
    assert culprit in message and remedy in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("factory", "culprit"),
    [
        ("wrong_shape", r"environment 0, step 1: .*\(3,\)"),
        ("gives_nan", "environment 0, step 2: the observation holds NaN or infinity"),
        ("nan_reward", "environment 0, step 1: the reward is nan"),
    ],
)
@pytest.mark.parametrize("stage", ["inline", "workers"])
def test_an_environment_that_breaks_its_contract(
    factory: str, culprit: str, stage: str, capsys: Capture, tmp_path: Path
) -> None:
    words = ["train", f"broken_envs:{factory}", "--stage", stage, *TINY]
    capsys.readouterr()
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    # Two workers fail at the same time; either may be heard first.
    assert re.search(culprit.replace("environment 0", r"environment \d"), said.err), said.err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    message = rejected(["train", "ALE/Pong-v5"], capsys)
    assert "ALE/Pong-v5" in message and "pip install ale-py" in message
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    message = rejected(["train", "Ant-v5", "--stage", "inline"], capsys)
    assert "Ant-v5" in message and "mujoco" in message.lower() and "pip install" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", ["wandb", "mlflow"])
def test_a_missing_logger_is_named(tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, tool, None)
    words = [*TINY, "--sinks", "tensorboard", tool, "--run-dir", str(tmp_path / "run")]
    assert f"pip install 'greenroom[{tool}]'" in rejected(["train", "probe-observation", *words], capsys)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    wandb = types.ModuleType("wandb")
    refusal = type("Error", (Exception,), {})

    def init(**options: object) -> None:
        raise refusal("no API key configured")

    wandb.__dict__.update(init=init, Error=refusal)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    words = ["train", "probe-observation", *TINY, "--sinks", "wandb", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 2
    assert "wandb cannot start: no API key configured; mend that, or leave wandb out" in capsys.readouterr().err


def test_arguments_that_cannot_be_saved(tmp_path: Path) -> None:
    config = RunConfig(env="gym_envs:Counter", env_kwargs={"length": object()})
    with pytest.raises(UserError, match="env_kwargs must be numbers, strings, lists and mappings"):
        launch(config, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_missing_cartridge_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roms").mkdir()
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / "roms"))
    emulator = f"Loading roms from {tmp_path / 'roms'}...\n"
    message = rejected(["train", "ALE/Pong-v5"], capsys, emulator)
    assert "pong" in message.lower() and "ALE_ROMS_DIR" in message


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("env: lost-sales\nnum_env: 3\n", "unknown key 'num_env'; did you mean 'num_envs'?"),
        ("env: lost-sales\nalgorithm: {kind: ppo, clp: 1}\n", "algorithm: unknown key 'clp'; did you mean 'clip'?"),
        ("env: lost-sales\nalgorithm: {kind: pppo}\n", "algorithm: no algorithm 'pppo'; did you mean 'ppo'?"),
        ("env: lost-sales\nalgorithm: {kind: [ppo]}\n", "algorithm: no algorithm"),
        ("env: lost-sales\nalgorithm: 3\n", "algorithm: expected a mapping with `kind`"),
        ("env: lost-sales\nnum_envs: many\n", "num_envs: expected int, found 'many'"),
        ("env: lost-sales\nnum_envs: true\n", "num_envs: expected int, found True"),
        ("env: lost-sales\nstage: inlin\n", "stage: 'inlin' is not a valid value; did you mean 'inline'?"),
        ("env: lost-sales\nnum_envs: 0\n", "num_envs must be at least 1, not 0"),
        ("num_envs: 3\n", "missing key 'env'"),
        ("just words\n", "expected a mapping of RunConfig's fields, found 'just words'"),
        ("", "expected a mapping of RunConfig's fields, found None"),
        ("env: [\n", "is not valid YAML"),
        ("\xff\xfe", "is not a text file"),
    ],
)
def test_a_config_file_that_is_wrong(text: str, culprit: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    message = rejected(["train", "--config", str(path), "--run-dir", str(tmp_path / "run")], capsys)
    assert culprit in message and str(path) in message
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "probe-observation", "--run-dir", str(path), *TINY]) == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run that the test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_that_is_taken(run: Path, tmp_path: Path, capsys: Capture) -> None:
    before = contents(run)
    message = rejected(["train", "probe-observation", "--run-dir", str(run), *TINY], capsys)
    assert str(run) in message and "nothing was overwritten" in message and "greenroom resume" in message
    assert contents(run) == before
    file = tmp_path / "file"
    file.write_text("precious")
    message = rejected(["train", "probe-observation", "--run-dir", str(file), *TINY], capsys)
    assert str(file) in message and "another --run-dir" in message
    assert file.read_text() == "precious"


@pytest.mark.parametrize("words", [["--episodes", "0"], ["--episodes", "-3"], ["--seed", "-1"]])
def test_an_evaluation_of_nothing(words: list[str], run: Path, capsys: Capture) -> None:
    message = rejected(["evaluate", str(run), *words], capsys)
    assert "episodes must be at least 1 and the seed at least 0" in message and words[1] in message


def test_a_log_that_someone_spoiled(run: Path, capsys: Capture) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b"not a line\n" + whole)
    assert "metrics.jsonl, line 1 is not a log line; mend or delete it" in rejected(["status", str(run)], capsys)
    (run / "metrics.jsonl").write_bytes(whole)


@pytest.mark.parametrize("command", ["resume", "evaluate", "compare"])
def test_a_folder_that_is_no_run(command: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    message = rejected([command, str(tmp_path / "empty")], capsys)
    assert "is not a run folder" in message
    message = rejected([command, str(tmp_path / "rum")], capsys)
    assert "does not exist" in message and "did you mean 'run'?" in message


def cut_short(folder: Path) -> None:
    tensors = folder / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])


def flipped(folder: Path) -> None:
    tensors = folder / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 1
    tensors.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flipped])
@pytest.mark.parametrize("command", [["resume", "--total-steps", "96", "--quiet"], ["evaluate", "--json"]])
def test_a_damaged_checkpoint(damage: Callable[[Path], None], command: list[str], run: Path, capsys: Capture) -> None:
    folders = sorted(run.glob("checkpoints/step_*"))
    assert len(folders) > 1
    for folder in folders:
        damage(folder)
    before = contents(run)
    message = rejected([command[0], str(run), *command[1:]], capsys)
    assert str(folders[-1]) in message and ("bytes instead of" in message or "checksum" in message)
    assert contents(run) == before


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(run: Path, capsys: Capture) -> None:
    folders = sorted(run.glob("checkpoints/step_*"))
    cut_short(folders[-1])
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "4", "--json"]) == 0
    said = capsys.readouterr()
    assert f"going back to {folders[-2]}" in said.err and str(folders[-1]) in said.err
    assert said.out.startswith("{")


@pytest.mark.parametrize("command", [["resume", "--total-steps", "96"], ["evaluate"]])
def test_a_checkpoint_from_another_network(command: list[str], run: Path, capsys: Capture) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("    - 8\n", "    - 9\n"))
    before = contents(run)
    message = rejected([command[0], str(run), *command[1:]], capsys)
    assert (
        "is from another network" in message and "(9," in message and "config.yaml" in message
    ) or "options" in message
    assert contents(run) == before


def test_a_config_in_a_run_folder_that_someone_spoiled(run: Path, capsys: Capture) -> None:
    (run / "config.yaml").write_text("env: lost-sales\nsede: 3\n")
    for command in ("resume", "evaluate"):
        message = rejected([command, str(run)], capsys)
        assert "unknown key 'sede'; did you mean 'seed'?" in message and str(run / "config.yaml") in message


def test_any_other_refusal_of_the_disk_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", "/locked/config.yaml")

    monkeypatch.setattr("greenroom.session.write_text", refuse)
    assert main(["train", "probe-observation", "--run-dir", str(tmp_path / "run"), *TINY]) == 2
    assert "Permission denied: '/locked/config.yaml'" in capsys.readouterr().err
