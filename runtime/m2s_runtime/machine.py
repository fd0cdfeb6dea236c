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


def usable_cores(groups: Path = _GROUPS, proc: Path = _PROC) -> int:
    """Cores that this process may be scheduled on, at most as many as SLURM or a container's quota grants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _own_groups(proc, groups):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):  # "max", which is no number, is no limit, nor is -1
                quota, period = (int(word) for name in names for word in (group / name).read_text().split())
                cores = min(cores, -(-quota // period)) if quota > 0 else cores
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):  # not every cluster confines its jobs to their cores
        with contextlib.suppress(ValueError):
            cores = min(cores, int(os.environ.get(name, "")))
    return max(cores, 1)


def room_for_workers(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Processes that the free memory suffices for, at least one; many where nothing is known of it."""
    free = min(_free_mib(proc, groups), default=float("inf"))
    return max(int(min(free, 1e9) // WORKER_MIB), 1)


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether an NVIDIA driver shows itself; outside Linux nobody knows before trying."""
    return not devices.is_dir() or any((devices / name).exists() for name in ("nvidiactl", "dxg", "nvgpu"))


def one_blas_thread() -> None:
    """Let NumPy's BLAS have one thread in this process and those it starts, unless told otherwise; before its import.

    Else each of several processes takes all cores for its small products, in turn with what the engine computes.
    Variables that PyTorch reads too are left alone: `m2s-bench` lends it all cores.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _free_mib(proc: Path, groups: Path) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        yield _line(proc / "meminfo", "MemAvailable:") / 1024
    for group in _own_groups(proc, groups):
        for names in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((group / f"memory.{name}").read_text()) for name in names)
                with contextlib.suppress(OSError, ValueError, StopIteration):
                    used -= _line(group / "memory.stat", "inactive_file")  # pages of files, which make way
                yield (limit - used) / 2**20


def _own_groups(proc: Path, groups: Path) -> Iterator[Path]:
    """Folders of the control groups, of either version, that this process is in, and of those around them."""
    lines = ["0::/"]
    with contextlib.suppress(OSError):
        lines += (proc / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group, root = groups / controllers / path.lstrip("/"), groups / controllers
        yield from (group, *(around for around in group.parents if around.is_relative_to(root)))


def _line(path: Path, name: str) -> int:
    """The number in the line of a file that begins with `name`."""
    return int(next(line for line in path.read_text().splitlines() if line.startswith(name)).split()[1])
