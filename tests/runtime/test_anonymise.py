"""Nothing that an anonymised run leaves tells what its inputs were called."""

import gzip
import json
import re

import pytest
from runtime.stub import StubOpener, digests, save, wall

from m2s_runtime import cli, session

NAMES = ("Doe_Jane", "sub-secret", "Roe", "clinic")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Inputs with telling names, one of them broken, and a call of the command on them."""
    clinic = tmp_path / "clinic"
    save(clinic / "Doe_Jane.nii.gz", wall())
    save(clinic / "sub-secret" / "seg.nii.gz", wall(scale=0.9))
    (clinic / "Roe.v2.nii.gz").write_bytes(b"no image")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("M2S_ANONYMISE_KEY", raising=False)
    monkeypatch.setattr(session, "open_reconstructor", StubOpener())

    def call(out, *more):
        arguments = [clinic, "-o", tmp_path / out, "--save", "mask,shifts", "--jobs", "0", *more]
        return cli.run([str(argument) for argument in arguments]), capfd.readouterr()

    return call


def test_no_name_in_any_file_and_none_on_the_screen(run, tmp_path):
    code, screen = run("out", "--anonymise", "--log-json", tmp_path / "log.jsonl", tmp_path / "clinic" / "nothing")
    assert code == 8
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 8
    for path in [*files, tmp_path / "log.jsonl"]:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        text += path.relative_to(tmp_path).as_posix().encode()
        for name in NAMES:
            assert name.encode() not in text, path
    assert not any(name in screen.err for name in NAMES)
    cases = [line.split(",")[0] for line in (tmp_path / "out" / "cases.csv").read_text().splitlines()[2:]]
    assert len(cases) == 3
    assert all(re.fullmatch("case-[0-9a-f]{16}", case) for case in cases)
    document = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (document["inputs"], document["command"]) == ([], [])


def test_the_same_key_gives_the_same_names_and_a_resume(run, tmp_path, monkeypatch):
    run("out", "--anonymise")
    before = digests(tmp_path / "out")
    assert "2 complete" in run("out", "--anonymise")[1].err
    key = tmp_path / "config" / "mask2surface" / "anonymise.key"
    assert key.stat().st_mode & 0o777 == 0o600
    run("again", "--anonymise")
    folders = sorted(path.name for path in (tmp_path / "again").iterdir() if path.is_dir())
    assert folders == sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert {name for name in before if name.endswith(".ply")} <= set(digests(tmp_path / "again"))
    monkeypatch.setenv("M2S_ANONYMISE_KEY", "another")
    run("other", "--anonymise")
    assert not set(folders) & {path.name for path in (tmp_path / "other").iterdir()}


def test_names_already_there_are_not_joined_by_pseudonyms(run):
    assert run("out")[0] == 8
    code, screen = run("out", "--anonymise")
    assert code == 2
    assert "--out" in screen.err


def test_a_key_that_cannot_be_kept(run, tmp_path):
    (tmp_path / "config").write_text("in the way")
    code, screen = run("out", "--anonymise")
    assert code == 6
    assert "M2S_ANONYMISE_KEY" in screen.err
