"""What machine is this: processor, cores that are really ours, bf16, GPUs, git commit. It asks and changes nothing.

No host names and no user names: what these functions return may be committed and shared.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo(field: str, source: Path) -> str:
    """The first value of `field` in a Linux cpuinfo file, `""` where there is none."""
    try:
        lines = source.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def cpu_kind(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's model name, or its architecture where the system does not tell, and what torch uses of it.

    The latter because one name may stand for processors of very different speed: `AMD EPYC (AVX2)`.
    """
    name = _cpuinfo("model name", cpuinfo) or platform.processor() or platform.machine()
    return f"{name} ({', '.join(filter(None, (torch.backends.cpu.get_cpu_capability(), cpu_bf16(cpuinfo))))})"


def memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory that a process may have here: the machine's, or its container's."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # `max`: as much as there is
        return min(physical, int(limit.read_text()))
    return physical


def quick_tanh(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether torch's tanh is as quick here as its sigmoid: it is MKL's, which is slow on processors not of Intel."""
    return torch.backends.mkl.is_available() and _is_intel(cpuinfo)


def slow_products(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether torch's products of float32 matrices, which are MKL's, have no AVX512 here: MKL has it for Intel's."""
    by_mkl = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return by_mkl and _cpuinfo("vendor_id", cpuinfo) not in ("", "GenuineIntel")


def _is_intel(cpuinfo: Path) -> bool:
    return _cpuinfo("vendor_id", cpuinfo) == "GenuineIntel"


def own_cores() -> set[int]:
    """The numbers of the cores that this process may use, whatever its quota; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def available_cores() -> int:
    """Cores that this process may use: at least 1; aware of CPU affinity and of a container's quota (rounded up)."""
    cores = len(own_cores()) or os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


class FreeCores:
    """How many of the cores that this process may use had nothing to do, on average, since this was made.

    Args:
        stat: Linux's file of processor times. They come in hundredths of a second, so watch for longer than that.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._begin, self._idle = time.perf_counter(), self._idle_seconds()

    def mean(self) -> float | None:
        """None where the system does not tell."""
        idle, seconds = self._idle_seconds(), time.perf_counter() - self._begin
        return None if idle is None or self._idle is None else (idle - self._idle) / seconds

    def _idle_seconds(self) -> float | None:
        try:
            lines = [line.split() for line in self._stat.read_text().splitlines() if line.startswith("cpu")]
            ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            ticks = sum(int(idle) + int(waiting) for name, _, _, _, idle, waiting, *_ in lines if name in ours)
            return ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError):  # another system, or another form
            return None


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The tightest CPU quota of this process's control groups (v2, then v1), in cores; None where there is none.

    Args:
        root: where the control groups are mounted.
        membership: the file that says which group this process is in.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in membership.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return None
    limits: list[float] = []
    for controllers, path in groups:
        inside = Path(path.lstrip("/"))
        places = [inside, *inside.parents]  # a parent's quota binds its children too; "." is the root itself
        if controllers == "":
            limits += [limit for place in places if (limit := _quota_v2(root / place)) is not None]
        elif "cpu" in controllers.split(","):
            limits += [limit for place in places if (limit := _quota_v1(root / "cpu" / place)) is not None]
    return min(limits, default=None)


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number: no quota
    except (OSError, ValueError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None


def cpu_bf16(cpuinfo: Path = _CPUINFO) -> str | None:
    """The processor's own bf16 instructions, best first: `"amx_bf16"`, `"avx512_bf16"`, `"bf16"` (Arm), else None.

    oneDNN also runs bf16 on processors without such instructions, by conversion, which is no gain; hence the flags.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if check is not None and not check():
        return None
    flags = (_cpuinfo("flags", cpuinfo) or _cpuinfo("Features", cpuinfo)).split()
    return next((kind for kind in ("amx_bf16", "avx512_bf16", "bf16") if kind in flags), None)


def quick_bf16(cpuinfo: Path = _CPUINFO) -> str | None:
    """The processor's bf16 instructions (`cpu_bf16`) if convolutions are faster by them than in float32, else None.

    By Intel's `avx512_bf16`, where there is no `amx_bf16`, they are not (`greenroom bench atari` measures it).
    """
    kind = cpu_bf16(cpuinfo)
    return None if kind == "avx512_bf16" and _is_intel(cpuinfo) else kind


def gpu_names() -> list[str]:
    """The names of the CUDA devices that torch sees, in index order."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """Which commit a working directory is at."""

    commit: str
    """The full hash."""
    dirty: bool
    """Tracked files differ from the commit. Untracked files do not count: a run folder is one."""


def git_state(folder: Path) -> GitState | None:
    """The git commit of `folder`, or None where it is in no repository, git is missing, or git takes over 10 s."""

    def ask(*words: str) -> str:
        answer = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # only looking: never get in a running git's way
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return answer.stdout.strip()

    try:
        return GitState(
            commit=ask("rev-parse", "--verify", "HEAD"),
            dirty=ask("status", "--porcelain", "--untracked-files=no") != "",
        )
    except (OSError, subprocess.SubprocessError):
        return None


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next allocation instead of giving them back to the kernel.

    Otherwise every update pays again for the page faults of its own temporaries. Other C libraries: nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # from glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
