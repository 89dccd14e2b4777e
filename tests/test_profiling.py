"""The trace: where it is, what is in it, and that nothing of it stays behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from greenroom import profiling
from greenroom.acting import Collector
from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.backstage import Backstage
from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.networks import Mlp
from greenroom.overlap import Overlapped
from greenroom.policy import PolicyConfig
from greenroom.training import Run, train

PHASES = {"env.send", "env.recv", "act", "learn"}
TINY = RunConfig(
    env="lost-sales",
    num_envs=4,
    rollout_length=3,
    total_steps=12 * 30,
    device="cpu",
    algorithm=A2CConfig(),
    policy=PolicyConfig(network=Mlp(hidden=(8,))),
)


@pytest.fixture
def runs() -> Iterator[Any]:
    """Makes runs and closes them."""
    threads, made = torch.get_num_threads(), list[Run]()

    def make(**changes: Any) -> Run:
        made.append(Run(dataclasses.replace(TINY, **changes), say=lambda line: None))
        return made[-1]

    yield make
    for run in made:
        run.close()
    torch.set_num_threads(threads)


def spans(path: Path) -> dict[str, int]:
    """How often each phase is in the trace."""
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    return {name: names.count(name) for name in PHASES}


def wrapped(collector: Collector) -> set[str]:
    """What hides a class's own method."""
    return {"act", "send", "recv"} & (vars(collector.policy).keys() | vars(collector.groups[0]).keys())


@pytest.mark.parametrize("collect", ["sync", "double", "overlap"])
def test_some_updates_are_recorded_and_all_are_made(collect: str, runs: Any, tmp_path: Path) -> None:
    run, said, path = runs(collect=collect), list[str](), tmp_path / "profile.json"
    updates = [progress.updates for progress in profiling.train_profiled(run, path, said.append)]
    assert updates == list(range(1, 31))
    found = spans(path)
    assert found["learn"] == profiling._UPDATES
    groups = 2 if collect == "double" else 1
    # Beside the learner, what is collected for the recorded updates may have begun before.
    least = 3 * groups * (profiling._UPDATES - (2 if collect == "overlap" else 0))
    assert all(found[name] >= least for name in PHASES - {"learn"}), found
    assert said == [f"profile: {path} (open it at https://ui.perfetto.dev or chrome://tracing)"]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stays_wrapped(runs: Any, tmp_path: Path) -> None:
    for collect in ("sync", "overlap"):
        run = runs(collect=collect)
        list(profiling.train_profiled(run, tmp_path / collect, lambda line: None))
        assert "learn" not in vars(run.algorithm)
        source = run.collector
        if isinstance(source, Overlapped):
            assert isinstance(source.place, Backstage)
            source.settle()
            assert source.place.within(wrapped) == set()
        else:
            assert isinstance(source, Collector)
            assert wrapped(source) == set()


def test_profiling_changes_no_bit(runs: Any, tmp_path: Path) -> None:
    plain, profiled = runs(), runs()
    for _ in train(plain):
        pass
    for _ in profiling.train_profiled(profiled, tmp_path / "profile.json", lambda line: None):
        pass
    theirs = profiled.algorithm.policy.state_dict()
    for name, part in plain.algorithm.policy.state_dict().items():
        assert torch.equal(part, theirs[name]), name


def test_long_updates_are_fewer(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_SECONDS", 0.0)
    list(profiling.train_profiled(runs(), tmp_path / "profile.json", lambda line: None))
    assert spans(tmp_path / "profile.json")["learn"] == 1


def test_a_run_that_is_over_before_it_is_warm(runs: Any, tmp_path: Path) -> None:
    said: list[str] = []
    list(profiling.train_profiled(runs(total_steps=12 * 2), tmp_path / "profile.json", said.append))
    assert said == ["no profile: the run was over after 2 updates, and the first 5 only warm up"]
    assert not list(tmp_path.iterdir())


def test_who_stops_in_the_middle_gets_what_was_recorded(runs: Any, tmp_path: Path) -> None:
    run = runs()
    news = profiling.train_profiled(run, tmp_path / "profile.json", lambda line: None)
    for _ in range(profiling.WARM_UP + 2):
        next(news)
    news.close()  # type: ignore[attr-defined]  # it is a generator
    assert spans(tmp_path / "profile.json")["learn"] == 2
    assert "learn" not in vars(run.algorithm)


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--stage inline --algo a2c --num-envs 4 --rollout-length 3 --total-steps 240 --eval-episodes 4 --sinks"
    folder = tmp_path / "run"
    assert main(["train", "CartPole-v1", *words.split(), "--profile", "--run-dir", str(folder)]) == 0
    assert f"profile: {folder / 'profile.json'}" in capsys.readouterr().err
    assert all(spans(folder / "profile.json").values())
