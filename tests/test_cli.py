"""The command line: every setting is an option with help, words are understood or corrected, one run end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.cli import _COMMANDS, main
from greenroom.commands.options import CHOICES
from greenroom.config import NETWORKS, OPTIMIZERS, SEAMS, RunConfig, load_file
from greenroom.errors import EXIT_CODES, ExitCode
from greenroom.health.settings import HealthConfig
from greenroom.presets import PRESETS, preset


def split(words: str) -> list[str]:
    """What a shell makes of them."""
    return words.split()


TINY = split(
    "--num-envs 8 --rollout-length 4 --minibatches 2 --epochs 1 --total-steps 640 --eval-episodes 8 --hidden 8 "
    "--sinks tensorboard --threads 1 --quiet"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "cartpole"
    assert main(["train", "CartPole-v1", "--run-dir", str(path), "--stage", "inline", *TINY]) == 0
    return path


def config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> RunConfig:
    """What `greenroom train …` would run with."""
    seen: list[RunConfig] = []

    class Enough(Exception):
        pass

    def launch(config: RunConfig, **rest: Any) -> None:
        seen.append(config)
        raise Enough

    monkeypatch.setattr("greenroom.session.launch", launch)
    with pytest.raises(Enough):
        main(["train", *words])
    return seen[0]


def leaves(kind: Any) -> set[str]:
    """The names of all fields that hold no fields of their own."""
    names: set[str] = set()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        parts = [hints[field.name], *SEAMS.get(hints[field.name], {}).values()]
        inner = [part for part in parts if dataclasses.is_dataclass(part)]
        names |= set().union(*(leaves(part) for part in inner)) if inner else {field.name}
    return names


def test_every_setting_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = leaves(RunConfig) - {"env", "env_kwargs"}
    assert {
        "num_envs",
        "gamma",
        "scale_rewards",
        "loss_scale",
        "clip",
        "decay",
        "anneal_steps",
        "normalize_obs",
    } < wanted
    shown: dict[str, str] = {}
    helps = []
    chosen = [(option, name) for option, seam in CHOICES.items() for name in SEAMS[seam]]
    for option, name in chosen:
        with pytest.raises(SystemExit) as end:
            main(["train", "ALE/Pong-v5", option, name, "--help"])
        assert end.value.code == 0
        helps.append(capsys.readouterr().out)
    for text in helps:
        entry = ""
        for line in text.splitlines():
            words = line.strip("│ ").split()
            if words and words[0].startswith("--"):
                entry = words[0].rstrip(",").removeprefix("--").replace("-", "_")
                shown.setdefault(entry, "")
            elif entry and not words:
                entry = ""
            if entry:
                shown[entry] += " ".join(words) + " "
    assert wanted - shown.keys() == set()
    for name in wanted:
        assert "(default: " in shown[name] or "(repeatable)" in shown[name], f"{name}: {shown[name]}"
        assert len(shown[name].split("(default:")[0].split()) > 4, f"{name} has no help: {shown[name]}"


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: greenroom {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_usage_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f" {command} " in out for command in _COMMANDS)
    assert all(f" {code:d} " in out and meaning in " ".join(out.split()) for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("lost-sales --seed 3", {"seed": 3}),
        ("--seed 3 lost-sales", {"seed": 3}),
        ("--seed=3 --no-quiet lost-sales --num_envs 32", {"seed": 3, "num_envs": 32}),
        ("lost-sales --env.lead_time 2 --env.mean=1e1", {"env_kwargs": {"lead_time": 2, "mean": 10.0}}),
        ("--env.lead-time=2 lost-sales", {"env_kwargs": {"lead_time": 2}}),
        ("lost-sales --env.penalty=[4,9] --env.start empty", {"env_kwargs": {"penalty": [4, 9], "start": "empty"}}),
        ("lost-sales --sinks", {"sinks": ()}),
        (
            "--check a:b --constraint c=1 lost-sales --constraint d=2",
            {"monitor": HealthConfig(check=("a:b",), constraint=("c=1", "d=2"))},
        ),
        ("--constraint holding=1 cartpole", {"env": "cartpole", "monitor": HealthConfig(constraint=("holding=1",))}),
        ("", {}),
    ],
)  # fmt: skip
def test_words_change_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, change: dict[str, Any]
) -> None:
    expected = dataclasses.replace(preset("inventory", "lost-sales"), **change)
    assert config_of(tmp_path, monkeypatch, *words.split()) == expected


def test_inner_settings_are_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "CartPole-v1 --gamma 0.5 --learning-rate 1e-3 --no-anneal --hidden 16 8 --normalize-obs --clip 0.3"
    config = config_of(tmp_path, monkeypatch, *words.split())
    algorithm, expected = config.algorithm, preset("classic-ppo", "CartPole-v1").algorithm
    assert isinstance(algorithm, PPOConfig) and isinstance(expected, PPOConfig)
    assert algorithm.discounting.gamma == 0.5 and algorithm.clip == 0.3
    assert algorithm.discounting.lam == expected.discounting.lam
    assert algorithm.optimizer.learning_rate == 1e-3 and not algorithm.optimizer.schedule.anneal
    assert getattr(config.policy.network, "hidden", None) == (16, 8) and config.policy.normalize_obs


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    words = ["--preset", name, "--algo", PRESETS[name].algo, "ALE/Pong-v5"]
    assert config_of(tmp_path, monkeypatch, *words) == preset(name, "ALE/Pong-v5")


def test_components_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for network, optimizer in zip(NETWORKS, ("rmsprop", "adam", "rmsprop", "adam"), strict=True):
        words = ["ALE/Pong-v5", "--algo=a2c", "--network", network, "--optimizer", optimizer]
        config = config_of(tmp_path, monkeypatch, *words)
        assert config.algo == "a2c"
        assert config.policy.network == NETWORKS[network]()
        assert isinstance(config.algorithm, A2CConfig) and config.algorithm.optimizer == OPTIMIZERS[optimizer]()


def test_a_config_file_is_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_config.yaml"
    path.write_text(
        "env: CartPole-v1\nnum_envs: 6\nalgorithm:\n  kind: a2c\n  optimizer: {kind: adam, learning_rate: 3e-4}\n"
    )
    config = config_of(tmp_path, monkeypatch, f"--config={path}", "--seed", "5")
    assert (config.env, config.num_envs, config.seed, config.algo) == ("CartPole-v1", 6, 5, "a2c")
    assert isinstance(config.algorithm, A2CConfig) and config.algorithm.optimizer.learning_rate == 3e-4
    assert config_of(tmp_path, monkeypatch, "Acrobot-v1", "--config", str(path)).env == "Acrobot-v1"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian", "no command 'trian'; did you mean 'train'?"),
        ("train lost-sales --algo pppo", "no algorithm 'pppo'; did you mean 'ppo'?"),
        ("train lost-sales --preset inventori", "did you mean 'inventory'?"),
        ("train lost-sales --network=mpl", "did you mean 'mlp'?"),
        ("train lost-sales --optimizer adm", "did you mean 'adam'?"),
        ("train lost-sales --stage inlin", "--stage: 'inlin' is not a valid value; did you mean 'inline'?"),
        ("train lost-sales --activation tan", "did you mean 'tanh'?"),
        ("train lost-sales --sinks tensorbord", "did you mean 'tensorboard'?"),
        ("train lost-sales --device quantum", "known: auto, cpu, cuda"),
        ("train lost-sales --preset paac --algo ppo", "preset 'paac' is for a2c, not ppo"),
        ("train lost-sales --config x.yaml --algo ppo", "leave out --preset and --algo"),
        ("train lost-sales --env.lead_tme 3", "no parameter 'lead_tme'; did you mean 'lead_time'?"),
        ("train lost-sales --env.mean", "--env.mean needs a name and a value"),
        ("train lost-sales --num-envs", "--num-envs: expected one argument"),
        ("train lost-sales --gamma 2", "gamma and lam must lie in [0, 1]"),
        ("train ALE/Pong-v5 --env.noop_mx 3", "did you mean 'noop_max'?"),
        ("train CartPole-v1 --env.sutton_barto 3", "did you mean 'sutton_barto_reward'?"),
        ("train lost-sales --nun-envs 3", "--num-envs"),
        ("train lost-sales --num-envs many", "--num-envs"),
        ("evaluate somewhere --episode 3", "--episodes"),
        ("list CartPole-v2", "did you mean 'CartPole-v1'?"),
    ],
)
def test_unknown_words_are_answered_with_the_nearest(
    words: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: Any = main(words.split())
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert answer in said.err and "Traceback" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_list_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    words = {word.strip(",") for word in out.split()}
    assert {"lost-sales", "ALE/Pong-v5", "ALE/Zaxxon-v5", "CartPole-v1", "Walker2d-v5", "a2c", "ppo", *PRESETS} < words
    assert "PongNoFrameskip-v4" not in words, "ALE/Pong-v5 is enough"


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("lost-sales", {"lead_time": "4", "penalty": "4.0", "demand": "poisson", "observe_parameters": "False"}),
        ("ALE/Pong-v5", {"repeat_action_probability": "0.0", "noop_max": "30", "full_action_space": "False"}),
        ("CartPole-v1", {"sutton_barto_reward": "False"}),
        ("gym_envs:needs_argument", {"size": "", "speed": "1.0"}),
        ("envpool:CartPole-v1", {"max_episode_steps": "500"}),
    ],
)
def test_list_shows_an_environments_own_options(
    env: str, options: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list", env]) == 0
    rows = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    for name, default in options.items():
        assert rows[f"--env.{name}"][:1] == ([default] if default else [])


def test_list_knows_no_game_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "ALE/Pongg-v5"]) == 2
    assert "did you mean 'Pong'?" in capsys.readouterr().err


def test_evaluate_prints_one_json_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"mean", "std", "iqm", "ci95", "cvar5", "episodes", "length_mean"} <= report.keys()
    assert report["episodes"] == 8
    assert report["ci95"][0] <= report["mean"] <= report["ci95"][1]
    assert report["mean"] == report["length_mean"], "CartPole pays 1 a step"


def test_evaluate_greedily_sampled_and_with_another_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def means(*words: str) -> float:
        assert main(["evaluate", str(run), "--episodes", "16", "--json", *words]) == 0
        return float(json.loads(capsys.readouterr().out)["mean"])

    capsys.readouterr()
    assert means() == means("--greedy") == means("--seed", "0") == means("--checkpoint", "latest")
    assert means("--sample") == means("--no-greedy") != means()
    assert means("--seed", "1") != means()


@pytest.mark.parametrize("installed", [True, False])
def test_evaluate_films_in_the_format_that_is_installed(
    run: Path, installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="CartPole draws with pygame")
    if installed:
        pytest.importorskip("imageio_ffmpeg")
    else:
        monkeypatch.setattr("greenroom.examination.importlib.util.find_spec", lambda name: None)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "1", "--video", "--json"]) == 0
    film = Path(json.loads(capsys.readouterr().out)["video"])
    assert film.parent == run and film.suffix == (".mp4" if installed else ".gif")
    head = film.read_bytes()[:12]
    assert head[4:8] == b"ftyp" if installed else head[:6] == b"GIF89a"


def test_compare_prints_a_table_or_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    capsys.readouterr()
    assert main(["compare", f"mine={run}", "--json", "--output", str(picture)]) == 0
    assert "mine" in json.dumps(json.loads(capsys.readouterr().out))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(run), "--output", str(tmp_path / "other.png")]) == 0
    assert "cartpole" in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unknown environment 'CartPole-v2'") as caught:
        main(["train", "CartPole-v2", "--run-dir", str(tmp_path / "run"), "--debug"])
    assert type(caught.value).__name__ == "UserError"


def test_ctrl_c_before_there_is_anything_to_save_says_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr("greenroom.session.launch", launch)
    assert main(["train", "lost-sales"]) == 130
    assert capsys.readouterr().err == "greenroom: interrupted\n"


def command(*words: str, **options: Any) -> subprocess.Popen[str]:
    """`greenroom …` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "greenroom", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def test_a_reader_that_leaves_hears_no_complaint(run: Path) -> None:
    for words in (
        ["list"],
        ["evaluate", str(run), "--episodes", "1"],
        ["evaluate", str(run), "--episodes", "1", "--json"],
    ):
        process = command(*words)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `head` does
        with process.stderr as complaints:
            assert process.wait(60) == 128 + signal.SIGPIPE
            assert complaints.read() == ""


