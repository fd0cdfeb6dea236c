"""A bundle is data from elsewhere: found where it should be, and refused whenever a byte of it is off."""

import hashlib
import json
import os

import pytest
from toy import TOY, copy_toy, edit_manifest

from m2s_runtime.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
from m2s_runtime.errors import BundleError
from m2s_runtime.manifest import GRAPHS, profile_text
from m2s_runtime.strict_json import dumps

FILES = sorted(p.name for p in TOY.iterdir() if p.name != "manifest.json")


@pytest.fixture
def toy(tmp_path):
    return copy_toy(tmp_path)


def refusal(folder) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_whole_bundle_loads():
    bundle = load_bundle(TOY)
    assert (bundle.name, bundle.path) == ("toy", TOY)
    assert bundle.sha256 == hashlib.sha256((TOY / "manifest.json").read_bytes()).hexdigest()
    assert set(bundle.manifest.files) == set(FILES)
    assert {f"{g}.onnx" for g in GRAPHS} <= set(FILES)


def test_the_manifest_is_written_as_it_is_read():
    assert dumps(load_bundle(TOY).manifest) == (TOY / "manifest.json").read_text()


def test_a_manifest_of_before_sampling_reads_as_it_was_meant(toy):
    later = (
        "temperature",
        "sample_steps",
        "spread_scale",
        "shift_error_mm",
        "csdg_share",
        "flag_limits",
        "dice_model",
        "profiles",
        "flavours",
        "proven",
    )
    for name in later:
        edit_manifest(toy, lambda document, name=name: document.pop(name))
    manifest = load_bundle(toy).manifest
    assert (manifest.temperature, manifest.spread_scale, manifest.flag_limits) == (1.0, 1.0, {})
    assert (manifest.sample_steps, manifest.csdg_share) == (0, 0.0)
    assert profile_text(manifest.profiles) == "one=1:1:1,many=2:4:16"
    assert (manifest.flavours, manifest.proven) == ({}, {})


def test_a_manifest_may_hold_half_precision_graphs_and_profiles(toy):
    edit_manifest(
        toy,
        lambda d: d.update(
            profiles={"one": {"min": 1, "opt": 1, "max": 1}, "big": {"min": 2, "opt": 8, "max": 64}},
            flavours={"float16": {"files": {"denoise": "decode.onnx"}, "parity": None}},
        ),
    )
    manifest = load_bundle(toy).manifest
    assert profile_text(manifest.profiles) == "one=1:1:1,big=2:8:64"
    assert manifest.graph_file("denoise", "float16") == "decode.onnx"
    assert manifest.graph_file("mc", "float16") == "mc.onnx"
    assert manifest.graph_file("denoise") == manifest.graph_file("denoise", "bfloat16") == "denoise.onnx"


def test_a_manifest_may_move_limits(toy):
    edit_manifest(toy, lambda d: d.update(temperature=0.5, spread_scale=2, flag_limits={"torn_wall": 1}))
    manifest = load_bundle(toy).manifest
    assert (manifest.temperature, manifest.spread_scale, manifest.flag_limits) == (0.5, 2.0, {"torn_wall": 1.0})


