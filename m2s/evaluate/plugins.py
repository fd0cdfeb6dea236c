"""Methods of somebody else's, named `package.module:Class` on the command line."""

import hashlib
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol, cast

from m2s.baselines.method import BoolArray, Prediction, Spacing, as_prediction
from m2s_runtime.errors import CaseError, M2SError, UsageProblem


class MethodFailed(CaseError):
    """A method of somebody else's raised an error of its own on one stack."""

    code: ClassVar[str] = "method"


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
        """Reconstruct; errors as `as_prediction`.

        Raises:
            MethodFailed: the method raised what is no error of ours; the evaluation goes on without this stack.
        """
        try:
            # A copy: who writes into it must not change the stack of the methods that come next.
            answer = self.method.predict(mask.copy(), spacing)
        except M2SError:
            raise
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(at.filename).name}:{at.lineno}"
            raise MethodFailed(f"{self.name} raised {type(error).__name__}: {error} ({place})") from error
        return as_prediction(answer, spacing, self.name)


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
    """Sha256 (hex) of what is known of a method's making.

    That is its file, or every Python file of its package, and the class attribute `digest` where it has one: for
    weights, which nothing else here can see.

    Raises:
        UsageProblem: the class cannot be imported.
    """
    found = _class(name)
    parts = [name.encode(), str(getattr(found, "digest", "")).encode()]
    parts += [hashlib.sha256(file.read_bytes()).digest() for file in _sources(found.__module__)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _sources(module: str) -> list[Path]:
    top = sys.modules[module.partition(".")[0]]
    folders: list[str] = list(getattr(top, "__path__", ()))
    if folders:
        return sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    file = getattr(top, "__file__", None)
    return [Path(file)] if file else []


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
