"""A live run, asked from outside: real processes driven by the commands, and a socket that takes anything."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenroom import checkpoint
from greenroom.cli import main
from greenroom.commands.live import parse_change
from greenroom.config import load_file
from greenroom.control import LIMIT, SOCKET, NoAnswer, NotLive, Pending, Request, ask, control, parse
from greenroom.errors import ExitCode, UserError
from greenroom.folder import RunFolder, trainer_of
from greenroom.status import look


def split(words: str) -> list[str]:
    """What a shell makes of them."""
    return words.split()


SETTINGS = split(
    "--num-envs 8 --rollout-length 4 --minibatches 2 --epochs 1 --hidden 8 --threads 1 --sinks "
    "--total-steps 1000000000 --save-every 320 --eval-every 800 --eval-episodes 4 --log-seconds 0.05"
)
ENDLESS = ["train", "probe-observation", *SETTINGS]
WORKERS = ["train", "CartPole-v1", "--stage", "workers", "--num-workers", "2", *SETTINGS]
PATIENCE = 60.0


def until(holds: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What `holds` returns once that is true, however busy the machine is."""
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found


def spawn(*words: str) -> subprocess.Popen[str]:
    """`greenroom …` in a process, and a group, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "greenroom", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        start_new_session=True,
    )


@contextmanager
def training(run: Path, words: list[str] = ENDLESS) -> Iterator[subprocess.Popen[str]]:
    """A training that has saved its first checkpoint, and never ends by itself."""
    process = spawn(*words, "--run-dir", str(run))
    try:
        until(lambda: checkpoint.latest(run / "checkpoints"), process)
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seen(run: Path) -> dict[str, Any]:
    """How the run does, given all the time it needs to say so."""
    return look(run, timeout=PATIENCE)


def interventions(run: Path) -> list[dict[str, Any]]:
    return lines(run / "interventions.jsonl")


def test_an_operator_works_on_a_live_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"

    def greenroom(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    with training(run) as process:
        told = until(lambda: (new := json.loads(greenroom("status", str(run), "--json")))["state"] == "running" and new)
        assert told["process"] == process.pid
        assert told["checkpoint"] and told["spent"] > 0 and told["unsaved"] == ""

        greenroom("pause", str(run), "--reason", "look at it")
        paused = seen(run)
        assert paused["state"] == "paused"
        assert greenroom("set", str(run), "lr=0.5x").startswith("set: learning_rate ")
        assert seen(run)["learning_rate"] == pytest.approx(paused["learning_rate"] / 2)
        greenroom("set", str(run), "lr=1e-4")
        assert seen(run)["learning_rate"] == pytest.approx(1e-4)
        saved = greenroom("checkpoint", str(run)).split()[-1]
        assert saved.startswith(f"step_{paused['env_steps']:012d}") and saved == seen(run)["checkpoint"]
        for name in ("env_steps", "updates", "seconds"):
            assert seen(run)[name] == paused[name], "a pause is no training"

        greenroom("resume-live", str(run))
        until(lambda: seen(run)["env_steps"] > paused["env_steps"], process)
        greenroom("pause", str(run))
        back = greenroom("rollback", str(run), "--to", str(paused["env_steps"]), "--reason", "too far").split()[-1]
        assert back == saved
        assert seen(run)["env_steps"] == paused["env_steps"] and seen(run)["checkpoint"] == saved
        assert seen(run)["learning_rate"] == pytest.approx(1e-4), "it was in the checkpoint"
        assert all(record["env_steps"] <= paused["env_steps"] for record in lines(run / "metrics.jsonl"))
        assert main(["rollback", str(run), "--to", "7"]) == 2
        assert "there is no checkpoint of 7 steps" in capsys.readouterr().err

        greenroom("stop", str(run), "--reason", "enough")
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.STOPPED, err
        assert "stopped early: stopped by" in out and f"continue with: greenroom resume {run}" in out

    records = interventions(run)
    verbs = ["pause", "set", "set", "checkpoint", "resume", "pause", "rollback", "rollback", "stop"]
    assert [record["verb"] for record in records] == verbs
    assert [record["reason"] for record in records if record["reason"]] == ["look at it", "too far", "enough"]
    assert records[6]["arguments"] == {"to": paused["env_steps"]} and records[6]["outcome"] == {"checkpoint": saved}
    assert "refused" in records[7]["outcome"]
    assert {record["user"] for record in records} == {records[0]["user"]} and records[0]["time"].endswith("+00:00")
    told = seen(run)
    assert (told["state"], told["process"], told["rollbacks"], told["interventions"]) == ("stopped", None, 1, 9)
    assert not (run / SOCKET).exists()
    assert main(["pause", str(run)]) == 2
    assert (
        f"not being trained now; if it has steps left, continue it with: greenroom resume {run}"
        in capsys.readouterr().err
    )


def test_one_process_trains_in_a_folder_and_a_killed_one_blocks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        assert main(["resume", str(run)]) == 2
        assert f"is being trained in by process {process.pid}" in capsys.readouterr().err
        assert main([*ENDLESS, "--run-dir", str(run)]) == 2
        assert f"is being trained in by process {process.pid}; nothing was overwritten" in capsys.readouterr().err
        assert trainer_of(run) == process.pid
        process.kill()
        process.communicate()
    assert trainer_of(run) is None and main(["status", str(run)]) == 0
    assert "stopped" in capsys.readouterr().out.split()
    assert (run / SOCKET).exists(), "killed, it could not tidy up"
    steps = checkpoint.env_steps_of(checkpoint.latest(run / "checkpoints") or run)
    resumed = spawn("resume", str(run), "--quiet")
    try:
        until(lambda: seen(run)["state"] == "running" and seen(run)["env_steps"] > steps, resumed)
        ask(run, Request(verb="stop"))
        assert resumed.wait(PATIENCE) == ExitCode.STOPPED
    finally:
        resumed.kill()
        resumed.communicate()


def test_a_notice_to_the_whole_group_is_heeded_even_during_a_pause(tmp_path: Path) -> None:
    """As clusters give it: to the workers too, which must not die of it before the state is saved."""
    run = tmp_path / "run"
    with training(run, WORKERS) as process:
        ask(run, Request(verb="pause"))
        steps = seen(run)["env_steps"]
        os.killpg(process.pid, signal.SIGUSR1)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == ExitCode.PREEMPTED, err
    assert "stopped early: SIGUSR1" in out
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and checkpoint.env_steps_of(newest) == steps
    assert interventions(run)[-1]["reason"] == "SIGUSR1"


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        (["--deadline", "2"], "its deadline of 2 seconds is over", ["--deadline", "0"]),
        (
            ["--cost-per-hour", "3600", "--cost-budget", "2"],
            "its cost budget of 2 is used up",
            ["--cost-budget", "1000000"],
        ),
    ],
)
def test_a_budget_ends_a_run_and_more_of_it_continues_it(
    tmp_path: Path, words: list[str], reason: str, remedy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*ENDLESS, "--run-dir", str(run), "--quiet", *words]) == ExitCode.BUDGET
    said = capsys.readouterr().out
    assert reason in said and f"give a {'later' if remedy[0] == '--deadline' else 'larger'} {remedy[0]}" in said
    steps = seen(run)["env_steps"]
    assert steps > 0 and seen(run)["checkpoint"] == f"step_{steps:012d}"
    assert main(["resume", str(run), "--quiet"]) == 2, "used up is used up, in whatever sitting"
    assert reason in capsys.readouterr().err
    assert main(["resume", str(run), "--quiet", "--total-steps", str(steps + 64), *remedy]) == ExitCode.DONE
    assert vars(load_file(run / "config.yaml").budget)[remedy[0][2:].replace("-", "_")] == float(remedy[1])


@contextmanager
def answering(folder: Path) -> Iterator[list[Request]]:
    """A line whose other end agrees to everything, and notes it."""
    heard: list[Request] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            if (asked := line.take(0.02)) is not None:
                heard.append(asked.request)
                asked.answer(verb=asked.request.verb)

    with control(folder, pytest.fail) as line:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            done.set()
            thread.join()


def test_the_socket_is_the_owners_only_and_gone_at_the_end(tmp_path: Path) -> None:
    with answering(tmp_path):
        mode = (tmp_path / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotLive, match="continue it with: greenroom resume"):
        ask(tmp_path, Request(verb="status"))


def test_who_has_left_takes_no_place_and_who_comes_too_late_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.control._GLANCE_SECONDS", 0.01)
    with control(tmp_path, pytest.fail) as line:
        for _ in range(3):  # as `status` does, again and again, while an evaluation goes on
            with pytest.raises(NoAnswer):
                ask(tmp_path, Request(verb="status"), timeout=0.01)
        waiting = [threading.Thread(target=partial(ask, tmp_path, Request(verb="checkpoint"))) for _ in range(16)]
        for thread in waiting:
            thread.start()
        asked: list[Pending] = []
        while sum(one.request.verb == "checkpoint" for one in asked) < len(waiting):
            if (one := line.take(5.0)) is not None:
                asked.append(one)
        with pytest.raises(UserError, match="16 requests wait for the run's answer already"):
            ask(tmp_path, Request(verb="pause"))
        for one in asked:
            one.answer()
        for thread in waiting:
            thread.join()


def test_a_folder_may_have_a_path_longer_than_a_sockets_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / ("longer" * 30)
    folder.mkdir(parents=True)
    with answering(folder) as heard:
        assert ask(folder, Request(verb="rollback", to=64, reason="ü" * 50)) == {"verb": "rollback"}
    assert heard == [Request(verb="rollback", to=64, reason="ü" * 50)]


def test_a_socket_that_was_left_behind_is_replaced_but_no_other_file(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / SOCKET))
    left.close()
    with answering(tmp_path) as heard:
        ask(tmp_path, Request(verb="status"))
    assert heard == [Request(verb="status")]
    (tmp_path / SOCKET).write_text("precious")
    said: list[str] = []
    with control(tmp_path, said.append) as line:
        assert line.take(0.01) is None
    assert "no live control of this run" in said[0] and (tmp_path / SOCKET).read_text() == "precious"


def test_who_comes_when_the_run_ends_is_told_so(tmp_path: Path) -> None:
    answers: list[str] = []

    def question() -> None:
        with pytest.raises(UserError) as caught:
            ask(tmp_path, Request(verb="pause"))
        answers.append(str(caught.value))

    thread = threading.Thread(target=question)
    with control(tmp_path, pytest.fail) as line:
        thread.start()
        until(lambda: not line._queue.empty())
    thread.join()
    assert answers == ["the run has just ended"]


def test_a_run_that_is_busy_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with control(tmp_path, pytest.fail), pytest.raises(NoAnswer, match=r"within 0\.05 seconds"):
        ask(tmp_path, Request(verb="status"), timeout=0.05)


def say_raw(folder: Path, content: bytes) -> list[dict[str, Any]]:
    """What is answered to bytes that no command would send."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        handle = os.open(folder, os.O_RDONLY)
        try:
            connection.connect(f"/proc/self/fd/{handle}/{SOCKET}")
        finally:
            os.close(handle)
        answers = b""
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                answers += part
        except (BrokenPipeError, ConnectionResetError):  # it hangs up on requests without end
            pass
    return [json.loads(line) for line in answers.splitlines()]


