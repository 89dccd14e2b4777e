"""The doctor: what the search keeps, what is warned of and with which number, what a log is said to show."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.sac import SACConfig
from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.doctor import diagnosis
from greenroom.doctor.diagnosis import diagnose
from greenroom.doctor.history import explain
from greenroom.doctor.runs import OpenRuns
from greenroom.doctor.search import Trial, beyond, search, words
from greenroom.doctor.symptoms import Seen, Symptom, Vitals, symptoms, watch
from greenroom.errors import UserError
from greenroom.measure import Rate
from greenroom.memory import Memory
from greenroom.networks import Mlp, Nips
from greenroom.policy import PolicyConfig
from greenroom.threads import limited

OWN = RunConfig(
    env="gym_envs:Counter",
    num_envs=8,
    rollout_length=4,
    stage="inline",
    device="cpu",
    threads=4,
    algorithm=A2CConfig(),
    policy=PolicyConfig(network=Mlp(hidden=(8,))),
)


def shown(result: Any) -> str:
    """What a wide terminal shows of an examination."""
    page = io.StringIO()
    Console(width=120, file=page).print(result.report())
    return page.getvalue()


def rate(steps_per_second: float, **split: float) -> Rate:
    return Rate(steps_per_second=steps_per_second, seconds=1.0, repeats=3, spread=0.0, split=split)


def measured(speed: Callable[[RunConfig], float]) -> Callable[[Sequence[RunConfig]], list[Rate | UserError]]:
    """Rates as `speed` says; a speed of 0 is a run that cannot be built."""

    def measure(configs: Sequence[RunConfig]) -> list[Rate | UserError]:
        return [rate(speed(config)) if speed(config) else UserError("it cannot be") for config in configs]

    return measure


def test_the_search_keeps_what_is_faster() -> None:
    def speed(config: RunConfig) -> float:
        found = 100.0 * (2.0 if config.threads == 1 else 1.0)
        found *= {("inline", 0): 1.0, ("workers", 4): 3.0}.get((config.stage, config.num_workers), 0.5)
        return found * (1.2 if config.collect == "double" else 1.0)

    best, trials, complete = search(OWN, measured(speed), cores=4)
    assert best == dataclasses.replace(OWN, threads=1, stage="workers", num_workers=4, collect="double")
    assert words(OWN, best) == "--stage workers --num-workers 4 --threads 1 --collect double"
    assert complete
    # Everything was measured beside what it had to beat, and only once.
    assert all(trial.beat == rate(speed(trial.against)) for trial in trials)
    assert len({repr(trial.config) for trial in trials}) == len(trials)
    assert {trial.config.num_envs for trial in trials} == {8}, "the number of actors is not the search's to change"


def test_noise_is_not_an_improvement() -> None:
    best, trials, _ = search(OWN, measured(lambda config: 104.0 if config.threads == 1 else 100.0), cores=4)
    assert best == OWN
    assert max(trial.gain for trial in trials) == pytest.approx(1.04)


def test_what_cannot_be_built_is_told_and_left_alone() -> None:
    best, trials, _ = search(OWN, measured(lambda config: 0.0 if config.stage == "workers" else 100.0), cores=2)
    assert best == OWN
    problems = [str(trial.found) for trial in trials if trial.config.stage == "workers"]
    assert problems and set(problems) == {"it cannot be"}
    with pytest.raises(UserError, match="it cannot be"):
        search(OWN, measured(lambda config: 0.0), cores=2)


def test_when_time_is_up_only_fewer_threads_are_tried() -> None:
    _, trials, complete = search(OWN, measured(lambda config: 100.0), cores=4, in_time=lambda: False)
    assert [trial.config.threads for trial in trials] == [1, 2]
    assert not complete


def test_there_is_nothing_to_choose_for_a_device_environment_but_threads_and_collection() -> None:
    own = dataclasses.replace(OWN, env="lost-sales", stage="auto", num_envs=7)
    _, trials, _ = search(own, measured(lambda config: 100.0), cores=4)
    assert {trial.config.stage for trial in trials} == {"auto"}
    assert {trial.config.collect for trial in trials} == {"sync"}, "an odd number of actors has no halves"


@pytest.mark.parametrize(
    ("algorithm", "minds"),
    [
        (A2CConfig(), True),
        (VTraceConfig(), False),
        (DQNConfig(), False),
        (SACConfig(), False),
        (PPOConfig(), True),
    ],
)
def test_older_weights_are_suggested_only_where_they_do_no_harm(algorithm: Any, minds: bool) -> None:
    own = dataclasses.replace(OWN, algorithm=algorithm)
    _, trials, _ = search(own, measured(lambda config: 100.0), cores=2)
    assert ("overlap" in {trial.config.collect for trial in trials}) is not minds
    assert ("overlap" in {config.collect for config in beyond(own, 2)}) is minds
    assert [config.num_envs for config in beyond(own, 2)][:2] == [16, 32]


@pytest.mark.parametrize(
    ("policy", "pays"),
    [
        (PolicyConfig(network=Mlp()), True),
        (PolicyConfig(network=Nips()), False),
        (PolicyConfig(network=Mlp(), memory=Memory(memory="gru")), False),
    ],
)
def test_compiling_is_tried_where_it_may_pay_and_does_not_take_minutes(policy: PolicyConfig, pays: bool) -> None:
    own = dataclasses.replace(OWN, policy=policy)
    tried = [words(own, other) for other in beyond(own, 2)]
    assert ("--compile" in tried) is pays
    already = dataclasses.replace(own, compile=True)
    assert all(words(already, other) for other in beyond(already, 2)), "nothing is tried twice"


def test_atari_tries_emulator_threads() -> None:
    own = dataclasses.replace(OWN, env="ALE/Pong-v5", stage="auto")
    _, trials, _ = search(own, measured(lambda config: 100.0), cores=4)
    assert {trial.config.num_workers for trial in trials} == {0, 2, 8}


def seen(**changes: Any) -> Seen:
    plain = Seen(
        name="",
        shape=(4,),
        dtype="float32",
        kept="float32",
        kept_bytes=16,
        contiguous=True,
        write_seconds=2e-6,
        plain_seconds=1e-6,
    )
    return dataclasses.replace(plain, **changes)


def found(
    *parts: Seen,
    printed: int = 0,
    single: Rate = rate(1e4, reset=0.02),  # noqa: B008  # frozen
    trials: Sequence[Trial] = (),
    config: RunConfig = OWN,
) -> list[Symptom]:
    vitals = Vitals(parts=parts or (seen(),), steps=200, printed=printed)
    return symptoms(config, vitals, single, rate(1000.0, act=0.5, learn=0.25), trials)


def trial(factor: float, **changes: Any) -> Trial:
    return Trial(
        config=dataclasses.replace(OWN, **changes), against=OWN, found=rate(1000.0 * factor), beat=rate(1000.0)
    )


def test_a_healthy_environment_has_no_symptoms() -> None:
    assert found(trials=[trial(1.05, threads=1), trial(1.1, num_envs=16), trial(2.0, stage="workers")]) == []


@pytest.mark.parametrize(
    ("given", "what", "number"),
    [
        ({"single": rate(1e4, reset=0.4)}, "slow resets", "40 % of the simulator's time"),
        ({"trials": [trial(3.0, threads=1)]}, "too many threads", "3.00× as fast with 1"),
        (
            {"trials": [trial(1.5, num_envs=16), trial(2.5, num_envs=32)]},
            "num_envs is small for the batch",
            "8 actors: acting costs 500 µs a step; 2.50× as fast with 32",
        ),
        (
            {"config": dataclasses.replace(OWN, algorithm=PPOConfig(minibatches=4))},
            "small minibatches",
            "8 steps each; learning costs 250 µs",
        ),
        ({"printed": 800}, "the environment prints", "800 bytes in 200 steps"),
    ],
)
def test_symptoms_of_a_run(given: dict[str, Any], what: str, number: str) -> None:
    [symptom] = found(**given)
    assert symptom.what == what and number in symptom.measured and symptom.remedy


@pytest.mark.parametrize(
    ("part", "what", "number"),
    [
        (seen(kept_bytes=2**20), "is huge", "1024 KB each; a rollout holds 42 MB"),
        (seen(dtype="float64", write_seconds=9e-6), "is float64 and becomes float32", "9.0 µs a step, 1.0 µs without"),
        (seen(contiguous=False, write_seconds=9e-6), "is a view in another order", "9.0 µs a step to copy, 1.0 µs in"),
        (
            seen(plain_seconds=3e-5, write_seconds=3e-5),
            "copying the observation counts",
            "30.0 µs a step, 30 % of the simulator's own time",
        ),
        (
            seen(name="camera", shape=(32, 32, 3), kept_bytes=12288),
            "observation 'camera' looks like pixels and is not kept as uint8",
            "float32 [32, 32, 3]: 12 KB each, 3 KB as uint8",
        ),
    ],
)
def test_symptoms_of_an_observation(part: Seen, what: str, number: str) -> None:
    [symptom] = found(part)
    assert what in symptom.what and number in symptom.measured and symptom.remedy


def test_pixels_as_uint8_are_right() -> None:
    assert found(seen(shape=(84, 84, 4), dtype="uint8", kept="uint8", kept_bytes=28224)) == []


class Talker(gymnasium.Env[Any, Any]):
    """Prints in Python and below it; shows a turned picture of doubles."""

    observation_space = spaces.Dict({"picture": spaces.Box(0, 1, (20, 30, 3), np.float64), "n": spaces.Discrete(2)})
    action_space = spaces.Discrete(2)

    def __init__(self, loud: bool = True) -> None:
        self.loud = loud

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._show(), {}

    def step(self, action: Any) -> Any:
        if self.loud:
            print("step")
            os.write(1, b"low\n")
        return self._show(), 0.0, False, False, {}

    def _show(self) -> Any:
        return {"picture": np.zeros((3, 30, 20)).T, "n": 0}


def test_an_environment_is_watched(capfd: pytest.CaptureFixture[str]) -> None:
    vitals = watch("test_doctor:Talker", {})
    assert vitals is not None
    assert vitals.printed == vitals.steps * len("step\nlow\n") > 0
    assert capfd.readouterr() == ("", "")
    number, picture = vitals.parts
    assert (picture.name, picture.shape, picture.dtype, picture.kept) == ("picture", (20, 30, 3), "float64", "float32")
    assert (picture.kept_bytes, picture.contiguous, picture.pixels) == (7200, False, True)
    assert (number.name, number.pixels) == ("n", False)
    quiet = watch("test_doctor:Talker", {"loud": False})
    assert quiet is not None and quiet.printed == 0


@pytest.mark.parametrize("env", ["lost-sales", "ALE/Pong-v5"])
def test_batched_environments_are_not_watched(env: str) -> None:
    assert watch(env, {}) is None


class Rigged(OpenRuns):
    """Sixty actors' worth of made-up rates: one thread is twice as fast, twice as many actors 1.5 times."""

    def alone(self, config: RunConfig) -> dict[str, Rate]:
        names = {"single": 100.0, "environment": 300.0, "learner": 600.0, "own": 180.0}
        return {name: rate(number, env=0.5, act=0.25) for name, number in names.items()}

    def trial(self, configs: Sequence[RunConfig]) -> list[Rate | UserError]:
        return [self._rate(config) for config in configs]

    def verdict(self, needed: Sequence[RunConfig], others: Sequence[RunConfig]) -> list[Rate | UserError]:
        return [self._rate(config, 1.1) for config in (*needed, *others)]

    def steady(self, config: RunConfig) -> Rate:
        found = self._rate(config, 1.2)
        assert isinstance(found, Rate)
        return found

    def _rate(self, config: RunConfig, factor: float = 1.0) -> Rate | UserError:
        if config.num_envs > 16:
            return UserError("too many")
        return rate(factor * 180.0 * (2.0 if config.threads == 1 else 1.0) * (1.5 if config.num_envs == 16 else 1.0))


