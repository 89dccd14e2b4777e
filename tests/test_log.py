"""Records reach their files and services whole, under the right names and steps; missing extras are named."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
from tensorboard.util import tensor_util  # type: ignore[import-untyped]

from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.log import JsonlSink, Kind, Record, TensorBoardSink, make_sinks

METRICS: Record = {
    "env_steps": 100,
    "return_mean": 1.5,
    "time/env": 0.25,
    "loss/policy": math.nan,
    "note": "hello",
    "nothing": None,
}
EVALUATION: Record = {"env_steps": 100, "mean": 2, "ci95": [1.0, math.inf], "signals": {"cost": 0.5}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "my-run", env="e", algo="a", seed=0)


def log_everything(names: list[str], run: RunFolder, resumed_at: int | None = None) -> None:
    sinks = make_sinks(names, run, {"seed": 3, "algo": {"name": "ppo", "lam": 0.9}}, resumed_at=resumed_at)
    for sink in sinks:
        sink.write("metrics", METRICS)
        sink.write("evaluations", EVALUATION)
        sink.close()
        sink.close()


def test_json_lines_are_strict_appended_and_there_at_once(run: RunFolder) -> None:
    for _ in range(2):
        sink = JsonlSink(run)
        sink.write("metrics", METRICS)
        sink.write("evaluations", EVALUATION)
        assert run.metrics.read_bytes().endswith(b"}\n")  # before closing
        sink.close()
    expected = {**METRICS, "loss/policy": None}
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [expected, expected]
    first = run.evaluations.read_text().splitlines()[0]
    assert first == '{"env_steps": 100, "mean": 2, "ci95": [1.0, null], "signals": {"cost": 0.5}}'


def test_what_json_cannot_say_is_refused(run: RunFolder) -> None:
    sink = JsonlSink(run)
    with pytest.raises(TypeError, match="not JSON serializable"):
        sink.write("metrics", {"env_steps": 1, "bad": object()})
    sink.close()
    assert run.metrics.read_text() == ""


def events(run: RunFolder) -> Any:
    return event_accumulator.EventAccumulator(str(run.tensorboard)).Reload()


def test_tensorboard_has_groups_and_env_steps(run: RunFolder) -> None:
    log_everything(["tensorboard"], run)
    found = events(run)
    expected = {
        "train/return_mean": 1.5,
        "time/env": 0.25,
        "evaluation/mean": 2.0,
        "evaluation/ci95/0": 1.0,
        "evaluation/ci95/1": math.inf,
        "evaluation/signals/cost": 0.5,
    }
    assert set(found.Tags()["scalars"]) == {*expected, "loss/policy"}
    for name, value in expected.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == [(100, value)]
    assert math.isnan(found.Scalars("loss/policy")[0].value)
    (text,) = found.Tensors("train/note/text_summary")
    assert text.step == 100 and tensor_util.make_ndarray(text.tensor_proto).item() == b"hello"


def test_a_resumed_run_shows_no_point_twice(run: RunFolder) -> None:
    def write(kind: Kind, steps: range, value: float, resumed_at: int | None) -> None:
        sink = TensorBoardSink(run, resumed_at=resumed_at)
        for step in steps:
            sink.write(kind, {"env_steps": step, "x": value})
        sink.close()

    write("metrics", range(10, 60, 10), 1.0, None)  # the last checkpoint was at 30; 40 and 50 are lost
    write("metrics", range(40, 70, 10), 2.0, 30)
    points = [(event.step, event.value) for event in events(run).Scalars("train/x")]
    assert points == [(10, 1.0), (20, 1.0), (30, 1.0), (40, 2.0), (50, 2.0), (60, 2.0)]


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, object]] = []

    def init(self, **options: object) -> SimpleNamespace:
        self.calls.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or "abc",
            define_metric=lambda name, step_metric: self.calls.append(("define", (name, step_metric))),
            log=lambda numbers: self.calls.append(("log", numbers)),
            finish=lambda: self.calls.append(("finish", None)),
        )


def test_wandb_calls_and_its_page_on_resume(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    log_everything(["wandb"], run)
    init = {
        "project": "greenroom",
        "name": "my-run",
        "dir": str(run.path),
        "config": {"seed": 3, "algo": {"name": "ppo", "lam": 0.9}},
        "id": None,
        "resume": "allow",
    }
    assert fake.calls[:2] == [("init", init), ("define", ("*", "env_steps"))]
    assert [name for name, _ in fake.calls[2:]] == ["log", "log", "finish", "finish"]
    metrics, evaluation = fake.calls[2][1], fake.calls[3][1]
    assert isinstance(metrics, dict) and math.isnan(metrics.pop("loss/policy"))
    assert metrics == {"env_steps": 100, "train/return_mean": 1.5, "time/env": 0.25}
    assert evaluation == {
        "env_steps": 100,
        "evaluation/mean": 2,
        "evaluation/ci95/0": 1.0,
        "evaluation/ci95/1": math.inf,
        "evaluation/signals/cost": 0.5,
    }
    fake.calls.clear()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log_everything(["wandb"], run, resumed_at=100)
    assert fake.calls[0] == ("init", {**init, "id": "abc", "project": "mine"})


class FakeMlflow(ModuleType):
    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[object, ...]] = []

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> SimpleNamespace:
        self.calls.append(("start", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "xyz"))

    def log_params(self, parameters: Mapping[str, object]) -> None:
        self.calls.append(("params", dict(parameters)))

    def log_metrics(self, numbers: Mapping[str, float], step: int) -> None:
        self.calls.append(("metrics", sorted(numbers), step))

    def end_run(self) -> None:
        self.calls.append(("end",))


def test_mlflow_calls_and_its_page_on_resume(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    log_everything(["mlflow"], run)
    evaluation = ["evaluation/ci95/0", "evaluation/ci95/1", "evaluation/mean", "evaluation/signals/cost"]
    logged = [
        ("metrics", ["loss/policy", "time/env", "train/return_mean"], 100),
        ("metrics", evaluation, 100),
        ("end",),
        ("end",),
    ]
    parameters = {"seed": 3, "algo.name": "ppo", "algo.lam": 0.9}
    assert fake.calls == [("start", None, "my-run"), ("params", parameters), *logged]
    fake.calls.clear()
    log_everything(["mlflow"], run, resumed_at=100)
    assert fake.calls == [("start", "xyz", None), *logged]


def test_mlflow_gets_its_parameters_a_hundred_at_a_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    make_sinks(["mlflow"], run, {str(number): number for number in range(250)})
    sizes = [len(call[1]) for call in fake.calls if call[0] == "params" and isinstance(call[1], dict)]
    assert sizes == [100, 100, 50]


@contextmanager
def count_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    closed: list[str] = []
    real = JsonlSink.close

    def close(sink: JsonlSink) -> None:
        closed.append("jsonl")
        real(sink)

    monkeypatch.setattr(JsonlSink, "close", close)
    yield closed


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    with count_closed(monkeypatch) as closed, pytest.raises(UserError, match=rf"pip install 'greenroom\[{name}\]'"):
        make_sinks(["jsonl", name], run, {})
    assert closed == ["jsonl"]


def test_an_unknown_logger_opens_nothing(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"unknown logger 'tensorbord'; did you mean 'tensorboard'\?"):
        make_sinks(["jsonl", "tensorbord"], run, {})
    assert not run.metrics.exists()


def test_a_logger_named_twice_writes_once(run: RunFolder) -> None:
    log_everything(["jsonl", "jsonl"], run)
    assert len(run.metrics.read_text().splitlines()) == 1


def test_a_server_that_is_away_refuses_as_a_disk_does(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    (sink,) = make_sinks(["mlflow"], run, {})

    def away(*args: object, **kwargs: object) -> None:
        raise RuntimeError("connection refused")  # its own kind of exception is no OSError

    monkeypatch.setattr(fake, "log_metrics", away)
    with pytest.raises(OSError, match="mlflow: RuntimeError: connection refused"):
        sink.write("metrics", {"env_steps": 1})
    monkeypatch.setattr(fake, "end_run", away)
    with pytest.raises(OSError, match="mlflow: RuntimeError: connection refused"):
        sink.close()
    monkeypatch.setattr(fake, "start_run", away)
    with pytest.raises(UserError, match="mlflow cannot start: connection refused; mend that, or leave mlflow out"):
        make_sinks(["mlflow"], run, {})


def test_tensorboard_files_are_in_order_even_if_the_clock_was_put_back(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    for seconds in (2e9, 1e9, 1.5e9):
        monkeypatch.setattr("greenroom.log.time.time", partial(float, seconds))
        (sink,) = make_sinks(["tensorboard"], run, {}, resumed_at=1)
        sink.write("metrics", {"env_steps": 1, "loss/a": 1.0})
        sink.close()
        names += [path.name for path in run.tensorboard.iterdir() if path.name not in names]
    assert len(names) == 3 and names == sorted(names)
