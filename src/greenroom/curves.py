"""What a run wrote, read back: its configuration, and its scores over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.lines import read_lines, record_of
from greenroom.maths.statistics import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One run's score over time: N points, `env_steps` strictly increasing. N may be 0."""

    env_steps: Floats
    """`[N]`."""
    seconds: Floats
    """`[N]`: wall-clock of the run."""
    score: Floats
    """`[N]`: mean return."""
    low: Floats
    """`[N]`: lower end of the score's 95 % interval; the score itself where there is no interval."""
    high: Floats
    """`[N]`: upper end."""

    def __len__(self) -> int:
        """N."""
        return len(self.score)


def read_config(folder: RunFolder) -> dict[str, object]:
    """A run's configuration as plain values. Not `config.load`: a run of another greenroom version can still be shown.

    Raises:
        UserError: the file is not YAML, or does not hold a mapping.
    """
    try:
        config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{folder.config} is not YAML: {error}; restore it or leave this run out") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder.config} does not hold options and values; restore it or leave this run out")
    return config


def environment_of(config: Mapping[str, object]) -> str:
    """What a run ran in, with the environment's own arguments: `lost-sales(lead_time=4)`."""
    arguments = config.get("env_kwargs")
    inside = ", ".join(f"{key}={value}" for key, value in arguments.items()) if isinstance(arguments, dict) else ""
    return f"{config.get('env')}({inside})" if inside else str(config.get("env"))


def algorithm_of(config: Mapping[str, object]) -> str:
    """The name of a run's algorithm."""
    algorithm = config.get("algorithm")
    return str(algorithm.get("kind") if isinstance(algorithm, dict) else algorithm)


def read_curve(path: Path, score: str) -> Curve:
    """A curve from a file of JSON lines; an empty one if there is no such file.

    Lines without a finite `score` (no episode had finished yet) are left out, and so is what `read_lines` leaves out.

    Args:
        path: a run's `metrics.jsonl` or `evaluations.jsonl`.
        score: name of the value to plot.

    Raises:
        UserError: another line is not a JSON object with `env_steps` and `seconds`.
    """
    points = read_lines(path, partial(_point, score=score))
    latest = {point[0]: point for point in points if math.isfinite(point[2])}
    table = np.array([latest[env_steps] for env_steps in sorted(latest)]).reshape(-1, 5)
    return Curve(env_steps=table[:, 0], seconds=table[:, 1], score=table[:, 2], low=table[:, 3], high=table[:, 4])


def _point(line: str, *, score: str) -> tuple[float, float, float, float, float]:
    """What a line says of `Curve`'s five columns."""
    record = record_of(line)
    value = math.nan if record.get(score) is None else float(record[score])
    low, high = record.get("ci95", (value, value))
    return float(record["env_steps"]), float(record["seconds"]), value, low, high