SPOILED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYED = st.dictionaries(st.sampled_from(["verb", "reason", "to", "learning_rate", "factor", "x"]), SPOILED, max_size=4)
NEARLY = st.fixed_dictionaries(
    {"verb": st.sampled_from(["status", "pause", "resume", "stop", "checkpoint", "rollback", "set", "sit"])},
    optional={"reason": st.text(max_size=9), "to": st.integers() | st.none(), "factor": st.floats() | st.integers()},
)
ANYTHING = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda value: json.dumps(value).encode(), SPOILED | KEYED | NEARLY),
    st.sampled_from([b"[" * LIMIT, b"{" * 2000, b"9" * LIMIT, b"x" * (3 * LIMIT), b'{"verb": "set", "factor": 1e999}']),
    st.just(b'{"verb": "set", "learning_rate": 1' + b"0" * 400 + b"}"),
)


@given(line=ANYTHING)
@settings(max_examples=400, deadline=None)
def test_whatever_is_asked_is_a_request_or_a_message(line: bytes) -> None:
    try:
        request = parse(line)
    except UserError as problem:
        assert str(problem)
    else:
        content = {"verb": request.verb, "reason": request.reason, **request.arguments}
        assert parse(json.dumps(content).encode()) == request


@given(parts=st.lists(ANYTHING, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_through_the_socket_is_answered_and_harms_nothing(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with answering(folder) as heard:
        answers = say_raw(folder, b"\n".join(parts) + b"\n")
        assert all(("error" in answer) != answer["ok"] for answer in answers)
        assert sum(answer["ok"] for answer in answers) == len(heard)
        assert ask(folder, Request(verb="status")) == {"verb": "status"}, "still there for the next"


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        (b'{"verb": "pawse"}', "no verb 'pawse'; did you mean 'pause'?"),
        (b'{"verb": "pause", "raeson": "x"}', "unknown key 'raeson'; did you mean 'reason'?"),
        (b'{"verb": "pause", "reason": 3}', "reason must be str, not 3"),
        (b'{"verb": "pause", "reason": "\\ud800"}', "reason must be one line of text"),
        (b'{"verb": "pause", "reason": "a\\nb"}', "reason must be one line of text"),
        (b'{"verb": "set"}', "set needs a learning_rate or a factor"),
        (b'{"verb": "set", "factor": 0}', "factor must be a finite number greater than 0"),
        (b'{"verb": "set", "factor": NaN}', "factor must be a finite number greater than 0"),
        (b'{"verb": "set", "factor": true}', "factor must be int or float, not True"),
        (b'{"verb": "rollback", "to": -1}', "to must be a number of steps"),
        (b'{"verb": "stop", "to": 3}', "stop takes no `to`"),
        (b"[]", "a request is a JSON object"),
        (b"nonsense", "a request is one line of JSON"),
        (b"[" * LIMIT, "a request is one line of JSON"),
        (b" " * (LIMIT + 1), f"at most {LIMIT} bytes"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(line: bytes, culprit: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(line)
    assert culprit in str(caught.value)


@pytest.mark.parametrize("change", ["lr", "lr=", "lr=x", "gamma=0.9", "lr=fast", "0.5"])
def test_a_change_that_cannot_be_made_is_told(change: str) -> None:
    with pytest.raises(UserError, match="lr=VALUE or lr=FACTORx"):
        parse_change(change)


def test_a_change_is_a_rate_or_a_factor() -> None:
    assert parse_change("lr=3e-4") == parse_change("learning_rate=0.0003") == {"learning_rate": 3e-4}
    assert parse_change("lr=0.5x") == {"factor": 0.5}


def test_a_lock_is_waited_for_if_it_is_about_to_be_let_go(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    with folder.held():
        assert trainer_of(tmp_path) == os.getpid()
        with pytest.raises(UserError, match=f"by process {os.getpid()}"), folder.held():
            pass
    held = threading.Event()

    def brief() -> None:
        with folder.held():
            held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=brief)
    thread.start()
    held.wait()
    with folder.held():
        assert trainer_of(tmp_path) == os.getpid()
    thread.join()
    assert trainer_of(tmp_path) is None
