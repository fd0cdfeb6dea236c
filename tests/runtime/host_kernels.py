"""Compiles CUDA C for the CPU: the same text, where a thread is a turn of a loop and no operation may be fused."""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILER = shutil.which("cc")

_BEFORE = """
#include <math.h>
#include <stddef.h>
#define KERNEL static void
#define DEVICE static inline
#define THREAD number
#define __ffs __builtin_ffs
#define __ffsll __builtin_ffsll
static int number;
"""
_LOOP = """
void run_{name}(int threads, int backwards, {declared}) {{
    for (int t = 0; t < threads; t++) number = backwards ? threads - 1 - t : t, {name}({names});
}}
"""


def compiled(source, *, backwards=False):
    """What `Memory.compiled` gives, on NumPy arrays; threads run from the last to the first if `backwards`."""
    library = _library(source)

    def launch(name, threads, *arguments):
        getattr(library, f"run_{name}")(threads, backwards, *map(_passed, arguments))

    return launch


def _passed(argument):
    if isinstance(argument, int):
        return ctypes.c_int(argument)
    assert argument.flags.c_contiguous
    return ctypes.c_void_p(argument.ctypes.data)


@functools.cache
def _library(source):
    loops = []
    for name, declared in re.findall(r"^KERNEL (\w+)\(([^)]*)\)", source, re.MULTILINE):
        names = ", ".join(re.findall(r"(\w+)(?:,|$)", declared))
        loops.append(_LOOP.format(name=name, declared=declared, names=names))
    with tempfile.TemporaryDirectory() as folder:
        text, built = Path(folder, "kernels.c"), Path(folder, "kernels.so")
        text.write_text(_BEFORE + source + "".join(loops))
        strict = ["-O2", "-std=c11", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run([COMPILER, *strict, "-o", built, text, "-lm"], check=True)
        return ctypes.CDLL(str(built))
