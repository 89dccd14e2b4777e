"""How the studies run: trials as ordinary commands, side by side, and records that survive an interruption.

A study is a list of trials. A trial trains one seed into a run folder and evaluates it, by the two commands that a
person would type. What is kept of it is one record in `docs/results/<study>/results.json`; a trial that has one is not
run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from greenroom import curves, folder, machine
from greenroom.lines import read_log

ROOT = Path(__file__).resolve().parents[1]
CURVE_POINTS = 200
"""Points of a learning curve that go into the records."""

SB3 = "Stable-Baselines3"
"""What tables call it."""

Record = dict[str, Any]
"""One trial's result, as JSON.

`task`, `method`, `seed`; the two `commands`; `evaluation`, which the second of them printed; `env_steps` and `seconds`
of the training; `curve`, rows of agent steps, seconds and mean training return; `machine`; and what the study adds.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One seed of one method on one task."""

    task: str
    method: str
    """Who learns, as the table should call it."""
    seed: int
    run: Path
    """The run folder, relative to the repository."""
    train: tuple[str, ...]
    """The command that fills `run`; `greenroom` and `python` stand for those of this environment."""
    evaluate: tuple[str, ...]
    """The command that prints the evaluation of `run` as JSON."""
    resume: tuple[str, ...] = ()
    """The command that finishes a training that was interrupted; without one it starts again."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What a record is found by."""
        return self.task, self.method, self.seed

    @property
    def commands(self) -> list[str]:
        """Training and evaluation, as a person types them."""
        return [shlex.join(self.train), shlex.join(self.evaluate)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every study can be told."""

    name: str
    jobs: int
    only: tuple[str, ...]
    """Which trials to run: see `chosen_of`. The table shows whatever has records."""
    dry_run: bool
    seeds: tuple[int, ...] = ()
    episodes: int = 0
    total_steps: int | None = None
    """Agent steps for every task instead of its own budget."""
    train_args: tuple[str, ...] = ()
    """Further options for `greenroom train`."""

    @property
    def out(self) -> Path:
        """Where the evidence goes."""
        return ROOT / "docs" / "results" / self.name

    def run(self, *parts: str | int) -> Path:
        """A trial's run folder, relative to the repository."""
        return Path("runs", "studies", self.name, "-".join(str(part).replace("/", "-") for part in parts))


def runner(description: str) -> argparse.ArgumentParser:
    """The options of every study, also of one whose trials are given; `options` reads them."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--jobs", type=int, default=1, help="runs side by side; they share the cores")
    only = "run just the trials with these words in their task or method, as in: --only 'CartPole-v1 ppo' Acrobot-v1"
    made.add_argument("--only", nargs="+", default=[], metavar="WORDS", help=only)
    made.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return made


def parser(description: str, *, seeds: Sequence[int], episodes: int) -> argparse.ArgumentParser:
    """Those and the ones of a study that makes its trials; `options` reads them too."""
    made = runner(description)
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="one training run each")
    made.add_argument("--episodes", type=int, default=episodes, help="evaluation episodes of each run")
    made.add_argument("--total-steps", type=int, help="agent steps of every run, instead of each task's own budget")
    made.add_argument("--train-args", type=shlex.split, default=[], help="further options for greenroom train, quoted")
    return made


def options(name: str, given: argparse.Namespace) -> Options:
    """What was given on the command line of study `name`; a study's own options are for it to read."""
    known = [item.name for item in fields(Options)]
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in vars(given).items()
    }
    return Options(name=name, **{key: value for key, value in told.items() if key in known})


def greenroom_trial(
    chosen: Options,
    *,
    task: str,
    env: str,
    method: str,
    seed: int,
    run: Path,
    total_steps: int,
    settings: Sequence[str],
) -> Trial:
    """A trial of greenroom's own: `greenroom train`, then `greenroom evaluate --json`.

    Args:
        chosen: the study's options.
        task: what the table calls it.
        env: what `greenroom train` calls it.
        method: what the table calls the learner.
        seed: of the training; the evaluation's seed is the same for every trial.
        run: the run folder.
        total_steps: agent steps.
        settings: further options of `greenroom train`.
    """
    steps = str(chosen.total_steps or total_steps)
    asked = ("--total-steps", steps, "--seed", str(seed), "--run-dir", str(run), *settings, *chosen.train_args)
    return Trial(
        task=task,
        method=method,
        seed=seed,
        run=run,
        train=("greenroom", "train", env, *asked),
        evaluate=("greenroom", "evaluate", str(run), *evaluation(chosen)),
        resume=("greenroom", "resume", str(run)),
    )


