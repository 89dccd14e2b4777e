"""Threads that work at the same time are on cores of their own; where they are too few or too many, anywhere."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from greenroom import cores
from greenroom.envs.ale import AleConfig, AleEnvironment
from greenroom.machine import available_cores, own_cores
from greenroom.threads import limited


def affinity(thread: int) -> set[int]:
    """The cores that a thread may use; 0 is the thread that asks."""
    return os.sched_getaffinity(thread)


ALL = own_cores()
pytestmark = pytest.mark.skipif(not 1 < available_cores() == len(ALL), reason="needs Linux and two cores or more")


@pytest.fixture
def team() -> Iterator[list[int]]:
    """The threads that share this one's operations, as many as there are cores; afterwards they go where they like."""
    with limited(len(ALL)):
        if not hasattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel"):
            pytest.skip("this torch has another OpenMP than GNU's")
        others = set(cores._team(len(ALL))) - {threading.get_native_id()}
        assert len(others) == len(ALL) - 1
        try:
            yield sorted(others)
        finally:
            cores._local.__dict__.clear()
            for thread in (0, *others):
                os.sched_setaffinity(thread, ALL)


def test_emulator_threads_have_a_core_each_where_there_is_one_for_each() -> None:
    def cores_of(num_threads: int) -> list[set[int]]:
        before = set(os.listdir("/proc/self/task"))
        with closing(AleEnvironment("ALE/Pong-v5", len(ALL) + 1, AleConfig(), num_threads=num_threads)):
            return [affinity(int(thread)) for thread in set(os.listdir("/proc/self/task")) - before]

    assert sorted(cores_of(len(ALL)), key=min) == [{core} for core in sorted(ALL)]
    assert cores_of(len(ALL) - 1) == [ALL] * (len(ALL) - 1)


def test_the_team_is_the_one_that_computes(team: list[int]) -> None:
    def computed() -> int:
        return sum(int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) for thread in team)

    before = computed()
    for _ in range(20):
        torch.ones(1 << 22).add_(1)
    assert computed() > before


def test_a_thread_gets_the_core_that_it_wakes_on_to_itself(team: list[int]) -> None:
    cores.make_room()
    for core in [*sorted(ALL), *sorted(ALL)]:
        os.sched_setaffinity(0, {core})
        cores.make_room()
        assert sorted([*(affinity(thread) for thread in team), {core}], key=min) == [{one} for one in sorted(ALL)]
    assert affinity(0) == {core}, "this thread is left where it is"


def test_what_starts_or_computes_elsewhere_is_not_bound(team: list[int]) -> None:
    cores.make_room()
    assert affinity(0) == ALL
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(affinity(0)))
    thread.start()
    thread.join()
    assert found == [ALL]


def test_fewer_threads_than_cores_go_where_there_is_room(team: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: len(ALL) + 1)
    cores.make_room()
    assert [affinity(thread) for thread in team] == [ALL] * len(team)


def test_a_thread_that_has_ended_is_left_out(team: list[int]) -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    number = thread.native_id
    assert number is not None
    thread.join()
    cores._seat([number, team[0]], sorted(ALL)[:2])
    assert affinity(team[0]) == {sorted(ALL)[1]}
