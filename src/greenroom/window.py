"""What a line of metrics tells: rates and losses since the line before, and the newest finished episodes."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from greenroom.config import RunConfig
from greenroom.types import Progress


class Window:
    """What happened since the last line of metrics, and the newest finished episodes."""

    def __init__(self, config: RunConfig) -> None:
        self._least = config.log_seconds
        newest = max(100, config.num_envs)
        self._returns: deque[float] = deque(maxlen=newest)
        self._lengths: deque[int] = deque(maxlen=newest)
        self._signals: dict[str, deque[float]] = {}
        self._newest = newest
        self._episodes = self._restarts = 0
        self._latest: Progress | None = None
        self._start = (0, 0.0)
        self._split: dict[str, float] = {}
        self._computed = time.process_time()
        self.unlogged = False
        """Whether an update came after the last line."""

    def add(self, progress: Progress) -> None:
        """Take in one update."""
        if self._latest is None:
            # The first update of a sitting also pays for warming up; its rate is measured from the next line on.
            self._start = (progress.env_steps, progress.seconds)
            self._split = dict.fromkeys(progress.time_split, 0.0) | self._split
        self._latest, self.unlogged = progress, True
        ended = progress.rollout.episodes
        self._returns.extend(ended.returns.tolist())
        self._lengths.extend(ended.lengths.tolist())
        for name, total in ended.signals.items():
            self._signals.setdefault(name, deque(maxlen=self._newest)).extend(total.tolist())
        self._episodes += len(ended.index)
        self._restarts += len(progress.rollout.faults)

    @property
    def due(self) -> bool:
        """Whether enough time has passed for another line."""
        return self._latest is not None and self._latest.seconds - self._start[1] >= self._least

    def record(self) -> dict[str, object]:
        """The line, and a new window."""
        latest = self._latest
        assert latest is not None
        self.unlogged = False
        steps, seconds = latest.env_steps - self._start[0], latest.seconds - self._start[1]
        split = {f"time/{name}": total - self._split[name] for name, total in latest.time_split.items()}
        # Less than what passed in acting and learning: this process was kept from its core.
        before, self._computed = self._computed, time.process_time()
        split["time/cpu"] = self._computed - before
        self._start, self._split = (latest.env_steps, latest.seconds), dict(latest.time_split)
        losses = {name: float(value) for name, value in latest.metrics.items()}
        return {
            "env_steps": latest.env_steps,
            "updates": latest.updates,
            "seconds": latest.seconds,
            "steps_per_second": steps / seconds if seconds > 0 else None,
            "lag": latest.lag,
            "episodes": self._episodes,
            "env_restarts": self._restarts,
            "return_mean": _mean(self._returns),
            "length_mean": _mean(self._lengths),
            **{f"signal/{name}": _mean(values) for name, values in self._signals.items()},
            **split,
            **{f"loss/{name}": value for name, value in losses.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """The newest episodes and their count."""
        return {
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "signals": {name: list(values) for name, values in self._signals.items()},
            "episodes": self._episodes,
            "restarts": self._restarts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, and forget what came after it."""
        self._latest, self.unlogged = None, False
        self._returns = deque(state["returns"], maxlen=self._newest)
        self._lengths = deque(state["lengths"], maxlen=self._newest)
        self._signals = {name: deque(values, maxlen=self._newest) for name, values in state["signals"].items()}
        self._episodes, self._restarts = state["episodes"], state.get("restarts", 0)


def _mean(values: deque[Any]) -> float | None:
    return sum(values) / len(values) if values else None
