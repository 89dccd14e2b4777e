"""Whether a run reaches what `greenroom doctor` said it would."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from dataclasses import dataclass
from typing import Any

from greenroom.bench.peers import ask_own
from greenroom.bench.report import Cell, Findings, Settings, Table
from greenroom.bench.scripts import told
from greenroom.bench.synthetic import BUSY, loops_for
from greenroom.config import RunConfig
from greenroom.presets import preset

_PATIENCE = 240.0
"""Seconds that the doctor may take; it means to take 40, and starting environments, and compiling, comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run that the doctor is asked about, as words and as what they stand for."""

    name: str
    words: tuple[str, ...]
    config: RunConfig


def cases() -> list[Case]:
    """Every stage once: tensors, C++, and Python that is cheap, dear, and learned from with a replay."""
    loops = loops_for(500e-6)
    busy = dataclasses.replace(preset(None, BUSY), env_kwargs={"loops": loops})
    found = [
        Case(name="lost-sales, PPO", words=("lost-sales",), config=preset(None, "lost-sales")),
        Case(name="CartPole-v1, PPO", words=("CartPole-v1",), config=preset(None, "CartPole-v1")),
        Case(
            name="CartPole-v1, DQN",
            words=("CartPole-v1", "--algo", "dqn"),
            config=preset(None, "CartPole-v1", algo="dqn"),
        ),
        Case(name="500 µs a step, PPO", words=(BUSY, "--env.loops", str(loops)), config=busy),
        Case(name="Atari Pong, PAAC", words=("ALE/Pong-v5", "--preset", "paac"), config=preset("paac", "ALE/Pong-v5")),
    ]
    on_cpu = ("--device", "cpu")
    return [
        dataclasses.replace(case, words=(*case.words, *on_cpu), config=dataclasses.replace(case.config, device="cpu"))
        for case in found
    ]


def promises(settings: Settings) -> Findings:
    """Ask the doctor, do as it says, and count; each in processes of their own."""
    rows: list[tuple[Cell, ...]] = []
    slices: dict[str, list[float]] = {}
    for case in cases():
        foretold: list[float] = []
        reached: list[float] = []
        notes: list[str] = []
        for _ in range(settings.repeats):
            said = consult(case.words)
            if isinstance(said, str):
                notes.append(said)
                continue
            rate, options, words = said
            answer = ask_own(dataclasses.replace(case.config, **options), settings)
            if isinstance(answer, str):
                notes.append(answer)
                continue
            foretold.append(rate)
            reached.append(answer.steps_per_second)
            notes.append(words)
        slices |= {f"{case.name}, foretold": foretold, f"{case.name}, reached": reached}
        ratios = [real / said for real, said in zip(reached, foretold, strict=True)]
        numbers = [statistics.median(values) if values else None for values in (foretold, reached, ratios)]
        worst = max((abs(ratio - 1.0) for ratio in ratios), default=None)
        rows.append((case.name, *numbers, worst, "; ".join(dict.fromkeys(notes))))
    table = Table(
        title="What the doctor says, and what comes of it",
        about="`greenroom doctor` is asked, and its suggestion (or, where it has none, the run as it is) trains in a "
        "process of its own. Target: within 0.15 of what it said.",
        headings=("run", "foretold, steps/s", "reached", "reached ÷ foretold", "farthest off", "suggestion"),
        rows=tuple(rows),
    )
    return Findings(tables=(table,), slices=slices)


def consult(words: tuple[str, ...]) -> tuple[float, dict[str, Any], str] | str:
    """What the doctor says of a run: steps a second, the settings for that, and the words for them. Or why nothing."""
    found = told([sys.executable, "-m", "greenroom", "doctor", *words, "--json"], limit=_PATIENCE)
    if isinstance(found, str):
        return found
    suggestion = found["suggestion"] or {"options": {}, "words": "as it is"}
    return found["expected"]["steps_per_second"], suggestion["options"], suggestion["words"]
