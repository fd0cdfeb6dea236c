"""The scripts of `benchmarks/` as modules, for tests of their parts."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """The script of that name, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the annotations of theirs.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
