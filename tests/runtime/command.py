"""The command as a user starts it, with a stub behind it, and what it leaves."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import m2s_runtime

HERE = Path(__file__).parent
RUNTIME = Path(m2s_runtime.__path__[0]).parent
STUBBED = """
{before}
import signal, sys
from m2s_runtime import cli, session
from stub import StubOpener
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is born without
    session.open_reconstructor = StubOpener({{{trouble}}})
    cli.main()
"""


def start(*arguments, trouble="", before=""):
    """The command in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(RUNTIME), str(HERE), os.environ.get("PYTHONPATH", "")])
    }
    code = STUBBED.format(trouble=trouble, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(out):
    with (out / "cases.csv").open(newline="") as file:
        return {line["case"]: line for line in csv.DictReader(file)}
