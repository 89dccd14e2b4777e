"""What was found, as JSON and as tables in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from faults.environments import FAULTS as ENVIRONMENT_FAULTS
from faults.processes import COLLECTOR, WORKER
from greenroom import folder, machine

OUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "faults"

_FACTS = ("kills", "harms", "mishaps", "soak")
"""The parts of the suite; one that was not run this time stays as it was found before, and so does a scenario."""


def write(results: dict[str, Any], out: Path, command: str) -> None:
    """Write `results.json` and `table.md`.

    Args:
        results: `kills`, `harms`, `mishaps`, `soak`: records; `failures`: sentences; `minutes` that it took; `load`:
            processes that ran on the machine when it began.
        out: the folder for both.
        command: what was run, as a person types it.
    """
    path = out / "results.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    gpus = machine.gpu_names()
    kept = {part: _kept(before.get(part, []), results.get(part, [])) for part in _FACTS}
    parts = [part for part in _FACTS if results.get(part)]
    now = {"command": command, "minutes": results["minutes"], "load": results["load"], "parts": parts}
    ran = [*(one for one in before.get("ran", []) if one["command"] != command), now]
    head = {
        "environment": folder.describe_environment() | {"command": command},
        "machine": f"{machine.available_cores()} cores of an {machine.cpu_kind()}, {', '.join(gpus) or 'no GPU'}",
        "torch": torch.__version__,
        "ran": ran,
        "failures": results["failures"],
    }
    out.mkdir(parents=True, exist_ok=True)
    written = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    written += [f'"{part}": [\n' + ",\n".join(map(json.dumps, records)) + "\n]" for part, records in kept.items()]
    folder.write_text(path, "{" + ",\n".join(written) + "}\n")
    folder.write_text(out / "table.md", _page(head | kept))


def _kept(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of now in the places of those that they replace, the others as before."""
    again: dict[tuple[object, ...], list[dict[str, Any]]] = {_what(one): [] for one in (*before, *now)}
    renewed = {_what(one) for one in now}
    for one in (*(old for old in before if _what(old) not in renewed), *now):
        again[_what(one)].append(one)
    return [one for records in again.values() for one in records]


def _what(record: dict[str, Any]) -> tuple[object, ...]:
    """What a record is of, so that a later one of the same replaces it: a kill's scenario, a harm's fault too."""
    fault = "" if "at" in record else record.get("fault")
    return *(record.get(name) for name in ("scenario", "command", "run", "stage", "choice")), fault


def _page(found: dict[str, Any]) -> str:
    lines = [
        "# Faults, tried at random",
        "",
        *_faults(found),
        "",
        *_mishaps(found["mishaps"]),
        "",
        *_scenarios(found["kills"]),
        "",
        *_soak(found["soak"]),
    ]
    failures = found["failures"] or ["none"]
    lines += ["", "Failures: " + "; ".join(failures) + ".", ""]
    made = {f"`{one['command']}` (load average before: {one['load']:.1f})" for one in found["ran"]}
    lines += [f"Made by {' and '.join(sorted(made))}, the soak beside the rest. Machine: {found['machine']}."]
    return "\n".join(lines) + "\n"


def _faults(found: dict[str, Any]) -> list[str]:
    """One row for each kind of fault."""
    rows = []
    for command in (False, True):
        kills = [kill for kill in found["kills"] if kill["command"] == command]
        for fault in sorted({kill["fault"] for kill in kills}):
            these = [kill for kill in kills if kill["fault"] == fault]
            name = fault + (", `python -m greenroom`" if command else "")
            end = "told" if fault.endswith((WORKER, COLLECTOR)) else "seconds"
            keys = (end, "gone", "recovered")
            rows.append([name, str(len(these)), _times(these, "noticed"), *(_times(these, key) for key in keys)])
    for fault in dict.fromkeys(harm["fault"] for harm in found["harms"]):
        these = [harm for harm in found["harms"] if harm["fault"] == fault]
        rows.append([fault, str(len(these)), _times(these, "noticed"), "", "", ""])
    head = [
        "fault",
        "tried and survived",
        "s to notice",
        "s to end, or tell",
        "s until no process was left",
        "s to recover",
    ]
    return [
        *_table(head, rows),
        "",
        "Seconds are median / largest. To notice: from the kill of a worker until the trainer knows, from a full disk "
        "to its warning. To end: from a signal to the trainer's last instruction, saved. To tell: from the kill of a "
        "worker, or of the process that collects, to the message, which waits for the others to be gone. To recover: "
        "from the start of `greenroom resume` to its first new update. Trainers are forks of a process that has "
        "imported everything, but for those marked `python -m greenroom`, whose recovery includes importing, and for "
        "the process that collects, which is a fresh one in each.",
    ]


def _mishaps(mishaps: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for stage, fault in dict.fromkeys((one["stage"], one["fault"]) for one in mishaps):
        these = [one for one in mishaps if (one["stage"], one["fault"]) == (stage, fault)]
        stopped, mended = ([one for one in these if one["choice"] == choice] for choice in ("stop", "restart"))
        cells = (str(len(stopped)), _times(stopped, "seconds"), str(len(mended)), _times(mended, "seconds"))
        rows.append([stage, ENVIRONMENT_FAULTS[fault], *cells])
    head = ["stage", "an environment fails", "stopped", "s to the error", "started anew", "s until all step again"]
    return _table(head, rows)


def _scenarios(kills: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for name in dict.fromkeys(kill["scenario"] for kill in kills):
        these = [kill for kill in kills if kill["scenario"] == name]
        repeated = [kill["repeated"] for kill in these if kill["repeated"] is not None]
        exact = "finishes, nothing twice" if name.startswith("native") else "the same bits"
        rows.append([name, str(len(these)), str(max(repeated, default=0)), exact])
    return _table(["scenario", "kills", "most steps taken again", "in the end, as if left in peace"], rows)


def _soak(soaks: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            one["run"],
            f"{one['seconds'] / 60:.1f}",
            f"{one['env_steps']:,}",
            f"{one['rss']['level']:.1f} MB, {100 * one['rss']['growth']:+.2f} %",
            f"{one['fds']['level']:.0f}, at most {one['fds']['largest']:.0f}",
            f"{one['threads']['level']:.0f}, at most {one['threads']['largest']:.0f}",
            "flat" if one["flat"] else "not flat",
        ]
        for one in soaks
    ]
    head = ["soak", "minutes", "steps", "memory and its growth", "open files", "threads", ""]
    return _table(head, rows)


def _times(kills: Iterable[dict[str, Any]], key: str) -> str:
    values = [kill[key] for kill in kills if kill.get(key) is not None]
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