def wait_for_lines(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


ENDLESS = split("CartPole-v1 --stage workers --num-workers 2 --num-envs 8 --rollout-length 4 --minibatches 2")


def test_train_stop_resume_evaluate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*ENDLESS, "--total-steps", "1000000000", "--log-seconds", "0", "--eval-episodes", "8"]
    training = command("train", *words, "--run-dir", str(run))
    wait_for_lines(run / "metrics.jsonl", training)
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert training.returncode == ExitCode.STOPPED, err
    assert f"continue with: greenroom resume {run}" in out
    assert "stopping after this update" in err and "Traceback" not in err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["env_steps"]

    resumed = command("resume", str(run), "--total-steps", str(last + 64))
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert f"run folder: {run}" in out and "mean" in out
    steps = [json.loads(line)["env_steps"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(32, last + 65, 32))
    assert load_file(run / "config.yaml").total_steps == last + 64
    assert yaml.safe_load((run / "config.yaml").read_text())["num_workers"] == 2


def test_a_second_ctrl_c_exits_at_once(tmp_path: Path) -> None:
    # The only update takes minutes, so that the first Ctrl-C cannot end the run.
    words = [*ENDLESS, "--total-steps", "1000000000", "--run-dir", str(tmp_path / "run"), "--rollout-length", "1000000"]
    training = command("train", *words, start_new_session=True)
    deadline = time.monotonic() + 60
    assert training.stderr is not None
    while "stage:" not in training.stderr.readline():
        assert time.monotonic() < deadline
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    training.send_signal(signal.SIGINT)
    while "once more to exit at once" not in training.stderr.readline():
        assert time.monotonic() < deadline
    assert training.poll() is None
    training.send_signal(signal.SIGINT)
    assert training.wait(timeout=5) == 130
    training.communicate()
