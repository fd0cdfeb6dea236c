"""NVIDIA's run-time compiler, which compiles for any card without one; from the package `nvidia-cuda-nvrtc`."""

import ctypes
import importlib.util
from pathlib import Path

import pytest


def compiled(source, arch, options=()):
    """Log and PTX of CUDA C++; fails with the log if it is not understood."""
    library, program = _library(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    given = [f"--gpu-architecture={arch}".encode(), *(option.encode() for option in options)]
    result = library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
    assert result == 0, log.decode()
    return log.strip(), _text(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)


def _text(size_of, get, program):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.value


def _library():
    package = importlib.util.find_spec("nvidia")
    found = (
        [p for folder in package.submodule_search_locations for p in Path(folder).glob("*/lib/libnvrtc.so.*")]
        if package
        else []
    )
    if not found:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    return ctypes.CDLL(str(found[0]))