def test_reading_gives_the_listed_bytes():
    assert load_bundle(TOY).read("mc.onnx") == (TOY / "mc.onnx").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(toy, name):
    data = bytearray((toy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (toy / name).write_bytes(data)
    told = refusal(toy)
    assert name in told
    assert "m2s-export" in told


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda _: b""])
def test_another_size_is_found(toy, change):
    path = toy / "decode.onnx"
    path.write_bytes(change(path.read_bytes()))
    assert "bytes instead of" in refusal(toy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(toy, name):
    (toy / name).unlink()
    assert name in refusal(toy)


def test_a_folder_in_place_of_a_file_is_refused(toy):
    (toy / "mc.onnx").unlink()
    (toy / "mc.onnx").mkdir()
    assert "mc.onnx" in refusal(toy)


def test_a_file_altered_after_loading_is_not_used(toy):
    bundle = load_bundle(toy)
    (toy / "mc.onnx").write_bytes(b"x" * bundle.manifest.files["mc.onnx"].size)
    with pytest.raises(BundleError, match=r"mc\.onnx.*altered"):
        bundle.read("mc.onnx")


def test_a_file_that_is_not_listed_is_not_read(toy):
    (toy / "more.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"more\.onnx is not listed"):
        load_bundle(toy).read("more.onnx")


@pytest.mark.parametrize(("schema", "remedy"), [(2, "update mask2surface"), (0, "export the bundle anew")])
def test_another_schema_is_told_before_anything_else(toy, schema, remedy):
    edit_manifest(toy, lambda d: d.update(schema=schema, a_later_invention=True))
    told = refusal(toy)
    assert f"schema {schema}" in told
    assert remedy in told


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", ".hidden", "a\\b", ""])
def test_paths_that_leave_the_folder_are_refused(toy, name):
    (toy.parent / "secret").write_bytes(b"")
    edit_manifest(toy, lambda d: d["files"].update({name: {"sha256": hashlib.sha256().hexdigest(), "size": 0}}))
    assert "outside" in refusal(toy)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_links_that_leave_the_folder_are_refused(toy):
    data = (toy / "mc.onnx").read_bytes()
    (toy.parent / "elsewhere").write_bytes(data)
    (toy / "mc.onnx").unlink()
    (toy / "mc.onnx").symlink_to("../elsewhere")
    assert "outside" in refusal(toy)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d["graphs"]["mc"]["outputs"][0].update(name="moves"), "graph mc"),
        (lambda d: d["graphs"]["sr"]["inputs"].pop(), "graph sr"),
        (lambda d: d["graphs"]["denoise"]["inputs"][2].update(dtype="float32"), "graph denoise"),
        (lambda d: d["graphs"]["encode"]["outputs"][0]["shape"].reverse(), "graph encode"),
        (lambda d: d["graphs"].pop("decode"), "graph decode"),
        (lambda d: d.update(latent_shape=[8, 16, 16, 8]), "graph decode, denoise, encode"),
        (lambda d: d.update(grid=[128, 128, 60]), "grid"),
        (lambda d: d.update(spacing=[1, 1, 1.5]), "spacing"),
        (lambda d: d.update(padding=4), "padding"),
        (lambda d: d.update(scale_factor=0), "scale_factor"),
        (lambda d: d.update(steps=1001), "steps"),
        (lambda d: d["files"].pop("sr.onnx"), "sr.onnx is not listed"),
        (lambda d: d.update(temperature=1.5), "temperature"),
        (lambda d: d.update(temperature=-0.1), "temperature"),
        (lambda d: d.update(csdg_share=1.1), "csdg_share"),
        (lambda d: d.update(csdg_share=-0.1), "csdg_share"),
        (lambda d: d.update(spread_scale=0), "spread_scale"),
        (lambda d: d.update(sample_steps=-1), "sample_steps"),
        (lambda d: d.update(sample_steps=1001), "sample_steps"),
        (lambda d: d.update(profiles={}), "profiles"),
        (lambda d: d.update(profiles={"one": {"min": 0, "opt": 1, "max": 1}}), "profile 'one'"),
        (lambda d: d.update(profiles={"one": {"min": 1, "opt": 4, "max": 2}}), "profile 'one'"),
        (lambda d: d.update(profiles={"o,ne": {"min": 1, "opt": 1, "max": 1}}), "profile 'o,ne'"),
        (lambda d: d.update(flavours={"float8": {"files": {}, "parity": None}}), "float8"),
        (lambda d: d.update(flavours={"float16": {"files": {"mc": "half.onnx"}}}), "half.onnx"),
        (lambda d: d.update(flavours={"float16": {"files": {"unet": "mc.onnx"}}}), "unet"),
        (lambda d: d.update(flag_limits={"torn_wall": 0.2, "tornwall": 0.2}), "no 'tornwall', only expected_dice, few"),
    ],
)
def test_what_this_runtime_cannot_drive_is_refused(toy, change, word):
    edit_manifest(toy, change)
    assert word in refusal(toy)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(surprise=1), "unknown 'surprise'"),
        (lambda d: d.pop("training"), "missing 'training'"),
        (lambda d: d.update(clip_mm="12"), "clip_mm"),
        (lambda d: d.update(steps=True), "steps"),
        (lambda d: d.update(steps=10.0), "steps"),
        (lambda d: d.update(slices="picture"), "slices"),
        (lambda d: d.update(requantise=True), "requantise"),
        (lambda d: d.update(temperature="cold"), "temperature"),
        (lambda d: d.update(flag_limits={"torn_wall": None}), "flag_limits.torn_wall"),
        (lambda d: d.update(flag_limits={"torn_wall": float("nan")}), "NaN"),
        (lambda d: d.update(flag_limits=[["torn_wall", 0.2]]), "flag_limits"),
        (lambda d: d.update(latent_shape=[64, 32, 32]), "latent_shape"),
        (lambda d: d["schedule"].update(prediction="v"), "schedule.prediction"),
        (lambda d: d["files"].update({"mc.onnx": "hash"}), "files.mc.onnx"),
    ],
)
def test_a_manifest_of_another_form_is_refused(toy, change, word):
    edit_manifest(toy, change)
    told = refusal(toy)
    assert word in told
    assert "manifest.json" in told


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"schema": 1, "schema": 1}']
)
def test_a_manifest_that_is_no_object_is_refused(toy, text):
    (toy / "manifest.json").write_bytes(text)
    assert "manifest.json" in refusal(toy)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(toy, value):
    text = (toy / "manifest.json").read_text()
    (toy / "manifest.json").write_text(text.replace('"clip_mm": 12.0', f'"clip_mm": {value}'))
    assert "manifest.json" in refusal(toy)


