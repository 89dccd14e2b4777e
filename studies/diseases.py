"""How soon the default health checks notice that a run has fallen ill, and that they are silent while it is well.

Every learner trains, healthy, up to an update k; from the very same state it goes on once with each disease until a
check finds something, and once without any to its end. The latter are the controls: any finding there is a false one.
Throughput is not watched: it would measure the machine, which others may use.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import patients
from greenroom import machine
from greenroom.algorithms import change_learning_rate
from greenroom.config import RunConfig
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.errors import EnvironmentFault
from greenroom.folder import write_json, write_text
from greenroom.health.learning import ThroughputDrop
from greenroom.health.settings import HealthConfig
from greenroom.monitor import Monitor
from greenroom.presets import preset
from greenroom.training import Run, train
from harness import records_of

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "diseases"
DISEASES = (
    "nan reward",
    "flipped reward",
    "huge reward",
    "frozen observations",
    "dead actor",
    "learning rate ×100",
)
SETTINGS = HealthConfig(throughput_drop=ThroughputDrop(on_throughput_drop="off"))

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A learner on a task."""

    env: str
    algo: str
    until: int
    """Updates of the healthy run. Fewer than the preset's are less than its budget; schedules are the preset's."""
    ill_at: int = 0
    """The update after which the diseases begin; 0: only a control."""
    patience: int = 100
    """Updates that a disease is given to be found in."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What differs from the preset."""
    seeds: tuple[int, ...] = (1, 2, 3)
    label: str = ""
    """What the table calls it; by default by environment and algorithm."""

    @property
    def name(self) -> str:
        """As the table calls it."""
        return self.label or f"{self.env} {self.algo}"

    def config(self, seed: int) -> RunConfig:
        """The preset of the environment's family, on patients."""
        start = dataclasses.replace(preset(None, self.env, algo=self.algo), seed=seed, threads=1, monitor=SETTINGS)
        start = dataclasses.replace(start, **self.settings)
        if not self.ill_at:
            return start
        if self.env in DEVICE_ENVIRONMENTS:
            return dataclasses.replace(start, env=f"{self.env}-patients")
        return dataclasses.replace(start, env="patients:gym", env_kwargs={"env_id": self.env}, stage="inline")


