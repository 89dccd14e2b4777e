"""The benchmark's tables, files and suites. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import page
from greenroom.bench import busy, loops, once, peers, promises, scale, simulators, suites, synthetic
from greenroom.bench.report import Cell, Findings, Report, Settings, Table, read, shown
from greenroom.bench.scripts import Answer, ask
from greenroom.bench.simulators import Case
from greenroom.bench.synthetic import Busy, loops_for, spin
from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.presets import preset
from greenroom.training import choose_precision

ROOT = Path(__file__).resolve().parents[1]
TINY = Settings(seconds=0.02, repeats=2)


def column(table: Table, heading: str) -> dict[str, Cell]:
    """A column's cells by their rows' first ones."""
    return {str(row[0]): row[table.headings.index(heading)] for row in table.rows}


def number(cell: Cell) -> float:
    assert isinstance(cell, float)
    return cell


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, "–"),
        ("sync", "sync"),
        (0.0, "0"),
        (0.91349, "0.913"),
        (0.0208, "0.0208"),
        (9.996, "10.00"),
        (48.93, "48.9"),
        (890.4, "890"),
        (0.00009, "0.0001"),
        (12345.6, "12_300"),
        (-1234567.0, "-1_230_000"),
    ],
)
def test_numbers_have_three_digits_that_count(cell: Cell, words: str) -> None:
    assert shown(cell) == words.replace("_", "\N{NARROW NO-BREAK SPACE}")


TABLE = Table(title="A table", about="What it is.", headings=("", "steps/s"), rows=(("sync", 1234.5), ("peer", None)))
ENVIRONMENT: dict[str, Any] = {
    "cpu": "A processor",
    "cores": 2,
    "gpus": ["NVIDIA H200"],
    "command": "greenroom bench atari",
    **dict.fromkeys(("python", "torch", "numpy", "gymnasium", "ale-py"), "1.0"),
}


def report(device: str = "cpu") -> Report:
    findings = Findings(tables=(TABLE,), slices={"sync": [1200.0, 1269.0]})
    return Report(suite="atari", findings=findings, device=device, seconds=90.0, environment=ENVIRONMENT)


def test_a_table_in_markdown() -> None:
    assert TABLE.markdown() == [
        "### A table",
        "",
        "What it is.",
        "",
        "|  | steps/s |",
        "| --- | --- |",
        f"| sync | {shown(1230.0)} |",
        "| peer | – |",
        "",
    ]


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        dataclasses.replace(TABLE, rows=(("sync",),))


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    path = report().write(tmp_path / "results")
    assert path.name == "atari.json"
    assert read(path) == report()
    assert json.loads(path.read_text())["slices"] == {"sync": [1200.0, 1269.0]}


def test_a_report_from_a_gpu_carries_its_name(tmp_path: Path) -> None:
    assert report("cuda").write(tmp_path).name == "atari-nvidia-h200.json"


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    path = tmp_path / "atari.json"
    path.write_text('{"suite": "atari", "tables": []}')
    with pytest.raises(UserError, match=r"atari\.json holds no report"):
        read(path)


def test_the_page_shows_what_the_files_say(tmp_path: Path) -> None:
    text = "Before.\n<!-- bench: atari -->\nold\n<!-- end -->\n<!-- bench: scale -->\n<!-- end -->\nAfter.\n"
    report().write(tmp_path)
    report("cuda").write(tmp_path)
    filled = page.filled(text, tmp_path)
    assert "old" not in filled
    assert filled.count(f"| sync | {shown(1230.0)} |") == 2
    assert "(results/bench/atari-nvidia-h200.json)" in filled
    assert "Not measured yet." in filled[filled.index("scale") :]
    assert page.filled(filled, tmp_path) == filled


def test_the_page_in_the_repository_is_filled_from_the_files_beside_it() -> None:
    text = page.PAGE.read_text()
    assert page.filled(text, page.RESULTS) == text
    assert all(f"<!-- bench: {name} -->" in text for name in suites.SUITES)


def test_loops_are_calibrated_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where a loop takes a microsecond, a millisecond is a thousand loops."""
    now, asked = 0.0, list[int]()

    def counted(loops: int) -> int:
        nonlocal now
        now += loops * 1e-6
        asked.append(loops)
        return 0

    monkeypatch.setattr(synthetic, "spin", counted)
    assert loops_for(1e-3, lambda: now) == 1000
    assert loops_for(1e-9, lambda: now) == 1
    assert max(asked) * 1e-6 >= 0.01, "a trial must be long against the clock's own grain"


def test_spinning_longer_does_more() -> None:
    assert spin(0) == 1
    assert len({spin(loops) for loops in range(100)}) == 100


