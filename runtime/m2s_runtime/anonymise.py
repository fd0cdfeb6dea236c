"""Names of inputs kept out of everything that a run writes: a case is called by a keyed digest of its path.

The digest is an HMAC, so that nobody without the key can try names until one fits; with the key the same input gets
the same name in every run, which is what a resume needs. Hashes of input files are still on record.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from m2s_runtime.errors import OutputError, UsageProblem
from m2s_runtime.inputs import Found, Problem, Source
from m2s_runtime.nifti_files import split_suffix

KEY_VARIABLE: Final = "M2S_ANONYMISE_KEY"
_PSEUDONYM: Final = re.compile(r"case-[0-9a-f]{16}(_t\d+)?")
_DIGITS: Final = 16


def anonymised(found: Found, out: Path) -> Found:
    """The inputs under other names, in the order of these.

    Raises:
        UsageProblem: `out` holds cases under their own names.
        OutputError: the key cannot be kept.
    """
    for folder in out.iterdir() if out.is_dir() else ():
        if folder.is_dir() and folder.name[0] != "." and not _PSEUDONYM.fullmatch(folder.name):
            raise UsageProblem(f"--anonymise: {out} holds cases under their own names; choose another --out")
    key = _key()
    sources = sorted((_renamed(source, key) for source in found.sources), key=lambda source: source.case)
    problems = [
        Problem(f"input {number}", "nothing to run in it; leave --anonymise out to see the reason")
        for number, _ in enumerate(found.problems, 1)
    ]
    return Found(sources, problems)


def without_names(text: str, source: Source) -> str:
    """A message about a source under another name, without its path and its file names; other sources' as it is."""
    if not _PSEUDONYM.fullmatch(source.relative):
        return text
    stem = split_suffix(source.path.name)[0]
    text = text.replace(str(source.path), source.relative)
    return re.sub(rf"{re.escape(stem)}(\.\w+)+|{re.escape(source.path.name)}", source.relative, text)


def _renamed(source: Source, key: bytes) -> Source:
    digest = hmac.new(key, source.relative.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    name = f"case-{digest[:_DIGITS]}"
    return replace(source, relative=name, case=name)


def _key() -> bytes:
    """From the environment, else this user's own."""
    if given := os.environ.get(KEY_VARIABLE):
        return given.encode()
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mask2surface"
    path = folder / "anonymise.key"
    try:
        if not path.is_file():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_key(path)
        return path.read_bytes()
    except OSError as error:
        raise OutputError(
            f"{path}: the key of --anonymise cannot be kept there ({error.strerror}); set {KEY_VARIABLE} to a secret"
        ) from error


def _make_key(path: Path) -> None:
    """Readable by nobody else; of several processes that make one, such as the parts of a job array, the first wins."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".key") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(file.name)
