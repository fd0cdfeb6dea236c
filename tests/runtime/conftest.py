"""What several tests of the command share."""

import pytest
from runtime.stub import StubOpener, save, wall

from m2s_runtime import cli


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the command, all in this process, with a stub behind it; returns code, stdout and stderr."""
    from m2s_runtime import session  # heavy: most tests beside this file have no need of it

    monkeypatch.setattr(session, "open_reconstructor", StubOpener())

    def call(*arguments):
        code = cli.run(["--jobs", "0", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=1.0 - index / 20))
    return tmp_path / "in"