@pytest.mark.parametrize("picture", [False, True])
def test_the_synthetic_simulator_is_a_sound_environment(picture: bool) -> None:
    made = Busy(loops=10, picture=picture)
    check_env(made, skip_render_check=True)
    assert made.observation_space.shape == ((4, 84, 84) if picture else (8,))
    made.reset(seed=0)
    ends = [made.step(made.action_space.sample())[3] for _ in range(200)]
    assert ends == [False] * 199 + [True]


def test_the_ratios_of_a_loop_are_those_of_its_rates() -> None:
    config = RunConfig(env="cartpole", num_envs=4, rollout_length=4, device="cpu")
    found, rates = loops.against_bound(
        "a loop", config, {way: peers.ways(config)[way] for way in ("sync", "double")}, TINY, target=""
    )
    steps, share = (column(found.tables[0], heading) for heading in ("steps/s", "÷ bound"))
    one, other = (number(steps[name]) for name in ("environments", "act and learn"))
    assert number(steps["bound"]) == pytest.approx(1 / (1 / one + 1 / other))
    assert share["bound"] == 1.0
    for way in ("sync", "double"):
        assert steps[way] == rates[way].steps_per_second
        assert number(share[way]) == pytest.approx(number(steps[way]) / number(steps["bound"]))
        assert len(found.slices[f"a loop: {way}"]) == TINY.repeats


def test_both_arithmetics_are_measured_beside_what_runs_take_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(env="cartpole", num_envs=4, rollout_length=4, device="cpu", policy=PolicyConfig(network=Mlp()))
    monkeypatch.setattr(loops, "_convolutional", lambda: {"one": config, "other": config})
    monkeypatch.setattr(loops, "choose_precision", lambda config, device, say: "bfloat16")
    found = loops.arithmetic(TINY)
    headings = "bfloat16 ÷ float32", "channels last ÷ first", "by itself"
    of_precision, of_layout, chosen = (column(found.tables[0], heading) for heading in headings)
    rates = {name: column(found.tables[0], name) for name in ("float32", "bfloat16", "bfloat16, channels first")}
    assert list(of_precision) == ["one", "other"]
    for name in of_precision:
        bfloat16 = number(rates["bfloat16"][name])
        assert of_precision[name] == bfloat16 / number(rates["float32"][name])
        assert of_layout[name] == bfloat16 / number(rates["bfloat16, channels first"][name])
        assert chosen[name] == "bfloat16"
        assert len(found.slices[f"{name}, float32"]) == TINY.repeats


