"""The cache of built engines: what goes in comes out, and whatever is not ours, or not whole, is refused."""

import json
import os
import stat
from dataclasses import asdict, replace

import pytest

from m2s_runtime.engines.cache import EngineCache, EngineKey, default_folder
from m2s_runtime.errors import EngineError, OutputError

KEY = EngineKey("ab" * 32, "float32", "one=1:1:1,many=2:4:16", "tensorrt_rtx", "1.7.1.116", "sm89")
ENGINE = bytes(range(256)) * 40

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owner and mode mean nothing here")


@pytest.fixture
def cache(tmp_path):
    cache = EngineCache(tmp_path / "deep" / "engines")
    cache.store(KEY, ENGINE, ["conv", "softmax"])
    return cache


def paths(cache):
    return cache.folder / f"{KEY.stem}.engine", cache.folder / f"{KEY.stem}.json"


def refusal(cache) -> str:
    with pytest.raises(EngineError) as caught:
        cache.find(KEY)
    assert caught.value.exit_code == 5
    told = str(caught.value)
    assert str(cache.folder) in told
    assert "m2s-export --engine trt" in told or "--engine-dir" in told
    return told


def test_what_is_stored_is_found(cache):
    assert cache.find(KEY) == ENGINE
    sidecar = cache.sidecar(KEY)
    assert (sidecar.key, sidecar.size, sidecar.layers) == (KEY, len(ENGINE), ("conv", "softmax"))


@posix
def test_it_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        cache = EngineCache(tmp_path / "engines")
        cache.store(KEY, ENGINE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in cache.folder.iterdir()} == {0o600}
    assert cache.find(KEY) == ENGINE


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "cd" * 32},
        {"precision": "float16"},
        {"profile": "one=1:1:1"},
        {"flavour": "tensorrt"},
        {"version": "1.7.1.117"},
        {"arch": "sm86"},
    ],
)
def test_another_key_finds_nothing(cache, change):
    assert cache.find(replace(KEY, **change)) is None


def test_an_empty_place_finds_nothing_and_makes_nothing(tmp_path):
    assert EngineCache(tmp_path / "none").find(KEY) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("value", ["", "../up", "a/b", "two words", "\0"])
def test_a_key_is_made_of_words(value):
    with pytest.raises(ValueError, match="version"):
        replace(KEY, version=value)


@pytest.mark.parametrize("at", [0, 5000, -1])
def test_a_flipped_bit_is_found(cache, at):
    data = bytearray(ENGINE)
    data[at] ^= 1
    paths(cache)[0].write_bytes(data)
    assert "altered" in refusal(cache)


@pytest.mark.parametrize("change", [lambda e: e[:-1], lambda _: b"", lambda e: e + b"\0"])
def test_another_length_is_found(cache, change):
    paths(cache)[0].write_bytes(change(ENGINE))
    assert "truncated or altered" in refusal(cache)


@pytest.mark.parametrize(
    ("field", "value"), [("version", "10.9.0.34"), ("arch", "sm120"), ("flavour", "tensorrt"), ("onnx_sha256", "0")]
)
def test_a_sidecar_about_something_else_is_refused(cache, field, value):
    sidecar = paths(cache)[1]
    document = json.loads(sidecar.read_text())
    document["key"][field] = value
    sidecar.write_text(json.dumps(document))
    told = refusal(cache)
    assert value in told
    assert asdict(KEY)[field] in told


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "\xff", '{"schema": 1}', "[" * 100_000, '{"schema": 1e999}'], ids=range(7)
)
def test_a_sidecar_that_is_none_is_refused(cache, text):
    paths(cache)[1].write_text(text)
    refusal(cache)


def test_a_sidecar_with_an_impossible_key_or_schema_is_refused(cache):
    whole = json.loads(paths(cache)[1].read_text())
    for spoilt in ({**whole, "schema": 2}, {**whole, "key": {**whole["key"], "arch": "../.."}}):
        paths(cache)[1].write_text(json.dumps(spoilt))
        refusal(cache)


def test_a_sidecar_without_its_engine_is_refused(cache):
    paths(cache)[0].unlink()
    assert "missing" in refusal(cache)


def test_an_engine_without_its_sidecar_does_not_count(cache):
    paths(cache)[1].unlink()
    assert cache.find(KEY) is None


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o1777])
def test_a_folder_that_others_can_write_is_refused(cache, mode):
    cache.folder.chmod(mode)
    assert "others can write" in refusal(cache)
    with pytest.raises(EngineError, match="others can write"):
        cache.store(KEY, ENGINE)


@posix
@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_others_can_write_is_refused(cache, which):
    paths(cache)[which].chmod(0o622)
    assert "others can write" in refusal(cache)


@posix
def test_what_belongs_to_somebody_else_is_refused(cache, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to user" in refusal(cache)


@posix
@pytest.mark.parametrize("which", [0, 1])
def test_a_link_in_place_of_a_file_is_refused(cache, which):
    path = paths(cache)[which]
    path.rename(cache.folder / "elsewhere")
    path.symlink_to("elsewhere")
    assert "link" in refusal(cache)


@posix
def test_a_link_in_place_of_the_folder_is_refused(cache, tmp_path):
    linked = EngineCache(tmp_path / "linked")
    linked.folder.symlink_to(cache.folder)
    assert "link" in refusal(linked)
    with pytest.raises((EngineError, OutputError), match="link"):
        linked.store(KEY, ENGINE)


@posix
@pytest.mark.parametrize("which", [0, 1])
def test_pipes_and_folders_in_place_of_files_are_refused(cache, which):
    path = paths(cache)[which]
    path.unlink()
    os.mkfifo(path)
    assert "regular" in refusal(cache)
    path.unlink()
    path.mkdir()
    refusal(cache)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "engines").write_text("")
    refusal(EngineCache(tmp_path / "engines"))
    with pytest.raises(OutputError, match="--engine-dir"):
        EngineCache(tmp_path / "engines").store(KEY, ENGINE)


def test_a_build_takes_the_place_of_an_older_one(cache):
    cache.store(KEY, b"newer")
    assert cache.find(KEY) == b"newer"
    assert len(list(cache.folder.iterdir())) == 2


def test_a_full_disk_leaves_no_engine_that_counts(cache, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left.*--engine-dir") as caught:
        cache.store(KEY, b"newer")
    assert str(caught.value).count("cannot be written") == 1
    monkeypatch.undo()
    assert cache.find(KEY) is None
    cache.store(KEY, b"newest")
    assert cache.find(KEY) == b"newest"


def test_the_default_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == default_folder() == tmp_path / "mask2surface" / "engines"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_folder() == tmp_path / "home" / ".cache" / "mask2surface" / "engines"
