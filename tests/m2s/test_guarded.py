"""How commands of m2s-train end, whatever ended them: one line on stderr and the exit code that says which kind."""

import errno
import os
import signal

import pytest

from m2s.train.guarded import guarded
from m2s_runtime.errors import EmptyWall, EngineError, UsageProblem


def ending(capsys, out, raised):
    with pytest.raises(SystemExit) as caught, guarded(out, "RUN", "begins anew"):
        raise raised
    (line,) = capsys.readouterr().err.splitlines()
    return caught.value.code, line


@pytest.mark.parametrize(
    ("raised", "code"),
    [(UsageProblem("no"), 2), (EngineError("no"), 5), (EmptyWall("no"), 2), (FileNotFoundError("no"), 2)],
)
def test_errors_raised_on_purpose(capsys, tmp_path, raised, code):
    assert ending(capsys, tmp_path, raised) == (code, "error: no")


def test_interruptions(capsys, tmp_path):
    assert ending(capsys, tmp_path, KeyboardInterrupt()) == (130, "interrupted: the same command begins anew")


def test_sigterm(capsys, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, guarded(tmp_path, "RUN", "begins anew"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "interrupted: the same command begins anew\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("place", "code", "remedy"),
    [("run/mcsr", 6, "or choose another RUN"), (".", 6, "or choose another RUN"), ("maps", 2, "check its permissions")],
)
def test_who_may_not_is_told_where(capsys, tmp_path, place, code, remedy):
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / place))
    found = ending(capsys, tmp_path / "run", denied)
    assert found[0] == code
    assert found[1].startswith(f"error: {tmp_path / place}: Permission denied")
    assert found[1].endswith(remedy)


def test_what_was_not_foreseen_stays_a_bug(tmp_path):
    with pytest.raises(ZeroDivisionError), guarded(tmp_path, "RUN", "begins anew"):
        _ = 1 / 0
