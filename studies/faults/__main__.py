"""`make faults`: harm every scenario at random, then the whole table of results."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shlex
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults import harm, page
from faults.environments import mishaps
from faults.kills import Start, Victim, torment
from faults.processes import COLLECTOR, WORKER, Place, Trainer, Zygote, command_line
from faults.scenarios import Scenario, chosen
from faults.soak import soak
from greenroom.envs.choose import IN_PROCESSES

FAULTS = (
    "SIGKILL to the trainer",
    "SIGKILL to the trainer",
    "SIGKILL to the trainer",
    "SIGTERM to the trainer",
    "SIGKILL to the trainer",
    "SIGINT to the trainer",
    "SIGUSR1 to the trainer",
)
"""In turn; where there are workers, every third kill is one of theirs."""
PARTS = {"kills": "kills", "harms": "other faults", "mishaps": "failures of environments that were caught"}
"""Of the results, and what people call them."""
HARMED = ("inline ppo sync", "workers dqn sync", "device a2c sync")
"""Scenarios that meet the faults which kill nobody."""


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was given on the command line."""
    made = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--seed", type=int, default=0, help="of instants, victims and bits")
    made.add_argument("--kills", type=int, default=204, help="shared out over the scenarios")
    made.add_argument("--command-line", type=int, default=10, help="further kills of `python -m greenroom` itself")
    made.add_argument("--harms", type=int, default=3, help="times that each fault which kills nobody is tried")
    made.add_argument("--mishaps", type=int, default=20, help="times that environments fail in each way")
    made.add_argument("--soak-minutes", type=float, default=30.0, help="0: no soak")
    only = "just scenarios with these words in their names, as in --only 'workers dqn' native"
    made.add_argument("--only", nargs="+", default=[], metavar="WORDS", help=only)
    made.add_argument("--out", type=Path, default=page.OUT, help="where the results go")
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if anything did not hold."""
    words = sys.argv[1:] if words is None else words
    given = options(words)
    begin, load = time.monotonic(), os.getloadavg()[0]
    suite = Suite(given.seed)
    try:
        with ThreadPoolExecutor(1) as background:
            soaked = background.submit(suite.soak, given.soak_minutes) if given.soak_minutes else None
            suite.kill(chosen(given.only), given.kills)
            suite.kill_commands(given.command_line)
            suite.harm(chosen(given.only or HARMED), given.harms)
            suite.fail(given.mishaps)
            results = suite.results(soaked)
    finally:
        suite.close()
    results["load"] = load
    results["minutes"] = round((time.monotonic() - begin) / 60, 1)
    command = " ".join(["make faults", *([f"ARGS={shlex.quote(shlex.join(words))}"] if words else [])])
    page.write(results, given.out, command)
    counts = [f"{len(results[part])} {name}" for part, name in PARTS.items()]
    print(f"{', '.join(counts)}, {len(suite.failures)} failures")
    return 1 if suite.failures else 0


class Suite:
    """What has been tried so far, and what came of it."""

    def __init__(self, seed: int) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="greenroom-faults-"))
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._kills: list[dict[str, Any]] = []
        self._harms: list[dict[str, Any]] = []
        self._mishaps: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.scenarios = 0

    def kill(self, scenarios: Sequence[Scenario], kills: int) -> None:
        """Share so many kills out over the scenarios."""
        for number, scenario in enumerate(scenarios):
            share = kills * (number + 1) // len(scenarios) - kills * number // len(scenarios)
            self._torment(scenario, share)

    def kill_commands(self, kills: int) -> None:
        """The same through `python -m greenroom`: slow to start, and nothing is left out."""
        for number, scenario in enumerate(chosen(["inline ppo sync", "workers a2c sync"])):
            self._torment(scenario, (kills + number) // 2, through_commands=True)

    def _torment(self, scenario: Scenario, share: int, *, through_commands: bool = False) -> None:
        if not share:
            return
        faults = [FAULTS[self._rng.randrange(len(FAULTS))] for _ in range(share)]
        if scenario.stage in IN_PROCESSES:
            faults[2::3] = [f"SIGKILL to {WORKER}"] * len(faults[2::3])
        if scenario.config.collect == "overlap":
            faults[1::3] = [f"SIGKILL to {COLLECTOR}"] * len(faults[1::3])

        def act(victim: Victim) -> None:
            for kill in torment(victim, faults, _say):
                self._kills.append(asdict(kill) | {"command": through_commands})

        self.scenarios += 1
        self._with_victim(scenario, act, through_commands=through_commands)

    def harm(self, scenarios: Sequence[Scenario], times: int) -> None:
        """Try each fault that kills nobody."""
        for scenario in scenarios if times else []:

            def act(victim: Victim) -> None:
                victim.in_peace()
                for name, fault in harm.FAULTS.items():
                    for _ in range(times if name != "second-trainer" else 1):
                        self._harms.append(fault(victim))
                    _say(f"{victim.scenario.name}: {name}")

            self._with_victim(scenario, act)

    def fail(self, times: int) -> None:
        """Let environments fail from within."""
        if not times:
            return
        place = Place(self._root / "environments")
        try:
            self._mishaps += [asdict(one) for one in mishaps(place, times, _say)]
        except Exception as problem:
            self.failures.append(f"environments: {type(problem).__name__}: {problem}")
            traceback.print_exc()

    def _with_victim(
        self, scenario: Scenario, act: Callable[[Victim], None], *, through_commands: bool = False
    ) -> None:
        number = next(self._numbers)
        place = Place(self._root / str(number))
        zygote = None if through_commands else Zygote(place)
        start: Start = _Commands(place) if zygote is None else zygote.start
        spare = () if zygote is None else (zygote.pid,)
        victim = Victim(scenario=scenario, place=place, start=start, spare=spare, rng=random.Random(self._rng.random()))
        try:
            act(victim)
        except Exception as problem:
            self.failures.append(f"{scenario.name}: {type(problem).__name__}: {problem}")
            traceback.print_exc()
            shutil.copytree(place.path, self._root.with_name(f"{self._root.name}-failed-{number}"))
        finally:
            if zygote is not None:
                zygote.close()
        shutil.rmtree(place.path)

    def soak(self, minutes: float) -> list[dict[str, Any]]:
        """Train for a long time."""
        place = Place(self._root / "soak")
        found = soak(place, minutes, _say)
        place.check_empty(())
        return found

    def results(self, soaked: Future[list[dict[str, Any]]] | None) -> dict[str, Any]:
        """All that was found, once the soak is over."""
        soaks: list[dict[str, Any]] = []
        try:
            soaks = [] if soaked is None else soaked.result()
        except Exception as problem:
            self.failures.append(f"soak: {type(problem).__name__}: {problem}")
        self.failures += [f"soak: {one['run']} is not flat: {one['rss']}" for one in soaks if not one["flat"]]
        found: dict[str, Any] = {"scenarios": self.scenarios, "failures": self.failures}
        return found | {"kills": self._kills, "harms": self._harms, "mishaps": self._mishaps, "soak": soaks}

    def close(self) -> None:
        """Remove what was trained."""
        shutil.rmtree(self._root, ignore_errors=True)


class _Commands:
    """Starts `python -m greenroom` each time."""

    def __init__(self, place: Place) -> None:
        self._place, self._count = place, itertools.count()

    def __call__(self, words: Sequence[str], /) -> Trainer:
        return command_line(self._place, words, f"command-{next(self._count)}")


_speaking = threading.Lock()


def _say(line: str) -> None:
    with _speaking:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