def test_a_suggestion_is_what_was_measured_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "OpenRuns", Rigged)
    monkeypatch.setattr(diagnosis, "available_cores", lambda: 2)
    result = diagnose(OWN)
    assert result.bound == pytest.approx(200.0)
    assert result.suggestion is not None
    assert result.suggestion.words == "--threads 1"
    assert result.suggestion.options == {"threads": 1}
    assert result.suggestion.rate.steps_per_second == pytest.approx(1.1 * 360.0)
    assert result.suggestion.gain == pytest.approx(2.0)
    assert result.expected.steps_per_second == pytest.approx(1.2 * 360.0)
    [more] = result.beyond
    assert more.words == "--threads 1 --num-envs 16" and more.gain == pytest.approx(3.0)
    assert {symptom.what for symptom in result.symptoms} >= {"too many threads", "num_envs is small for the batch"}
    text = shown(result)
    for line in (
        "90 % of the bound",
        "suggestion: --threads 1",
        "to expect: 432 steps/s, measured once more by itself",
        "changes learning",
        "2.00×",
        "the loop's own  1388.89",
    ):
        assert line in text, text
    assert json.loads(json.dumps(result.to_json()))["beyond"][0]["options"] == {"threads": 1, "num_envs": 16}


def test_a_winner_that_was_noise_is_not_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fickle(Rigged):
        def verdict(self, needed: Sequence[RunConfig], others: Sequence[RunConfig]) -> list[Rate | UserError]:
            return [rate(100.0) for _ in (*needed, *others)]

    monkeypatch.setattr(diagnosis, "OpenRuns", Fickle)
    result = diagnose(OWN)
    assert result.suggestion is None and result.beyond == ()
    assert result.expected.steps_per_second == pytest.approx(1.2 * 180.0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and processes that wait for each other may take for ever where other tests have the cores; so may g++."""
    monkeypatch.setattr(diagnosis, "available_cores", lambda: 1)
    monkeypatch.setattr("greenroom.doctor.search.stages", lambda config, cores: iter(()))
    monkeypatch.setattr(
        diagnosis, "beyond", lambda config, cores: (each for each in beyond(config, cores) if not each.compile)
    )


@pytest.mark.usefixtures("alone")
def test_a_real_diagnosis_leaves_everything_as_it_was() -> None:
    threads = torch.get_num_threads()
    config = dataclasses.replace(OWN, env="CartPole-v1", threads=1)
    said: list[str] = []
    result = diagnose(config, seconds=1.0, say=said.append)
    assert torch.get_num_threads() == threads
    assert result.stage == "inline" and len(said) == 5
    rates = (result.single, result.environment, result.learner, result.own, result.expected)
    assert min(one.steps_per_second for one in rates) > 0
    assert result.shortened == ""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("collect", ["sync", "overlap"])
def test_threads_that_a_run_was_not_told_are_those_that_it_takes(collect: Any) -> None:
    config = dataclasses.replace(OWN, env="CartPole-v1", threads=0, collect=collect)
    with limited(2), OpenRuns(1e-9) as runs:
        assert runs.settled(config) == dataclasses.replace(config, threads=1), "so small that one is enough"
        assert runs.settled(dataclasses.replace(config, threads=3)).threads == 3
        assert torch.get_num_threads() == 2


def test_long_rollouts_are_measured_with_short_ones() -> None:
    config = dataclasses.replace(OWN, rollout_length=16, algorithm=PPOConfig(epochs=1, minibatches=4), threads=1)
    with OpenRuns(1e-9) as runs:
        short, why = runs.measurable(config)
    assert short == dataclasses.replace(config, rollout_length=4, algorithm=PPOConfig(epochs=1, minibatches=1))
    assert why.startswith("1 minibatches of 4 steps an actor")
    with OpenRuns(1e9) as runs:
        assert runs.measurable(config) == (config, "")
    recurrent = dataclasses.replace(config.policy, memory=Memory(memory="gru", memory_size=4))
    with OpenRuns(1e-9) as runs:
        whole = dataclasses.replace(config, policy=recurrent)
        assert runs.measurable(whole) == (whole, ""), "there minibatches are of sequences"


def test_what_there_is_no_time_to_start_is_left_out() -> None:
    with OpenRuns(1e-9) as runs:
        needed, other = runs.verdict([OWN], [dataclasses.replace(OWN, num_envs=16)])
    assert isinstance(needed, Rate)
    assert isinstance(other, UserError) and str(other) == "no time was left to try it"


def test_a_run_that_cannot_be_built_is_an_answer() -> None:
    with OpenRuns(0.1) as runs:
        fine, broken = runs.trial([OWN, dataclasses.replace(OWN, stage="workers", num_workers=3)])
    assert isinstance(fine, Rate)
    assert isinstance(broken, UserError) and "not divisible by num_workers=3" in str(broken)


def log(folder: Path, rows: Sequence[tuple[float, dict[str, float]]], **config: Any) -> Path:
    """A run's folder with a line of metrics for each row: seconds, and seconds of each part; 100 steps a line."""
    folder.mkdir()
    settings = {"env": "CartPole-v1", "env_kwargs": {}, "collect": "sync", "algorithm": {"kind": "ppo"}, **config}
    (folder / "config.yaml").write_text(json.dumps(settings))
    seconds, lines = 0.0, []
    for number, (spent, split) in enumerate(rows, start=1):
        seconds += spent
        parts = {f"time/{name}": spent for name, spent in ({"env": 0, "act": 0, "learn": 0, "wait": 0} | split).items()}
        lines.append(json.dumps({"env_steps": 100 * number, "seconds": seconds, **parts}))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("split", "collect", "expected"),
    [
        ({"env": 0.6, "act": 0.2, "learn": 0.1}, "sync", "the environment"),
        ({"env": 0.1, "act": 0.2, "learn": 0.2, "wait": 0.4}, "double", "the environment"),
        ({"env": 0.2, "act": 0.6, "learn": 0.1}, "sync", "acting"),
        ({"env": 0.2, "act": 0.1, "learn": 0.6}, "sync", "learning"),
        ({"env": 0.1, "act": 0.1, "learn": 0.1}, "sync", "the loop itself"),
        ({"env": 0.6, "act": 0.3, "learn": 0.95, "wait": 0.02}, "overlap", "learning"),
        ({"env": 0.6, "act": 0.3, "learn": 0.5, "wait": 0.45}, "overlap", "the environment"),
        ({"env": 0.3, "act": 0.6, "learn": 0.5, "wait": 0.45}, "overlap", "acting"),
    ],
)
def test_what_bound_a_run(split: dict[str, float], collect: str, expected: str, tmp_path: Path) -> None:
    result = explain(log(tmp_path / "run", [(9.0, {"learn": 9.0}), (1.0, split), (1.0, split)], collect=collect))
    assert result.bottleneck == expected
    assert result.whole.rate == 100.0, "warming up is not counted"
    assert result.whole.microseconds["env"] == pytest.approx(1e4 * split["env"])
    assert result.remedies and not [line for line in result.remedies if f"--collect {collect}" in line]