TABLE = (
    Patient(env="CartPole-v1", algo="a2c", until=1600, ill_at=800, settings={"total_steps": 500_000}),
    Patient(env="CartPole-v1", algo="ppo", until=98, ill_at=50, settings={"total_steps": 100_000}),
    Patient(env="CartPole-v1", algo="pqn", until=200, ill_at=100, settings={"total_steps": 200_000}),
    Patient(
        env="lost-sales",
        algo="ppo",
        until=80,
        ill_at=40,
        patience=40,
        settings={"num_envs": 512, "total_steps": 10_000_000 // 8, "eval_episodes": 512},
    ),
    Patient(
        env="CartPole-v1",
        algo="dqn",
        until=781,
        ill_at=400,
        patience=380,
        settings={"total_steps": 100_000},
    ),
    Patient(env="Pendulum-v1", algo="sac", until=450, ill_at=380, patience=150),
    Patient(env="Acrobot-v1", algo="ppo", until=196, settings={"total_steps": 200_000}, seeds=(1,)),
    Patient(env="Acrobot-v1", algo="a2c", until=1000, settings={"total_steps": 200_000}, seeds=(1,)),
    Patient(env="CartPole-v1", algo="nstep-q", until=600, settings={"total_steps": 300_000}, seeds=(1,)),
    Patient(env="CartPole-v1", algo="vtrace", until=600, settings={"total_steps": 300_000}, seeds=(1,)),
    Patient(env="LunarLander-v3", algo="ppo", until=150, settings={"total_steps": 500_000}, seeds=(1,)),
    Patient(env="Pendulum-v1", algo="td3", until=800, seeds=(1,)),
    Patient(env="InvertedPendulum-v5", algo="ppo", until=40, settings={"total_steps": 100_000}, seeds=(1,)),
    Patient(env="lost-sales", algo="ppo", label="lost-sales ppo, 4096 actors", until=40, seeds=(1,)),
    Patient(
        env="ALE/Pong-v5",
        algo="ppo",
        until=60,
        settings={
            "monitor": dataclasses.replace(SETTINGS, look_every=1)
        },  # the default, every 19th update, makes too few looks
        seeds=(1,),
    ),
)


def watch(run: Run) -> tuple[Monitor, list[Record]]:
    """A monitor as a session has one, and where its findings go."""
    found: list[Record] = []

    def refuse(request: Any, user: str) -> None:
        raise AssertionError("the default actions change no run")

    return Monitor(run, intervene=refuse, record=lambda one: found.append(dict(one)), say=lambda line: None), found


def examine(patient: Patient, seed: int) -> list[Record]:
    """The control of one seed, and how each disease was found from its state at the update `ill_at`."""
    patients.nobody_is_born()
    patients.OUTBREAK["disease"] = ""
    config = patient.config(seed)
    records: list[Record] = []
    run = Run(config, say=lambda line: None)
    try:
        monitor, found = watch(run)
        start, watching, states = time.process_time(), 0.0, []
        for progress in train(run):
            before = time.thread_time()
            monitor.look(progress)
            watching += time.thread_time() - before
            if progress.updates == patient.ill_at:
                states.append(copy.deepcopy((run.state_dict(), monitor.state_dict())))
            if progress.updates >= patient.until:
                break
        records.append(
            {
                "patient": patient.name,
                "seed": seed,
                "disease": "none",
                "updates": run.updates,
                "env_steps": run.env_steps,
                "looks": run.updates // config.monitor.every(config.total_steps // config.steps_per_update),
                "findings": [{"check": one["check"], "message": one["message"]} for one in found],
                "cpu_seconds": round(spent := time.process_time() - start, 1),
                "watching": watching / spent,
            }
        )
        for of_run, of_monitor in states:
            for disease in DISEASES:
                run.load_state_dict(copy.deepcopy(of_run))
                records.append(fall_ill(run, of_monitor, patient, seed, disease))
    finally:
        run.close()
    return records


def fall_ill(run: Run, memory: Record, patient: Patient, seed: int, disease: str) -> Record:
    """Go on with a disease until it is found, or the patience is over."""
    monitor, found = watch(run)
    monitor.load_state_dict(memory)
    record: Record = {"patient": patient.name, "seed": seed, "disease": disease, "ill_at": run.updates}
    patients.OUTBREAK["disease"] = disease
    if disease == "learning rate ×100":
        change_learning_rate(run.algorithm, to=None, by=100.0)
    try:
        for progress in train(run):
            monitor.look(progress)
            if found or progress.updates - record["ill_at"] >= patient.patience:
                break
    except EnvironmentFault as problem:
        return record | {"found_after": 0, "check": "EnvironmentFault", "message": str(problem)}
    finally:
        patients.OUTBREAK["disease"] = ""
    first = found[0] if found else {"check": "", "message": ""}
    after = run.updates - record["ill_at"] if found else None
    return record | {"found_after": after, "check": first["check"], "message": first["message"]}


def table(records: list[Record]) -> str:
    """What was measured, for a person."""
    lines = [
        "# How soon diseases are found",
        "",
        "Updates from the outbreak to the first finding of a check with default settings, one number a seed, and which "
        "check it was; `–`: not found in the updates that were given.",
        "",
        f"| learner | {' | '.join(DISEASES)} |",
        f"|---|{'---|' * len(DISEASES)}",
    ]
    names = dict.fromkeys(one["patient"] for one in records)
    for name in names:
        ill = [one for one in records if one["patient"] == name and one["disease"] != "none"]
        if ill:
            lines.append(f"| {name} | {' | '.join(cell(ill, disease) for disease in DISEASES)} |")
    lines += ["", "Healthy controls, with the same settings:", ""]
    lines += ["| learner | seeds | updates each | agent steps each | looks each | findings | share of CPU time |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in names:
        well = [one for one in records if one["patient"] == name and one["disease"] == "none"]
        count = sum(len(one["findings"]) for one in well)
        first = well[0]
        lines.append(
            f"| {name} | {len(well)} | {first['updates']} | {first['env_steps']} | {first['looks']} | {count} "
            f"| {share_of(well)} |"
        )
    lines += [
        "",
        "An `EnvironmentFault` ends the run before the update: the stage refuses what is no number. Runs shorter than "
        "the budgets of the other studies are cut short, not compressed: their schedules are those of the full budget.",
        "The last column is what watching costs: CPU time within `Monitor.look` beside that of the whole control run. "
        "Throughput was not watched, for the machine was shared. Made by `make study-diseases`; "
        "every finding's words: [results.json](results.json).",
    ]
    return "\n".join(lines) + "\n"


def share_of(records: list[Record]) -> str:
    """Mean share of the time, where it was measured."""
    shares = [one["watching"] for one in records if "watching" in one]
    return f"{100 * sum(shares) / len(shares):.2f} %" if shares else "–"


def cell(records: list[Record], disease: str) -> str:
    """`2, 3, 2 reward_shift`."""
    own = [one for one in records if one["disease"] == disease]
    checks = dict.fromkeys(one["check"] for one in own if one["check"])
    after = ", ".join("–" if one["found_after"] is None else str(one["found_after"]) for one in own)
    return f"{after} {'/'.join(checks)}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="patients whose name holds one of these")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of each patient's own")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path, records = OUT / "results.json", records_of("diseases")
    done = {(one["patient"], one["seed"]) for one in records}
    OUT.mkdir(parents=True, exist_ok=True)
    for patient in TABLE:
        for seed in chosen.seeds or patient.seeds:
            wanted = not chosen.only or any(word in patient.name for word in chosen.only)
            if not wanted or (patient.name, seed) in done:
                continue
            new = examine(patient, seed)
            records += new
            for one in new:
                print(
                    one["patient"], seed, one["disease"], one.get("found_after", one.get("findings")), one.get("check")
                )
            write_json(path, {"machine": {"cpu": machine.cpu_kind()}, "records": records})
            write_text(OUT / "table.md", table(records))


if __name__ == "__main__":
    main()