def test_a_giant_manifest_is_not_read_whole(toy):
    with (toy / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert "manifest.json" in refusal(toy)


def test_a_giant_file_is_not_read_though_it_is_listed(toy):
    with (toy / "mc.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    edit_manifest(toy, lambda d: d["files"]["mc.onnx"].update(size=1 << 40))
    assert "mc.onnx: listed with 1099511627776 bytes" in refusal(toy)


def test_found_by_path_then_home_by_name(toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_bundle(toy) == toy
    assert find_bundle("toy").resolve() == toy
    monkeypatch.chdir("/")
    monkeypatch.setenv("M2S_HOME", str(tmp_path))
    assert find_bundle("toy") == toy


def test_home_comes_before_the_installed_one(toy, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    toy.rename(home / DEFAULT_BUNDLE)
    monkeypatch.setenv("M2S_HOME", str(home))
    assert load_bundle().name == "toy"
    assert load_bundle(DEFAULT_BUNDLE).path == home / DEFAULT_BUNDLE


@pytest.mark.parametrize("wanted", ["no-such-bundle", "no/such/folder", "..", "", ".hidden"])
def test_a_bundle_that_is_nowhere_is_error_four(wanted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("M2S_HOME", str(tmp_path / "empty"))
    assert "--model" in refusal(wanted)


def test_the_home_may_be_a_bundle_and_has_to_exist(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("M2S_HOME", str(toy))
    assert load_bundle().path == toy
    monkeypatch.setenv("M2S_HOME", str(tmp_path / "nowhere"))
    assert "M2S_HOME" in refusal(None)


def test_a_file_beyond_the_list_is_ignored(toy):
    (toy / "notes.txt").write_text("mine")
    assert json.loads(dumps(load_bundle(toy).manifest))["name"] == "toy"