def sb3_trial(chosen: Options, *, task: str, env: str, algo: str, seed: int, run: Path, total_steps: int) -> Trial:
    """A trial of Stable-Baselines3, by commands of the same shape: see `greenroom_trial`.

    `algo` is its name in `sb3_settings.SETTINGS`, which has the settings.
    """
    script, words = "studies/sb3_baselines.py", (env, "--algo", algo)
    return script_trial(
        chosen, script=script, task=task, method=SB3, seed=seed, run=run, total_steps=total_steps, words=words
    )


def script_trial(
    chosen: Options,
    *,
    script: str,
    task: str,
    method: str,
    seed: int,
    run: Path,
    total_steps: int,
    words: Sequence[str] = (),
) -> Trial:
    """A trial of somebody else's, by a script that uses `rivals.verbs`; `words` come first after its `train`."""
    steps = str(chosen.total_steps or total_steps)
    asked = ("--seed", str(seed), "--total-steps", steps, "--run-dir", str(run))
    return Trial(
        task=task,
        method=method,
        seed=seed,
        run=run,
        train=("python", script, "train", *words, *asked),
        evaluate=("python", script, "evaluate", str(run), *evaluation(chosen)),
    )


def evaluation(chosen: Options) -> tuple[str, ...]:
    """The options of every evaluation: the greedy policy, on episodes that are the same for all."""
    return "--episodes", str(chosen.episodes), "--seed", "1000", "--json"


