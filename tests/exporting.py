"""Runs `m2s-export` in this process."""

import sys

from m2s_export import cli


def export(monkeypatch, *words):
    """Exit code of the command; 0 when it returns."""
    monkeypatch.setattr(sys, "argv", ["m2s-export", *map(str, words)])
    try:
        cli.main()
    except SystemExit as done:
        return done.code
    return 0
