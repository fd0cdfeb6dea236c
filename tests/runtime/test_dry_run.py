"""`--dry-run`: says what would run and whether the output could be written, and touches nothing."""

import os
import tempfile

import pytest


def test_dry_run_writes_nothing(run, folder, tmp_path):
    (folder / "d.nii").write_bytes(b"junk")
    code, stdout, stderr = run(folder, "-o", tmp_path / "out", "--dry-run")
    assert code == 8
    assert len(stdout.splitlines()) == 3
    assert stderr.count("would run") == 3
    assert not (tmp_path / "out").exists()


@pytest.fixture
def forbidden(tmp_path):
    """A folder that may be read but not written."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_a_dry_run_tells_that_the_output_could_not_be_written(run, folder, tmp_path, forbidden):
    (tmp_path / "file").write_text("mine")
    impossible = [tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("x" * 300)]
    if not os.access(forbidden, os.W_OK):  # root may write anywhere
        impossible += [forbidden, forbidden / "new" / "out"]
    for out in impossible:
        code, stdout, stderr = run(folder, "-o", out, "--dry-run", "-q")
        assert (code, stdout) == (6, "")
        assert str(out) in stderr
        assert run(folder, "-o", out, "-q")[0] == 6
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dry_run_tells_that_the_disk_is_read_only(run, folder, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, _, stderr = run(folder, "-o", tmp_path / "out", "--dry-run", "-q")
    assert code == 6
    assert "Read-only file system" in stderr


@pytest.mark.parametrize("out", ["there", "new", "new/below"])
def test_a_dry_run_leaves_the_output_as_it_is(run, folder, tmp_path, out):
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(folder, "-o", tmp_path / out, "--dry-run")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before