def test_a_run_that_slows_down(tmp_path: Path) -> None:
    rows = [(1.0, {"env": 0.5, "learn": 0.4})] * 4 + [(2.0, {"env": 0.6, "learn": 1.3})] * 3
    folder = log(tmp_path / "run", rows)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 12')  # being written now
    result = explain(folder)
    assert result.trend == pytest.approx(0.5) and result.slower == "learn"
    assert "learn went from 4000.0 to 13000.0 µs a step" in shown(result)
    assert result.to_json()["slower"] == "learn"


def test_a_steady_run_is_not_slowing_down(tmp_path: Path) -> None:
    result = explain(log(tmp_path / "run", [(1.0, {"env": 0.5})] * 7))
    assert result.trend == 1.0 and result.to_json()["slower"] is None


@pytest.mark.parametrize(
    ("cpu", "learn", "gpus", "expected"),
    [
        (0.3, 0.9, [], (0.3, 1.0)),
        (0.8, 0.9, [], None),
        (1.7, 0.9, [], None),
        (0.2, 0.1, [], None),  # it waits for environments in other processes
        (0.3, 0.9, ["a GPU"], None),
        (None, 0.9, [], None),
    ],
)
def test_a_run_that_is_kept_from_its_core(cpu: Any, learn: float, gpus: Any, expected: Any, tmp_path: Path) -> None:
    parts = {"act": 0.1, "learn": learn} | ({} if cpu is None else {"cpu": cpu})
    folder = log(tmp_path / "run", [(1.0, parts)] * 4)
    (folder / "environment.json").write_text(json.dumps({"gpus": gpus}))
    result = explain(folder)
    assert result.starved == (expected and pytest.approx(expected))
    assert result.to_json()["starved"] == (expected is not None)
    assert (expected is not None) == any("--threads 1" in line for line in result.remedies)
    assert ("starved: it had 0.30 of a core" in shown(result)) == (expected is not None)


