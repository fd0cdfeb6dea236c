"""How the commands of m2s-train end: errors raised on purpose become one line on stderr and their exit code."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from m2s_runtime.errors import INTERRUPTED, CaseError, OutputError, Stop, UsageProblem
from m2s_runtime.terminable import terminable


@contextmanager
def guarded(out: Path, name: str, again: str) -> Generator[None]:
    """Also ends in order on SIGTERM.

    Args:
        out: folder that the command writes to.
        name: the argument or option that says so.
        again: what the same command does once this one was interrupted.

    Raises:
        SystemExit: where the work failed or was interrupted.
    """
    try:
        with terminable():
            yield
    except (Stop, CaseError, FileNotFoundError) as error:
        _end(str(error), error.exit_code if isinstance(error, Stop) else UsageProblem.exit_code)
    except PermissionError as error:
        where = Path(str(error.filename or out)).absolute()
        told = f"{where}: {error.strerror or error}; check its permissions"
        if where.is_relative_to(out.absolute()) or out.absolute().is_relative_to(where):
            _end(f"{told}, or choose another {name}", OutputError.exit_code)
        _end(told, UsageProblem.exit_code)
    except (KeyboardInterrupt, SystemExit) as ending:
        click.echo(f"interrupted: the same command {again}", err=True)
        sys.exit(INTERRUPTED if isinstance(ending, KeyboardInterrupt) else ending.code)


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
