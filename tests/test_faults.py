"""A little of `make faults`: real processes killed at random instants, resumed, and compared bit by bit."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from faults import harm, page, runs, soak
from faults.__main__ import FAULTS
from faults.environments import mishaps
from faults.kills import Victim, torment
from faults.processes import Failure, Place, Zygote, command_line, wait_until
from faults.scenarios import Scenario, chosen, every, scenario
from greenroom.algorithms import ALGORITHMS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes where Linux shows them")

WORKER, COLLECTOR = "SIGKILL to a worker", "SIGKILL to the collector"
SHORT = 768
"""Steps."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Zygote]]:
    place = Place(tmp_path_factory.mktemp("faults"))
    zygote = Zygote(place)
    yield place, zygote
    zygote.close()
    place.check_empty(())


def victim(home: tuple[Place, Zygote], tmp_path: Path, harmed: Scenario) -> Victim:
    place, zygote = home
    return Victim(
        scenario=harmed,
        place=place,
        start=zygote.start,
        spare=(zygote.pid,),
        rng=random.Random(0),
        notice_seconds=30.0,  # `make faults` demands one; here others may use the machine
        folder=tmp_path,
    )


@pytest.mark.parametrize(
    ("harmed", "faults"),
    [
        (scenario("inline", "dqn", total_steps=SHORT), ["SIGKILL to the trainer", "SIGTERM to the trainer"]),
        (scenario("device", "sac", total_steps=SHORT), ["SIGKILL to the trainer", "SIGINT to the trainer"]),
        (scenario("workers", "ppo", "overlap", total_steps=8 * SHORT), ["SIGKILL to the trainer", WORKER, COLLECTOR]),
        (scenario("joint", "ppo", total_steps=SHORT), [WORKER]),
    ],
    ids=lambda value: value.name if isinstance(value, Scenario) else "",
)
def test_killed_and_resumed_nothing_is_lost_and_nothing_left(
    home: tuple[Place, Zygote], tmp_path: Path, harmed: Scenario, faults: list[str]
) -> None:
    done = torment(victim(home, tmp_path, harmed), faults, lambda line: None)
    assert [kill.fault for kill in done] == faults
    codes = {"SIGKILL to the trainer": {-9}, "SIGTERM to the trainer": {5, -15}, "SIGINT to the trainer": {3, -2}}
    assert all(kill.code in codes.get(kill.fault, {2}) for kill in done), done
    assert all(kill.told is not None for kill in done if kill.fault in (WORKER, COLLECTOR)), done
    # What the process that collects notices is not written down there.
    here = [kill for kill in done if kill.fault == WORKER and harmed.config.collect != "overlap"]
    assert all(kill.noticed is not None for kill in here)


def test_a_disk_that_refuses_and_bits_that_flip(home: tuple[Place, Zygote], tmp_path: Path) -> None:
    # Long enough not to be at its end when the disk refuses.
    harmed = victim(home, tmp_path, scenario("inline", "a2c", total_steps=4 * SHORT))
    harmed.in_peace()
    for fault in (harm.full_disk, harm.read_only, harm.flipped_bit):
        fault(harmed)


def test_the_table_names_every_algorithm_on_every_stage_and_every_mode() -> None:
    found = {(one.stage, one.algo) for one in every()}
    assert found >= {(stage, algo) for stage in ("inline", "workers", "device") for algo in ALGORITHMS}
    assert {stage for stage, _ in found} == {"inline", "workers", "joint", "device", "native"}
    assert {one.config.collect for one in every()} == {"sync", "double", "overlap"}
    assert {one.name for one in chosen(["workers dqn", "native"])} == {
        "workers, dqn, sync",
        "workers, dqn, overlap",
        "native, ppo, sync, ALE/Pong-v5",
        "native, ppo, sync, envpool:CartPole-v1",
    }
    with pytest.raises(SystemExit, match="fits no scenario"):
        chosen(["inline sarsa"])
    assert all(getattr(signal, fault.partition(" ")[0]) for fault in FAULTS)