def test_arithmetics_are_measured_on_networks_of_convolutions() -> None:
    networks = {name: type(config.policy.network).__name__ for name, config in loops._convolutional().items()}
    assert networks == {
        "paac": "Nips",
        "atari-ppo": "Nips",
        "atari-pqn": "Nips",
        "paac, nature": "Nature",
        "paac, impala": "Impala",
    }


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where no peer is installed."""
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)


@pytest.mark.usefixtures("no_peers")
def test_a_simulator_beside_every_stage_and_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "available_cores", lambda: 2)
    case = Case(name="busy", env="greenroom.bench.synthetic:Busy", kwargs={"loops": 10})
    found, row = simulators.measured(case, TINY, num_envs=2)
    rates = column(found.tables[0], "steps/s")
    stages = {"greenroom auto", "greenroom inline", "greenroom joint × 2", "greenroom workers × 2"}
    assert {"one loop", *stages} <= rates.keys()
    assert number(rates["as many loops as cores, side by side"]) > 0
    assert number(row[3]) == pytest.approx(number(row[1]) / number(rates["as many loops as cores, side by side"]))
    assert number(rates["Gymnasium SyncVectorEnv"]) > 0
    assert number(rates["Gymnasium AsyncVectorEnv"]) > 0
    assert rates["SB3 SubprocVecEnv"] is None
    assert column(found.tables[0], "note")["SB3 SubprocVecEnv"] == "not installed: make bench-peers does it"
    searched = {name.removeprefix("greenroom "): rate for name, rate in rates.items() if name.startswith("greenroom")}
    del searched["auto"]
    assert row[0] == "busy"
    assert row[-1] == max(searched, key=lambda name: number(searched[name]))
    assert row[-2] in searched
    assert number(row[-3]) == pytest.approx(number(row[1]) / max(map(number, searched.values())))


def test_the_simulators_are_those_of_the_page() -> None:
    made = simulators.cases()
    assert [case.name for case in made][:2] == ["CartPole-v1", "50 µs a step"]
    counted = [case.kwargs["loops"] for case in made[1:4]]
    assert counted == sorted(counted)


def answering(rate: float, **more: float) -> Callable[..., Answer]:
    return lambda *_: Answer(steps=int(rate), seconds=1.0, version="1.0", setting="as told", more=more)


def test_peers_are_compared_with_the_best_of_greenroom(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask_peer(script: str, task: peers.Task, settings: Settings) -> Answer | str:
        asked.append(script)
        return "no such thing" if script == "skrl" else answering(100.0, parameters=1687719.0)()

    rates = iter([150.0, 300.0] * 2)
    monkeypatch.setattr(peers, "ask_own", lambda config, settings: answering(next(rates))())
    monkeypatch.setattr(peers, "ask_peer", ask_peer)
    own = {way: preset("paac", "ALE/Pong-v5") for way in ("sync", "double")}
    found = peers.compared("A task", peers.Task(task="atari-a2c", num_envs=2, rollout_length=2), own, TINY)
    times, how = (column(found.tables[0], heading) for heading in ("greenroom's best is × this", "how, or why not"))
    assert times["greenroom, sync"] == 2.0
    assert times["TorchRL"] == 3.0
    assert times["skrl"] is None
    assert how["skrl"] == "no such thing"
    parameters = column(found.tables[0], "parameters")
    assert (parameters["TorchRL"], parameters["greenroom, sync"]) == ("1 687 719", None)
    assert asked.count("skrl") == 1, "who failed once is not asked again"
    assert asked.count("sb3") == TINY.repeats
    assert found.slices["A task: TorchRL"] == [100.0, 100.0]


def test_what_peers_are_told_is_what_greenroom_does() -> None:
    for task, own in ((peers._PPO, peers._atari("atari-ppo", peers._PPO)), (peers.CARTPOLE, peers.cartpole())):
        for config in own.values():
            algorithm: Any = config.algorithm
            told = (task.num_envs, task.rollout_length, task.epochs, task.minibatches)
            assert told == (config.num_envs, config.rollout_length, algorithm.epochs, algorithm.minibatches)


def test_a_peer_that_could_not_be_installed_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sb3").mkdir()
    (tmp_path / "sb3" / "why-not.txt").write_text("ERROR: no matching version\n")
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    task = peers.Task(task="atari-a2c", num_envs=2, rollout_length=2)
    assert peers.ask_peer("sb3", task, TINY) == "not installed: ERROR: no matching version"
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    assert "come with greenroom's source" in str(peers.ask_peer("sb3", task, TINY))


def test_every_peer_has_a_script_and_a_list_of_packages() -> None:
    for name in peers.PEERS:
        assert (peers.SCRIPTS / f"{name}.py").is_file()
        assert (peers.SCRIPTS / f"{name}.txt").is_file()


def script(tmp_path: Path, source: str) -> list[str]:
    path = tmp_path / "peer.py"
    path.write_text(source)
    return [sys.executable, str(path)]


LINE = '{"steps": 300, "seconds": 2.0, "version": "3.1", "setting": "fast"}'


def test_a_script_s_last_line_is_its_answer(tmp_path: Path) -> None:
    answer = ask(script(tmp_path, f"print('loading'); print(input()); print('''{LINE}''')"), limit=60, text="config\n")
    assert answer == Answer(steps=300, seconds=2.0, version="3.1", setting="fast")
    assert isinstance(answer, Answer)
    assert answer.steps_per_second == 150.0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit('it has PPO only')", "it has PPO only"),
        ("import a_peer_that_is_not_there", "ModuleNotFoundError: No module named 'a_peer_that_is_not_there'"),
        ("import os; os._exit(3)", "it ended with code 3 and said nothing"),
        ("print('done')", "its last line is no answer: 'done'"),
        ("pass", "its last line is no answer: ''"),
        ("print('{\"steps\": 3}')", "its last line is no answer: '{\"steps\": 3}'"),
    ],
)
def test_a_script_that_fails_says_why(tmp_path: Path, source: str, reason: str) -> None:
    assert ask(script(tmp_path, source), limit=60) == reason


def test_a_script_that_cannot_be_run_says_so() -> None:
    assert ask(["/nowhere/python"], limit=60) == "/nowhere/python cannot be run: No such file or directory"


def test_a_script_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "child"
    source = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    assert ask(script(tmp_path, source), limit=6) == "no answer within 6 s"
    child = int(note.read_text())
    deadline = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for its end does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


SMALL = RunConfig(env="cartpole", num_envs=4, rollout_length=4, device="cpu", threads=1)


def test_greenroom_measures_itself_in_a_process_of_its_own() -> None:
    answer = peers.ask_own(SMALL, Settings(seconds=0.1, repeats=1))
    assert isinstance(answer, Answer), answer
    assert answer.steps % SMALL.steps_per_update == 0
    assert answer.steps > 0
    assert answer.setting.startswith("sync; device")
    assert answer.more["resident"] > 1e6
    layers = (4 * 64 + 64) + (64 * 64 + 64) + (64 * 2 + 2) + (64 + 1)
    assert answer.more["parameters"] == layers


def test_a_measurement_says_in_which_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.machine.quick_bf16", lambda: "avx512_bf16")
    own = peers._atari("paac", peers._A2C)
    said: dict[str, list[str]] = {name: [] for name in own}
    for name, config in own.items():
        choose_precision(config, torch.device("cpu"), said[name].append)
    assert once._arithmetic(said["sync"]) == ["bfloat16 convolutions"]
    assert once._arithmetic(said["sync, float32"]) == []


def test_a_measurement_counts_only_after_the_warm_up() -> None:
    begin = time.perf_counter()
    answer = once.measure(SMALL, seconds=0.1, warm_up=0.2)
    assert 0.1 <= answer.seconds <= time.perf_counter() - begin - 0.2


def test_growth_tells_cost_and_memory_between_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {16: answering(1000.0, resident=1e8), 64: answering(4000.0, resident=1.48e8)}
    given: list[int] = []

    def ask_own(config: RunConfig, settings: Settings) -> Answer | str:
        given.append(config.num_envs)
        return answers[config.num_envs]() if config.num_envs in answers else "out of memory"

    monkeypatch.setattr(scale, "ask_own", ask_own)
    found = scale.growth("A run", SMALL, (16, 64, 256), TINY)
    table = found.tables[0]
    assert given == [16, 64, 256, *[16, 64] * (TINY.repeats - 1)]
    assert column(table, "µs an agent step") == {"16": 1000.0, "64": 250.0, "256": None}
    assert column(table, "÷ the size before") == {"16": None, "64": 0.25, "256": None}
    assert column(table, "KB an actor more") == {"16": None, "64": 1000.0, "256": None}
    assert column(table, "note")["256"] == "out of memory"


def test_a_promise_is_put_beside_what_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {
        "CartPole-v1": (1000.0, {"stage": "workers", "num_workers": 2}, "--num-workers 2"),
        "lost-sales": (500.0, {}, "as it is"),
    }
    trained: list[RunConfig] = []

    def ask_own(config: RunConfig, settings: Settings) -> Answer | str:
        trained.append(config)
        return answering(900.0 if config.env == "CartPole-v1" else 600.0, resident=1.0)()

    monkeypatch.setattr(promises, "consult", lambda words: said.get(words[0], "it is out"))
    monkeypatch.setattr(promises, "ask_own", ask_own)
    table = promises.promises(TINY).tables[0]
    assert {(config.env, config.stage, config.num_workers) for config in trained} == {
        ("CartPole-v1", "workers", 2),
        ("lost-sales", "auto", 0),
    }
    ratios = column(table, "reached ÷ foretold")
    assert ratios["CartPole-v1, PPO"] == ratios["CartPole-v1, DQN"] == 0.9 and ratios["lost-sales, PPO"] == 1.2
    assert number(column(table, "farthest off")["lost-sales, PPO"]) == pytest.approx(0.2)
    assert column(table, "suggestion")["CartPole-v1, PPO"] == "--num-workers 2"
    assert column(table, "suggestion")["Atari Pong, PAAC"] == "it is out" and ratios["Atari Pong, PAAC"] is None


def test_a_run_beside_busy_programs_is_put_beside_the_same_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []

    @contextmanager
    def programs(count: int) -> Iterator[None]:
        here.append(count)
        yield
        here.clear()

    def ask_own(config: RunConfig, settings: Settings) -> Answer | str:
        speed = 900.0 if config.threads == 1 else 1000.0
        return answering(speed / (1 if not here else 2 if config.threads == 1 else 50), resident=1.0)()

    monkeypatch.setattr(busy, "busy_programs", programs)
    monkeypatch.setattr(busy, "available_cores", lambda: 8)
    monkeypatch.setattr(busy, "ask_own", ask_own)
    monkeypatch.setattr(busy, "ask_peer", lambda script, task, settings: f"{script} is not installed")
    (table,) = busy.busy(TINY).tables
    shares = [(row[1], row[4]) for row in table.rows]
    assert shares == [*[("by itself", 0.02), ("1", 0.5), ("8", 0.02)] * 3, ("torch's own", None)]
    assert table.rows[-1][-1] == "sb3 is not installed" and table.rows[0][2:4] == (1000.0, 20.0)


def test_busy_programs_compute_and_end() -> None:
    with busy.busy_programs(2) as programs:
        assert len(programs) == 2
        for program in programs:  # the 14th field is its time on a core, in hundredths of a second
            while int(Path(f"/proc/{program.pid}/stat").read_text().split()[13]) < 5:
                assert program.poll() is None
                time.sleep(0.01)
    assert all(program.returncode == -signal.SIGKILL for program in programs)


@pytest.mark.parametrize("case", promises.cases(), ids=lambda case: case.name)
def test_what_the_doctor_is_asked_is_what_is_trained(case: promises.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RunConfig] = []

    def diagnose(config: RunConfig, **given: Any) -> Any:
        asked.append(config)
        raise UserError("enough")

    monkeypatch.setattr("greenroom.doctor.diagnosis.diagnose", diagnose)
    assert main(["doctor", *case.words, "--json"]) == 2
    assert asked == [case.config]


def test_what_the_doctor_cannot_do_is_told() -> None:
    assert "unknown environment 'Nowhere-v1'" in promises.consult(("Nowhere-v1",))


def test_what_a_replayed_transition_takes_is_told() -> None:
    (table,) = scale._replays().tables
    assert [row[0] for row in table.rows] == ["atari-dqn", "rainbow"]
    assert all(isinstance(row[1], float) and 7056 < row[1] < 8000 for row in table.rows)


def test_a_run_s_start_is_timed_from_the_command() -> None:
    words = ["train", "cartpole", "--num-envs", "4", "--rollout-length", "8", "--minibatches", "2", "--threads", "1"]
    seconds = scale.started(words)
    assert seconds is not None
    assert seconds > 0
    assert scale.started(["train", "cartpole", "--num-envs", "0"]) is None


def test_the_command_lists_its_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in suites.SUITES)


def test_the_command_measures_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Settings] = []

    def measure(settings: Settings) -> Findings:
        given.append(settings)
        return Findings(tables=(TABLE,))

    suite = suites.Suite(about="made up", measure=measure, seconds=7, repeats=3)
    monkeypatch.setitem(suites.SUITES, "atari", suite)
    assert main(["bench", "atari", "--output", str(tmp_path)]) == 0
    assert shown(1230.0) in capsys.readouterr().out
    assert read(tmp_path / "atari.json").findings.tables == (TABLE,)
    assert main(["bench", "atari", "--json", "--seconds", "0.5", "--repeats", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["title"] == "A table"
    assert given == [Settings(seconds=7, repeats=3), Settings(seconds=0.5, repeats=1)]


@pytest.mark.parametrize(
    ("words", "culprit", "remedy"),
    [
        (["atary"], "no suite 'atary'", "did you mean 'atari'"),
        (["atari", "--seconds", "0"], "seconds must be greater than 0", "not 0.0"),
        (["atari", "--repeats", "0"], "repeats at least 1", "and 0"),
        (["peers", "--device", "cuda"], "suite peers is measured on the CPU only", "leave out --device"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: list[str], culprit: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["bench", *words]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert culprit in message
    assert remedy in message


def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "atari", "device", "--device", "cuda"]) == 2
    assert "torch sees no GPU here; use --device cpu" in " ".join(capsys.readouterr().err.split())


def test_the_numpy_task_of_the_peers_is_greenroom_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same orders and the same demand cost the same and leave the same stock."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peers")
    import tasks  # type: ignore[import-not-found]  # beside the scripts, for environments without greenroom

    from greenroom.envs.lost_sales import LostSales

    theirs, ours = tasks.LostSales(5), LostSales()
    assert isinstance(theirs.single_action_space, gymnasium.spaces.Discrete)
    assert theirs.single_action_space.n == ours.largest_order + 1
    obs, _ = theirs.reset(seed=1)
    assert obs == pytest.approx(ours.observe({"inventory": torch.from_numpy(theirs.inventory)}).numpy())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        state = {"inventory": torch.from_numpy(theirs.inventory.copy())}
        order = torch.randint(ours.largest_order + 1, (5,), generator=generator)
        seed = int(torch.randint(1000, (1,), generator=generator))
        demand = ours._draw_demand(5, torch.Generator().manual_seed(seed), torch.device("cpu"))
        expected = ours.step(state, order, torch.Generator().manual_seed(seed))
        cost = theirs.advance(order.numpy(), demand.numpy())
        assert cost == pytest.approx(-expected.reward.numpy())
        assert theirs.inventory == pytest.approx(expected.state["inventory"].numpy())