def test_logs_that_tell_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has logged nothing yet"):
        explain(log(tmp_path / "young", []))
    broken = log(tmp_path / "broken", [(1.0, {}), (1.0, {})])
    text = (broken / "metrics.jsonl").read_text()
    (broken / "metrics.jsonl").write_text("{}\n" + text)
    with pytest.raises(UserError, match="line 1 is not a log line"):
        explain(broken)


@pytest.mark.usefixtures("alone")
def test_the_command_measures(capfd: pytest.CaptureFixture[str]) -> None:
    """The environment prints, and nobody hears it."""
    words = "--algo a2c --num-envs 4 --rollout-length 4 --stage inline --hidden 8 --device cpu --threads 1"
    assert main(["doctor", "test_doctor:Talker", *words.split(), "--budget", "0.5", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert {"rates", "bound", "suggestion", "expected", "beyond", "trials", "symptoms"} <= result.keys()
    assert "the environment prints" in [symptom["what"] for symptom in result["symptoms"]]


def test_the_command_explains_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = "--algo a2c --num-envs 4 --rollout-length 4 --total-steps 320 --eval-episodes 2 --hidden 8 --log-seconds 0"
    train = ["train", "CartPole-v1", *words.split(), "--stage", "inline", "--sinks", "--quiet", "--run-dir", str(run)]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["doctor", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_steps"] == 320 - 16
    assert main(["doctor", str(run)]) == 0
    assert "bound by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["{run}", "--num-envs", "4"], "a run's folder takes only --json"),
        (["{empty}"], "is not a run folder"),
        (["CartPole-v2"], "unknown environment 'CartPole-v2'"),
        (["CartPole-v1", "--budget", "0"], "--budget must be greater than 0"),
    ],
)
def test_mistakes_are_answered(
    given: list[str], answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": str(log(tmp_path / "run", [])), "empty": str(tmp_path / "empty")}
    try:
        code: Any = main(["doctor", *(word.format(**places) for word in given)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert answer in " ".join(capsys.readouterr().err.split())
