"""What surrounds a run, and must not harm it: environments that leave, fork or exit, and an output that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenroom import checkpoint
from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.envs import make
from greenroom.envs.faults import FaultConfig
from greenroom.errors import EnvironmentFault, ExitCode, UserError
from greenroom.session import launch

TESTS = Path(__file__).parent
SMALL = ["--num-envs", "4", "--rollout-length", "8", "--minibatches", "1", "--eval-episodes", "2"]
PATIENCE = 60.0


@contextmanager
def greenroom(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own; killed at the end, whatever came of it."""
    search = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    options.setdefault("env", os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search})
    with subprocess.Popen(
        [sys.executable, "-m", "greenroom", *words],
        stdout=subprocess.PIPE,
        **{"stderr": subprocess.PIPE, "text": True} | options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_stays_where_it_was_asked_to_be(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its environments go elsewhere. All of this happens in this process, so that they take it along."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    words = [
        "leaving:Elsewhere",
        "--env.to",
        str(there),
        "--env.late",
        str(late),
        "--stage",
        "inline",
        "--quiet",
        *SMALL,
    ]
    assert main(["train", *words, "--total-steps", "2048", "--save-every", "512", "--run-dir", "run"]) == ExitCode.DONE
    assert Path.cwd() == there and not list(there.iterdir())
    monkeypatch.chdir(here)
    assert (here / "run" / "curve.png").exists() and checkpoint.latest(here / "run" / "checkpoints") is not None
    assert main(["resume", "run", "--total-steps", "4096", "--quiet"]) == ExitCode.DONE
    monkeypatch.chdir(here)
    assert main(["evaluate", "run", "--episodes", "2"]) == ExitCode.DONE
    assert not list(there.iterdir())
    monkeypatch.chdir(here)
    assert main(["train", *words, "--total-steps", "64"]) == ExitCode.DONE
    assert len(list((here / "runs").iterdir())) == 1 and not list(there.iterdir())


def test_a_run_folder_that_was_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot save checkpoint"):
        checkpoint.save(tmp_path / "gone" / "checkpoints", {}, env_steps=1, updates=1, keep=1)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("how", ["inline", "workers", "overlap"])
def test_helpers_of_an_environment_end_with_it(how: str, tmp_path: Path) -> None:
    """They were forked from a process that leaves signals to others, and could not be ended by one."""
    collect = ["--collect", "overlap"] if how == "overlap" else ["--stage", how]
    words = ["train", "leaving:Helped", *SMALL, *collect, "--total-steps", "64", "--run-dir", str(tmp_path / "run")]
    with greenroom(*words, start_new_session=True) as process:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.DONE, err
        until(lambda: not in_session(process.pid))


def alive() -> Iterator[tuple[int, int]]:
    """Every process that has not ended, and its parent."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(path.parent.name), int(parent)


def in_session(number: int) -> list[int]:
    found = []
    for process, _ in alive():
        with suppress(ProcessLookupError):
            if os.getsid(process) == number:
                found.append(process)
    return found


def children(of: int) -> list[int]:
    return [process for process, parent in alive() if parent == of]


def test_helpers_of_an_environment_keep_nothing_of_a_killed_trainer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "leaving:Helped", *SMALL, "--stage", "inline", "--total-steps", "1000000", "--save-every", "64"]
    with greenroom(*words, "--run-dir", str(run), start_new_session=True) as process:
        until(lambda: (run / "checkpoints").is_dir() and checkpoint.latest(run / "checkpoints"))
        process.kill()
        process.wait()
        helpers = in_session(process.pid)
        try:
            assert helpers, "they outlive it, which nobody can help"
            assert main(["pause", str(run)]) == ExitCode.ERROR  # at once: nobody listens
            newest = checkpoint.latest(run / "checkpoints")
            assert newest is not None
            steps = str(checkpoint.env_steps_of(newest) + 64)
            assert main(["resume", str(run), "--quiet", "--total-steps", steps]) == ExitCode.DONE
        finally:
            for helper in helpers:
                os.kill(helper, signal.SIGKILL)


def test_a_worker_that_is_killed_is_missed_although_it_had_helpers() -> None:
    before = children(os.getpid())
    stage = make("leaving:Helped", num_envs=2, stage="workers", num_workers=1, say=lambda line: None)
    stage.reset(0)
    (worker,) = set(children(os.getpid())) - set(before)
    helpers = children(worker)
    os.kill(worker, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match="was killed by signal 9"):
        stage.reset(1)
    assert time.monotonic() - start < PATIENCE and helpers
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)


@pytest.mark.parametrize("stage", ["inline", "joint", "workers"])
def test_an_exit_is_no_end_of_ours(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["faults.flaky:Flaky", "--env.fault", "leave", "--stage", stage, "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words, *SMALL]) == ExitCode.ERROR
    told = capsys.readouterr().err
    assert "step raised SystemExit" in told and "greenroom reproduce" in told
    assert main(["reproduce", str(tmp_path / "run" / "faults" / "0001.json")]) == ExitCode.DONE
    assert "it is the same failure" in capsys.readouterr().out


def test_what_cannot_be_built_is_told_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "leaving:Jammed"]) == ExitCode.ERROR
    assert f"could not be built: KeyError: 'data.csv' ({TESTS / 'leaving.py'}, line " in capsys.readouterr().err
    assert main(["train", "leaving:Jammed", "--env.leave", "True"]) == ExitCode.ERROR
    assert "could not be built: SystemExit: no licence (" in capsys.readouterr().err


def test_a_constructor_that_hangs_is_told_with_what_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.envs.crew._START_SECONDS", 3.0)
    faults = FaultConfig(reset_timeout=0.5)
    what = r"silent for 4 s while it started, and built, all of its environments; it may take 3 s, and 0.5 s \(--reset-"
    with pytest.raises(EnvironmentFault, match=what):
        make("leaving:endless", num_envs=2, stage="workers", num_workers=1, faults=faults, say=lambda line: None)


def test_a_full_log_ends_no_run(tmp_path: Path) -> None:
    with (
        open("/dev/full", "w") as full,
        greenroom(
            "train", "CartPole-v1", *SMALL, "--total-steps", "2048", "--run-dir", str(tmp_path / "run"), stderr=full
        ) as process,
    ):
        process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.DONE


def test_a_log_that_nobody_reads_any_more_ends_no_run_and_ctrl_c_saves_it(tmp_path: Path) -> None:
    """As after `2>&1 | tee`, which Ctrl-C ends too."""
    run = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL, "--total-steps", "100000000", "--log-seconds", "0", "--run-dir", str(run)]
    with greenroom(*words) as process:
        assert process.stderr is not None and process.stdout is not None
        until(lambda: (run / "metrics.jsonl").exists())
        process.stderr.close()
        size = (run / "metrics.jsonl").stat().st_size
        until(lambda: (run / "metrics.jsonl").stat().st_size > size)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(PATIENCE) == ExitCode.STOPPED
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and checkpoint.env_steps_of(newest) > 0


def test_an_output_that_is_closed_or_knows_few_letters_spoils_no_command() -> None:
    closed = [sys.executable, "-c", "import os, runpy, sys; os.close(1); sys.argv[1:] = ['list']; sys.stdout = None; "
              "runpy.run_module('greenroom', run_name='__main__')"]  # fmt: skip
    done = subprocess.run(closed, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    few = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "greenroom", "list"], capture_output=True, text=True, env=few, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "lost-sales" in done.stdout


LOADING = """
import importlib.abc, runpy, signal, sys

class Meanwhile(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tyro":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:  # as some libraries do while they are loaded
                pass
            print("swallowed", file=sys.stderr)

sys.meta_path.insert(0, Meanwhile())
sys.argv[1:] = ["list"]
runpy.run_module("greenroom", run_name="__main__")
"""


def test_ctrl_c_while_loading_says_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "greenroom: interrupted\n")


def test_a_run_that_was_trained_on_a_gpu_can_be_used_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = RunConfig(env="CartPole-v1", num_envs=4, rollout_length=8, total_steps=64, eval_episodes=2)
    run = launch(config, run_dir=tmp_path / "run", quiet=True).folder
    settings = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump(settings | {"device": "cuda"}))
    for command in (["evaluate", str(run.path)], ["resume", str(run.path), "--total-steps", "128"]):
        assert main(command) == ExitCode.ERROR
        assert "use --device cpu" in capsys.readouterr().err
        assert main([*command, "--device", "cpu"]) == ExitCode.DONE
    assert yaml.safe_load(run.config.read_text())["device"] == "cpu"


def test_a_log_that_cannot_be_continued_changes_nothing(tmp_path: Path) -> None:
    config = RunConfig(env="CartPole-v1", num_envs=4, rollout_length=8, total_steps=64, eval_episodes=2)
    run = launch(config, run_dir=tmp_path / "run", quiet=True).folder
    run.metrics.write_text("nonsense\n" + run.metrics.read_text())
    before = run.config.read_text()
    assert main(["resume", str(run.path), "--total-steps", "128", "--quiet"]) == ExitCode.ERROR
    assert run.curve.exists() and run.config.read_text() == before