def chosen_of(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """The trials that one of `only` fits: all its words are in the trial's task or method. Without any, all trials.

    Raises:
        SystemExit: one of them fits no trial.
    """
    fitting: dict[tuple[str, str, int], Trial] = {}
    for choice in only:
        wanted = set(choice.split())
        found = {trial.key: trial for trial in trials if wanted <= {*trial.task.split(), *trial.method.split()}}
        if not found:
            known = sorted({word for trial in trials for word in (*trial.task.split(), *trial.method.split())})
            raise SystemExit(f"--only {choice!r} fits no trial; the words are {', '.join(known)}")
        fitting |= found
    return [trial for trial in trials if not only or trial.key in fitting]


def records_of(name: str) -> list[Record]:
    """The records that study `name` has so far."""
    path = ROOT / "docs" / "results" / name / "results.json"
    records: list[Record] = json.loads(path.read_text())["records"] if path.exists() else []
    return records


def run_trials(
    trials: Sequence[Trial], chosen: Options, extra: Callable[[Path], Record] = lambda run: {}
) -> list[Record]:
    """Run the trials that have no record yet and return all records of the study, in the order of `trials`.

    Args:
        trials: the study's trials; `chosen.only` selects among them.
        chosen: the study's options.
        extra: reads further fields for the record from a finished run folder.

    Raises:
        SystemExit: a dry run is over, a record came from another command than the trial's, or a command failed (its log
            is named). The records so far are kept.
    """
    path = chosen.out / "results.json"
    records = {_key(record): record for record in records_of(chosen.name)}
    wanted = chosen_of(trials, chosen.only)
    for trial in wanted:
        if trial.key in records and records[trial.key]["commands"] != trial.commands:
            raise SystemExit(
                f"{path.relative_to(ROOT)} has {trial.key} from another command; delete that line to run this one"
            )
    waiting = [trial for trial in wanted if trial.key not in records]
    print(f"{chosen.name}: {len(wanted)} trials, {len(wanted) - len(waiting)} of them have a record.", flush=True)
    if chosen.dry_run:
        for trial in waiting:
            print(*trial.commands, sep="\n")
        raise SystemExit(0)
    stopping = threading.Event()
    with ThreadPoolExecutor(chosen.jobs) as pool:
        running = {pool.submit(_run, trial, chosen.jobs, stopping, extra): trial for trial in waiting}
        try:
            for future in as_completed(running):
                trial = running[future]
                record = records[trial.key] = future.result()
                _save(path, records)
                score, seconds = record["evaluation"]["mean"], record["seconds"]
                print(f"{trial.task}, {trial.method}, seed {trial.seed}: {score:.2f} after {seconds:.0f} s", flush=True)
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = {trial.key: place for place, trial in enumerate(trials)}
    return sorted(records.values(), key=lambda record: order.get(_key(record), len(order)))


def _key(record: Record) -> tuple[str, str, int]:
    return record["task"], record["method"], record["seed"]


def _save(path: Path, records: dict[tuple[str, str, int], Record]) -> None:
    """Write the records, one a line, so that another seed is another line for git."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(records[key], allow_nan=False) for key in sorted(records))
    environment = json.dumps(folder.describe_environment(), indent=1)
    folder.write_text(path, f'{{"environment": {environment},\n"records": [\n{lines}\n]}}\n')


def _run(trial: Trial, jobs: int, stopping: threading.Event, extra: Callable[[Path], Record]) -> Record:
    """Train, unless that is done, evaluate, and make the record."""
    run = ROOT / trial.run
    # Beside the run folder, not in it: the folder belongs to the run. The state: the command, and whether it has ended.
    state, log = run.with_name(f"{run.name}.state"), run.with_name(f"{run.name}.log")
    run.parent.mkdir(parents=True, exist_ok=True)
    before = state.read_text() if state.exists() else ""
    started, trained = f"started: {trial.commands[0]}\n", f"trained: {trial.commands[0]}\n"
    if before != trained:
        again = bool(trial.resume) and before == started and any(run.glob("checkpoints/*"))
        if not again and run.exists():
            shutil.rmtree(run)
        state.write_text(started)
        _command(trial.resume if again else trial.train, log, jobs, stopping)
        state.write_text(trained)
    answer = _command(trial.evaluate, log, jobs, stopping)
    last = read_log(run / "metrics.jsonl")[-1]
    curve = curves.read_curve(run / "metrics.jsonl", "return_mean")
    if not len(curve):
        raise SystemExit(f"{trial.run} has no training return: not one episode ended")
    return {
        "task": trial.task,
        "method": trial.method,
        "seed": trial.seed,
        "commands": trial.commands,
        "evaluation": json.loads(answer),
        "env_steps": last["env_steps"],
        "seconds": round(last["seconds"], 1),
        "curve": _thin(curve),
        # What the health checks found, by default settings; of runs of others nothing is known.
        "findings": found_in(run) if folder.is_run(run) else None,
        "machine": {"cpu": machine.cpu_kind(), "cores": machine.available_cores(), "jobs": jobs},
        # Here and not where the record is saved: the next trial may not start while this one is still being looked at.
        **extra(run),
    }


def found_in(run: Path) -> list[str]:
    """The names of the health checks that found something in a run, once for each finding."""
    return [line["check"] for line in read_log(run / "findings.jsonl")]


def evaluations_of(run: Path) -> list[list[float]]:
    """The greedy evaluations on the way: rows of agent steps, seconds and mean return."""
    curve = curves.read_curve(run / "evaluations.jsonl", "mean")
    return np.stack([curve.env_steps, curve.seconds, curve.score], axis=1).tolist()  # type: ignore[no-any-return]


def _thin(curve: curves.Curve) -> list[list[float]]:
    """At most `CURVE_POINTS` rows of agent steps, seconds and mean return, the last one among them."""
    kept = slice(None, None, -max(1, -(-len(curve) // CURVE_POINTS)))
    columns = zip(curve.env_steps[kept], curve.seconds[kept], curve.score[kept], strict=True)
    return [[int(steps), round(float(seconds), 1), round(float(score), 3)] for steps, seconds, score in columns][::-1]


def _command(words: Sequence[str], log: Path, jobs: int, stopping: threading.Event) -> str:
    """Run one command from the repository's root, what it says on stderr into `log`; returns what it printed."""
    if stopping.is_set():
        raise SystemExit(130)
    here = Path(sys.executable)
    program = str(here if words[0] == "python" else here.with_name(words[0]))
    threads = str(max(1, machine.available_cores() // jobs))
    with log.open("a") as errors:
        done = subprocess.run(
            [program, *words[1:]],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        errors.write(done.stdout)
    if done.returncode != 0:
        # An interrupt from the keyboard reaches the command too: its exit code is then no failure of its own.
        if stopping.is_set():
            raise SystemExit(130)
        raise SystemExit(f"failed with exit code {done.returncode}: {shlex.join(words)}\nIts log: {log}")
    return done.stdout