def test_what_is_left_behind_is_found(tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    idle = command_line(place, ["train", "probe-constant", "--total-steps", "1000000000", "--quiet"], "idle")
    try:
        wait_until(lambda: place.processes(), idle)
        (place.temporary / "forgotten").touch()
        assert len(place.leftovers()) == 2 and place.leftovers(spare=[idle.pid]) == ["temporary file forgotten"]
        with pytest.raises(Failure, match=r"left behind after 0 s: process \d+: .*temporary file forgotten"):
            place.check_empty((), within=0.0)
    finally:
        idle.send(signal.SIGKILL)
        idle.wait()


def test_memory_is_flat_or_not() -> None:
    def samples(grows: float, threads: int = 2) -> list[dict[str, float]]:
        late = range(60)
        return [
            {
                "seconds": 10.0 * n,
                "env_steps": n,
                "rss": (100 + grows * n) * 2**20,
                "fds": 9,
                "threads": 2 + (n > 50) * threads,
            }
            for n in late
        ]

    flat, growing, more = soak.judge(samples(0.0, 0)), soak.judge(samples(0.1, 0)), soak.judge(samples(0.0))
    assert flat["flat"] and flat["rss"] == {"level": 100.0, "largest": 100.0, "growth": 0.0, "more": False}
    assert not growing["flat"] and growing["rss"]["growth"] == pytest.approx(39 * 0.1 / 104, rel=0.01)
    assert not more["flat"] and more["threads"]["more"]


def test_a_difference_of_one_bit_is_found() -> None:
    one = {"a": [torch.zeros(3), 1.0, float("nan")], "b": torch.tensor(0.0)}
    assert list(runs.differences(one, {"a": [torch.zeros(3), 1.0, float("nan")], "b": torch.tensor(0.0)}, "s")) == []
    other = {"a": [torch.zeros(3), 1, float("nan")], "b": torch.tensor(-0.0)}
    assert list(runs.differences(one, other, "s")) == ["s/a/1: float and int", "s/b: torch.float32 () differ"]


def test_the_page_keeps_what_was_not_run_again(tmp_path: Path) -> None:
    kill = {"scenario": "inline, ppo, sync", "fault": "SIGKILL to the trainer", "seconds": 0.1, "gone": 0.2}
    kill |= {"recovered": 0.5, "repeated": 32, "command": False, "at": 1.0, "noticed": None}
    other = kill | {"scenario": "device, ppo, sync"}
    first = {"kills": [kill, other], "harms": [], "soak": [], "failures": [], "minutes": 1.0, "load": 0.5}
    page.write(first, tmp_path, "make faults")
    again = kill | {"seconds": 0.3}
    page.write(first | {"kills": [again], "harms": [{"fault": "a bit flips"}]}, tmp_path, "make faults again")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["kills"] == [again, other]
    assert [(one["command"], one["parts"]) for one in kept["ran"]] == [
        ("make faults", ["kills"]),
        ("make faults again", ["kills", "harms"]),
    ]
    table = (tmp_path / "table.md").read_text()
    assert "| SIGKILL to the trainer | 2 |  | 0.20 / 0.30 | 0.20 / 0.20 | 0.50 / 0.50 |" in table
    assert "| a bit flips | 1 |" in table and "| inline, ppo, sync | 1 | 32 | the same bits |" in table


def test_environments_that_fail_are_caught_and_told_of(tmp_path: Path) -> None:
    found = mishaps(Place(tmp_path), 2, lambda line: None, ["inline", "device"])
    assert {one.choice for one in found} == {"stop", "restart"}
    assert len({one.fault for one in found}) == 6 and len(found) >= 24
    results = {"kills": [], "harms": [], "mishaps": [asdict(one) for one in found], "soak": []}
    page.write(results | {"failures": [], "minutes": 0.1, "load": 0.5}, tmp_path, "make faults")
    assert "| inline | reset raises | 2 |" in (tmp_path / "table.md").read_text()
