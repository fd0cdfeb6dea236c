"""What this machine has to give: cores and memory, as far as its groups and limits let a process have them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

WORKER_MIB: Final = 600
"""Memory that a process on the CPU is given room for; the shipped bundle takes about 430."""

_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS) -> int:
    """Cores that this process may be scheduled on, at most as many as SLURM or a container's quota grants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (groups / "cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))  # "max", which is no number, is no limit
    with contextlib.suppress(ValueError):  # not every cluster confines its jobs to their cores
        cores = min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", "")))
    return max(cores, 1)


def room_for_workers(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Processes that the free memory suffices for, at least one; many where nothing is known of it."""
    free = min(_free_mib(proc, groups), default=float("inf"))
    return max(int(min(free, 1e9) // WORKER_MIB), 1)


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether an NVIDIA driver shows itself; outside Linux nobody knows before trying."""
    return not devices.is_dir() or any((devices / name).exists() for name in ("nvidiactl", "dxg", "nvgpu"))


def _free_mib(proc: Path, groups: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        yield int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1024
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((groups / f"memory.{name}").read_text()) for name in ("max", "current"))
        yield (limit - used) / 2**20
