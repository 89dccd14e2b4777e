"""Faults that kill nobody: a disk that fills up or becomes read-only, a bit that flips, a second trainer."""

from __future__ import annotations

import dataclasses
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults import runs
from faults.kills import Victim
from faults.processes import Failure, Trainer, command_line, wait_until
from greenroom import checkpoint
from greenroom.config import dump
from greenroom.errors import ExitCode

Result = dict[str, Any]
"""`scenario`, `fault`, and what was seen."""


def full_disk(victim: Victim) -> Result:
    """From a random instant on no file may grow beyond 1000 bytes; after a while it may again.

    The kernel refuses, in the trainer's own system calls, as it does on a disk that is full.
    """

    @contextmanager
    def full(trainer: Trainer) -> Iterator[None]:
        before = resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (1000, before[1]))
        yield
        if trainer.alive():
            resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, before)

    return _refusing(victim, "the disk is full for a while", full)


def read_only(victim: Victim) -> Result:
    """From a random instant on the run's folders may not be written; after a while they may again."""

    @contextmanager
    def closed(trainer: Trainer) -> Iterator[None]:
        folders = [victim.run, *(path for path in victim.run.rglob("*") if path.is_dir() and path.name[0] != ".")]
        folders = [path for path in folders if not path.name.startswith("step_")]
        for folder in folders:
            folder.chmod(0o555)
        try:
            yield
        finally:
            for folder in folders:
                folder.chmod(0o755)

    return _refusing(victim, "the folder is read-only for a while", closed)


def _refusing(victim: Victim, fault: str, refusing: Callable[[Trainer], Any]) -> Result:
    """Train on through a time in which nothing can be saved: a warning, no loss, and the same run in the end."""
    steps, every = victim.scenario.config.total_steps, victim.scenario.config.save_interval
    trainer = victim.start(victim.words)
    wait_until(lambda: checkpoint.latest(victim.run / "checkpoints"), trainer)
    time.sleep(victim.rng.uniform(0.0, 0.2) * victim.duration)
    with refusing(trainer):
        began, before = time.monotonic(), checkpoint.latest(victim.run / "checkpoints")
        wait_until(lambda: "training goes on" in trainer.err.read_text(), trainer)
        noticed = time.monotonic() - began
        newest = runs.check_sound(victim.run)
        if (
            newest is None
            or before is None
            or checkpoint.env_steps_of(newest) > checkpoint.env_steps_of(before) + every
        ):
            raise Failure(f"{fault}: the newest checkpoint was {before} and is {newest}")
    if (code := trainer.wait()) != ExitCode.DONE:
        raise Failure(f"{fault}: exit code {code}: {trainer.said[-500:]}")
    if "again" not in trainer.said and "is whole again" not in trainer.said:
        raise Failure(f"{fault}: nobody said that it is over: {trainer.said[-500:]}")
    victim.place.check_empty(victim.spare)
    runs.check_whole(victim.run, steps)
    # Of a moment that could not be saved there is no checkpoint, nor can it be marked as the best.
    runs.check_same(victim.run, victim.reference, gaps=True)
    shutil.rmtree(victim.run)
    return {"scenario": victim.scenario.name, "fault": fault, "noticed": round(noticed, 3)}


def flipped_bit(victim: Victim) -> Result:
    """One bit of a file of the newest checkpoint of a killed run: said so, and the one before is used."""
    trainer = victim.start(victim.words)
    wait_until(lambda: len(checkpoint.every(victim.run / "checkpoints")) > 2, trainer)
    trainer.send(signal.SIGKILL)
    trainer.wait()
    newest, before = checkpoint.every(victim.run / "checkpoints")[:-3:-1]
    file = victim.rng.choice(sorted(path for path in newest.iterdir() if path.is_file()))
    _flip(file, victim.rng)
    trainer = victim.start(victim.words)
    code = trainer.wait()
    replay = file.name.startswith("transient")
    wanted = newest if replay else before
    if (
        code != ExitCode.DONE
        or f"{newest} is damaged" not in trainer.said
        or f"going back to {wanted}" not in trainer.said
    ):
        raise Failure(f"a flipped bit in {file.name}: exit code {code}: {trainer.said[-800:]}")
    runs.check_whole(victim.run, victim.scenario.config.total_steps)
    # An older checkpoint has no replay: what is learned from a new one is something else.
    if "it begins empty" not in trainer.said:
        runs.check_same(victim.run, victim.reference)
    victim.place.check_empty(victim.spare)
    shutil.rmtree(victim.run)
    return {"scenario": victim.scenario.name, "fault": "a bit flips in the newest checkpoint", "file": file.name}


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)


def second_trainer(victim: Victim) -> Result:
    """Another `resume` of a run that is being trained: refused, with the id of the first, which does not notice."""
    config = dataclasses.replace(victim.scenario.config, total_steps=10**9)
    endless = victim.place.path / "endless.yaml"
    endless.write_text(dump(config))
    trainer = victim.start(["train", "--config", str(endless), "--run-dir", str(victim.run)])
    wait_until(lambda: checkpoint.latest(victim.run / "checkpoints"), trainer)
    second = command_line(victim.place, ["resume", str(victim.run)], "second")
    code, began = second.wait(), victim.logged
    if code != ExitCode.ERROR or f"is being trained in by process {trainer.pid}" not in second.said:
        raise Failure(f"a second trainer ended with exit code {code}: {second.said[-500:]}")
    wait_until(lambda: victim.logged > began, trainer)
    trainer.send(signal.SIGTERM)
    if (code := trainer.wait()) != ExitCode.PREEMPTED:
        raise Failure(f"the first trainer ended with exit code {code}: {trainer.said[-500:]}")
    victim.place.check_empty(victim.spare)
    shutil.rmtree(victim.run)
    return {"scenario": victim.scenario.name, "fault": "a second process opens the run"}


FAULTS: dict[str, Callable[[Victim], Result]] = {
    "full-disk": full_disk,
    "read-only": read_only,
    "flipped-bit": flipped_bit,
    "second-trainer": second_trainer,
}
"""By the name that `--harm` knows."""
