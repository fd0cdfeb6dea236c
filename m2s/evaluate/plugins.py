"""Methods of somebody else's, named `package.module:Class` on the command line."""

import hashlib
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from m2s.baselines.method import BoolArray, Prediction, Spacing, as_prediction
from m2s_runtime.errors import UsageProblem


class Answering(Protocol):
    """What a class has to have, made without arguments."""

    def predict(self, mask: BoolArray, spacing: Spacing) -> object:
        """Reconstruct one stack, arguments as in `Method`; answers may be any that `as_prediction` takes."""
        ...


@dataclass(frozen=True)
class Plugin:
    """A foreign method behind the protocol."""

    name: str
    method: Answering

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct; errors as `as_prediction`."""
        # A copy: who writes into it must not change the stack of the methods that come next.
        return as_prediction(self.method.predict(mask.copy(), spacing), spacing, self.name)


def open_plugin(name: str) -> Plugin:
    """Import a class and make its method.

    Raises:
        UsageProblem: it cannot be imported or made, or has no `predict`.
    """
    try:
        made = _class(name)()
    except Exception as error:
        raise UsageProblem(f"--method {name}: cannot be made without arguments ({error})") from error
    if not callable(getattr(made, "predict", None)):
        raise UsageProblem(f"--method {name}: has no predict(mask, spacing)")
    return Plugin(name, cast("Answering", made))


def plugin_digest(name: str) -> str:
    """Sha256 of the file that a class is defined in, or of its name where it has none; errors as `open_plugin`."""
    file = getattr(sys.modules[_class(name).__module__], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else name.encode()).hexdigest()


def _class(name: str) -> type:
    module, _, member = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # an installed command does not look where it is called
        sys.path.append(here)
    try:
        found = getattr(import_module(module), member)
    except Exception as error:
        raise UsageProblem(
            f"--method {name}: cannot be imported ({type(error).__name__}: {error});"
            " call m2s-eval beside the file or add its folder to PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise UsageProblem(f"--method {name}: is no class")
    return found
