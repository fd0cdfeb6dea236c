"""Versions of this program and of what it runs on."""

from importlib import metadata


def version() -> str:
    """Version of the installed distribution."""
    return installed("mask2surface") or "unknown"


def installed(name: str) -> str | None:
    """Version of another distribution; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
