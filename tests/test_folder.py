"""The run folder is never overwritten, survives crashes, and says what machine it was made on."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from greenroom import folder, machine
from greenroom.errors import UserError
from greenroom.folder import RunFolder


def make_run(path: Path) -> RunFolder:
    run = RunFolder.create(path, env="CartPole-v1", algo="ppo", seed=0)
    folder.write_text(run.config, "seed: 0\n")
    return run


def test_default_names_are_unique_and_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {RunFolder.create(None, env="ALE/Pong-v5", algo="a2c", seed=3).path for _ in range(4)}
    assert len(made) == 4 and {path.parent for path in made} == {Path("runs")}
    assert all(re.fullmatch(r"ALE-Pong-v5-a2c-s3-\d{8}-\d{6}(-\d+)?", path.name) for path in made)
    moment = datetime(2026, 1, 2, 3, 4, 5)
    assert folder.default_name("package.module:make env", "ppo", 0, moment) == (
        "package.module-make-env-ppo-s0-20260102-030405"
    )


def test_the_second_run_of_one_second_gets_a_number(tmp_path: Path) -> None:
    assert [folder._make_unique(tmp_path / "x").name for _ in range(3)] == ["x", "x-2", "x-3"]


def test_an_existing_folder_is_never_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a" / "run")
    with pytest.raises(
        UserError, match=r"is an earlier run; nothing was overwritten; continue it with `greenroom resume`"
    ):
        make_run(run.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists and is not empty; nothing was overwritten; give another --run-dir"):
        make_run(tmp_path / "other")
    with pytest.raises(UserError, match=r"cannot make run folder .*notes.txt: File exists; give another"):
        make_run(tmp_path / "other" / "notes.txt")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert make_run(tmp_path / "empty").path == tmp_path / "empty"


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "CartPole-v1-ppo-s0")
    make_run(tmp_path / "other-thing")
    assert RunFolder.open(run.path) == run
    for wrong, hint in (
        (tmp_path / "CartPole-v1-pp-s0", r"does not exist; did you mean 'CartPole-v1-ppo-s0'\?"),
        (tmp_path / "zzz", "does not exist; known: CartPole-v1-ppo-s0, other-thing"),
        (run.path / "checkpoints", f"does not exist; it is inside the run {re.escape(str(run.path))}: give that"),
        (run.config, "is not a folder; it is inside the run"),
        (tmp_path, r"is not a run folder \(no config.yaml\); it holds runs, give one of them; known: Cart"),
        (tmp_path / "a" / "b", "does not exist; `greenroom train` makes one"),
    ):
        with pytest.raises(UserError, match=hint):
            RunFolder.open(wrong)


def test_the_places_in_a_run() -> None:
    run = RunFolder(path=Path("r"))
    places = (run.config, run.metrics, run.evaluations, run.checkpoints, run.tensorboard, run.curve, run.environment)
    assert " ".join(place.name for place in places) == (
        "config.yaml metrics.jsonl evaluations.jsonl checkpoints tensorboard curve.png environment.json"
    )


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    folder.write_text(path, "old\n")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        monkeypatch.setattr(os, function, fail)
        with pytest.raises(OSError, match="No space"):
            folder.write_text(path, "new\n")
        monkeypatch.undo()
        assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]
    folder.write_text(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json(path, math.nan)
    assert path.read_bytes() == "ü\n".encode()


def lines(*steps: int) -> str:
    return "".join(f'{{"env_steps": {step}, "x": null}}\n' for step in steps)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lines(10, 20, 30, 40), lines(10, 20)),
        (lines(10, 20), lines(10, 20)),
        (lines(10, 20) + '{"env_steps": 3', lines(10, 20)),
        (lines(10, 20) + '{"env_steps": 1', lines(10, 20)),
        (lines(10) + '{"env_steps": 20, "x": null}', lines(10, 20)),
        (lines(10) + "\0\0\0", lines(10)),
        (lines(10) + "7", lines(10)),
        (lines(30), ""),
        ("", ""),
    ],
    ids=["later", "all earlier", "cut short", "cut short early", "no newline", "zeros", "number", "none left", "empty"],
)
def test_rewinding_drops_later_and_broken_lines(tmp_path: Path, before: str, after: str) -> None:
    run = make_run(tmp_path / "run")
    run.metrics.write_text(before)
    run.rewind(20)
    assert run.metrics.read_text() == after
    assert not run.evaluations.exists()
    run.evaluations.write_text(before)
    run.rewind(20)
    assert run.evaluations.read_text() == after


def test_rewinding_mends_what_is_history_and_takes_none_of_it_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", env="e", algo="a", seed=0)
    for path in (folder.findings, folder.interventions):
        path.write_text('{"env_steps": 500}\n{"env_st')
    folder.rewind(100)
    assert [path.read_text() for path in (folder.findings, folder.interventions)] == ['{"env_steps": 500}\n'] * 2


def test_rewinding_leaves_an_untouched_file_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.metrics.write_text(lines(10))
    inode = run.metrics.stat().st_ino
    run.rewind(20)
    assert run.metrics.stat().st_ino == inode


def test_rewinding_names_a_line_that_is_broken_in_the_middle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.metrics.write_text(lines(10) + "{}\n" + lines(20))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a log line; mend or delete it"):
        run.rewind(20)
    assert run.metrics.read_text() == lines(10) + "{}\n" + lines(20)


def test_the_environment_names_versions_and_machine_but_no_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(sys, "argv", ["/home/someone/bin/greenroom", "train", "x y", "--run-dir=/home/someone/run"])
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    run.write_environment()
    text = run.environment.read_text()
    found = json.loads(text)
    assert found["torch"] == torch.__version__ and found["python"].split(".")[0] == "3"
    assert found["numpy"] and found["gymnasium"] and found["ale-py"] and "greenroom" in found
    assert found["command"] == "greenroom train 'x y' '--run-dir=~/run'"
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["cores"] >= 1 and found["cpu"] and found["git"] is None
    assert isinstance(found["gpus"], list) and found["platform"]
    assert "someone" not in text and os.uname().nodename not in text


def git(where: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=where, check=True, capture_output=True)


def test_git_commit_and_whether_it_is_dirty(tmp_path: Path) -> None:
    assert machine.git_state(tmp_path) is None
    git(tmp_path, "init")
    assert machine.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "untracked").write_text("1")
    state = machine.git_state(tmp_path)
    assert state is not None and re.fullmatch("[0-9a-f]{40}", state.commit) and not state.dirty
    (tmp_path / "file").write_text("2")
    assert machine.git_state(tmp_path) == machine.GitState(commit=state.commit, dirty=True)
    assert machine.git_state(tmp_path / "nowhere") is None


def test_idle_cores_are_those_of_ours_that_had_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in hundredths of a second: user, nice, system, idle, waiting for a disk, and more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100, raising=False)
    clock = SimpleNamespace(perf_counter=iter([10.0, 12.0, 13.0, 14.0, 15.0]).__next__)
    monkeypatch.setattr("greenroom.machine.time", clock)
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 999 9 9\ncpu0 1 1 1 100 0 1\ncpu1 1 1 1 700 0 1\ncpu2 1 1 1 50 10 1\nintr 5\n")
    free = machine.FreeCores(stat)
    stat.write_text("cpu 9 9 9 999 9 9\ncpu0 1 1 1 280 0 1\ncpu1 1 1 1 900 0 1\ncpu2 1 1 1 60 20 1\nintr 5\n")
    assert free.mean() == pytest.approx((1.8 + 0.2) / 2.0)
    stat.unlink()
    assert free.mean() is None
    assert machine.FreeCores(stat).mean() is None


def test_the_tightest_cgroup_quota_counts(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    inner = tmp_path / "v2" / "outer" / "inner"
    inner.mkdir(parents=True)
    assert machine.cgroup_quota(tmp_path / "v2", tmp_path / "missing") is None
    membership.write_text("0::/outer/inner\n")
    assert machine.cgroup_quota(tmp_path / "v2", membership) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert machine.cgroup_quota(tmp_path / "v2", membership) is None
    (inner / "cpu.max").write_text("350000 100000\n")
    assert machine.cgroup_quota(tmp_path / "v2", membership) == 3.5
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert machine.cgroup_quota(tmp_path / "v2", membership) == 1.5
    old = tmp_path / "v1" / "cpu"
    (old / "job").mkdir(parents=True)
    membership.write_text("3:memory:/job\n2:cpu,cpuacct:/job\n")
    for group, quota in ((old / "job", "-1"), (old, "200000")):
        (group / "cpu.cfs_quota_us").write_text(quota)
        (group / "cpu.cfs_period_us").write_text("100000")
    assert machine.cgroup_quota(tmp_path / "v1", membership) == 2.0


def test_available_cores_obey_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    for quota, cores in ((None, 3), (1.5, 2), (0.1, 1), (64.0, 3)):
        monkeypatch.setattr(machine, "cgroup_quota", lambda quota=quota: quota)
        assert machine.available_cores() == cores


def test_bf16_is_told_by_the_processors_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    info = tmp_path / "cpuinfo"
    for text, kind in (
        ("model name\t: Some CPU\nflags\t\t: fpu avx512_bf16 amx_bf16\n", "amx_bf16"),
        ("model name\t: Some CPU\nflags\t\t: fpu avx512_bf16\n", "avx512_bf16"),
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 notbf16\n", None),
        ("Features\t: fp asimd bf16\n", "bf16"),
    ):
        info.write_text(text)
        assert machine.cpu_bf16(info) == kind
    assert machine.cpu_bf16(tmp_path / "missing") is None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert machine.cpu_bf16(info) is None


def test_bf16_is_quick_where_it_does_more_a_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    info = tmp_path / "cpuinfo"
    for vendor, flags, kind in (
        ("GenuineIntel", "avx512_bf16 amx_bf16", "amx_bf16"),
        ("GenuineIntel", "avx512_bf16", None),
        ("AuthenticAMD", "avx512_bf16", "avx512_bf16"),
        ("AuthenticAMD", "avx2", None),
    ):
        info.write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
        assert machine.quick_bf16(info) == kind


def test_tanh_is_quick_where_mkl_is_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    for vendor, mkl, quick in (
        ("GenuineIntel", True, True),
        ("GenuineIntel", False, False),
        ("AuthenticAMD", True, False),
    ):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda mkl=mkl: mkl)
        info.write_text(f"vendor_id\t: {vendor}\n")
        assert machine.quick_tanh(info) == quick
    assert not machine.quick_tanh(tmp_path / "missing")


def test_products_are_slow_where_mkl_has_avx512_for_others_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    for vendor, mkl, vectors, slow in (
        ("AuthenticAMD", True, "AVX512", True),
        ("AuthenticAMD", True, "AVX2", False),
        ("AuthenticAMD", False, "AVX512", False),
        ("GenuineIntel", True, "AVX512", False),
    ):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda mkl=mkl: mkl)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda vectors=vectors: vectors)
        info.write_text(f"vendor_id\t: {vendor}\n")
        assert machine.slow_products(info) == slow
        assert not machine.slow_products(tmp_path / "missing")


def test_cpu_kind_is_the_model_name_or_the_architecture_and_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2GHz: fast\nflags\t\t: fpu avx512_bf16\n")
    assert machine.cpu_kind(info) == "Some CPU @ 2GHz: fast (AVX512, avx512_bf16)"
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu\n")
    assert machine.cpu_kind(info) == "Some CPU (AVX512)"
    assert re.fullmatch(r".+ \(AVX512\)", machine.cpu_kind(tmp_path / "missing"))


def test_a_resume_elsewhere_is_noticed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")

    def on(threads: int, **more: str) -> None:
        here = {"torch": "2.0", "cpu": "old", "threads": {"torch": threads}, "command": str(more), **more}
        monkeypatch.setattr(folder, "describe_environment", lambda: here)

    def moves() -> list[str]:
        return sorted(path.name for path in run.path.glob("environment-*"))

    assert run.note_environment(10) == "", "nothing is known of what it was on"
    on(1)
    run.write_environment()
    assert run.note_environment(10) == "" and moves() == []
    on(2, cpu="new")
    assert run.note_environment(20) == "cpu new (was old), threads 2 (was 1)"
    assert json.loads((run.path / "environment-20.json").read_text())["cpu"] == "new"
    assert run.note_environment(30) == "", "from 20 on it was on this"
    assert run.note_environment(20) == "cpu new (was old), threads 2 (was 1)", "up to 20 it was not"
    on(1)
    assert run.note_environment(30) == "cpu old (was new), threads 1 (was 2)"
    assert moves() == ["environment-20.json", "environment-30.json"]
    assert run.note_environment(15) == "" and moves() == []

    run.environment.write_text("[")
    assert run.note_environment(40) == ""
