"""What a benchmark ran on, without anything that tells whose it is: no host name, user, path or serial number."""

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from m2s.bench.result import Gpu, Machine
from m2s_runtime.machine import usable_cores
from m2s_runtime.versions import installed

_PACKAGES: Final = (
    "mask2surface", "numpy", "scipy", "nibabel", "scikit-image", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tensorrt_rtx", "cupy-cuda13x", "torch", "monai", "open3d",
)  # fmt: skip
_GPU: Final = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit")


def describe() -> Machine:
    """This machine, as far as it lets itself be asked."""
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = round(os.getloadavg()[0], 2)
    return Machine(
        cpu=_cpu(),
        cores=usable_cores(),
        memory_gib=_memory_gib(),
        system=_system(),
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := installed(name))},
        gpus=tuple(Gpu(*row) for row in _nvidia_smi(*_GPU)),
        load=load,
    )


def gpu_memory_mib() -> float | None:
    """Memory in use on all cards, by whomever; None where the driver does not tell.

    Of all, for the driver's numbers are not those of CUDA, which go by speed and may be those of a part of them.
    """
    with contextlib.suppress(ValueError):
        return sum(float(row[0]) for row in _nvidia_smi("memory.used")) or None
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return 0.0


def _system() -> str:
    with contextlib.suppress(OSError, AttributeError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _nvidia_smi(*fields: str) -> list[list[str]]:
    """A row a card; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(fields)]
