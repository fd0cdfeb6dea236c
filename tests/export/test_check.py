"""`m2s-export --check`: good bundles pass, faulty ones are found, and what was compared is said."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from exporting import export
from onnx import numpy_helper
from runtime.device import HostMemory
from toy import TOY, copy_toy, replace_file

from m2s_export import judge, recheck
from m2s_export.recheck import check_bundle
from m2s_export.references import NumpyEngine
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.onnx_bound import BoundOnnxEngine
from m2s_runtime.errors import UsageProblem
from m2s_runtime.manifest import GRAPHS


@pytest.fixture(autouse=True)
def onnx_runtime_alone(monkeypatch):
    """Whatever else is installed here would make these tests slower, and other ones elsewhere."""
    monkeypatch.setattr(judge, "_SPARE", {})


def test_without_a_run_the_graphs_are_evaluated_in_numpy(monkeypatch, capsys):
    assert export(monkeypatch, "--check", TOY, "--surfaces", "1") == 0
    told = capsys.readouterr().out
    assert "reference evaluator (NumPy)" in told
    assert told.count("| ok |") == 2 + len(GRAPHS) + 1
    assert all(f"| {graph} " in told for graph in GRAPHS)
    assert "1 hearts" in told


@pytest.mark.parametrize(("words", "hearts"), [((), 2), (("--record",), 20), (("--surfaces", "7"), 7)])
def test_without_a_run_two_hearts_do_unless_it_goes_on_record(words, hearts, monkeypatch, tmp_path):
    asked = []

    def judge(_bundle, _run, cases, _engine_dir):
        asked.append(cases)
        return recheck.Verdict("NumPy", (), {})

    monkeypatch.setattr(recheck, "check_bundle", judge)
    assert export(monkeypatch, "--check", copy_toy(tmp_path), *words) == 0
    assert asked == [hearts]


def spoilt(tmp_path):
    """A bundle whose `sr` is 1 % off what was trained, hashes and all."""
    folder = copy_toy(tmp_path)
    model = onnx.load(folder / "sr.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.shape == (12, 60):
            tensor.CopyFrom(numpy_helper.from_array((1.01 * values).astype(values.dtype), tensor.name))
    replace_file(folder, "sr.onnx", model.SerializeToString())
    return folder


def test_an_engine_that_deviates_fails_the_check(monkeypatch, capsys, tmp_path):
    # The reference is the toy bundle, the engine runs the spoilt one: as if a kernel of it were wrong.
    monkeypatch.setattr(recheck, "NumpyEngine", lambda _: NumpyEngine(load_bundle(TOY)))
    assert export(monkeypatch, "--check", spoilt(tmp_path), "--surfaces", "0") == 4
    told = capsys.readouterr()
    assert "1 of 7 gates do not hold" in told.err
    assert "graph sr on onnxruntime" in next(line for line in told.out.splitlines() if "FAILED" in line)


def test_with_the_run_the_graphs_are_compared_with_pytorch(bundle, run_folder):
    verdict = check_bundle(bundle, run_folder, cases=0)
    assert verdict.reference.startswith("PyTorch")
    assert verdict.failed == 0
    assert set(verdict.proven) == {"onnx-float32", "onnx-float16"}
    assert {f.what for f in verdict.findings} == {"files", "recorded", "recorded float16", *GRAPHS}


def test_the_run_of_another_bundle_is_refused(run_folder):
    with pytest.raises(UsageProblem, match="exported from"):
        check_bundle(load_bundle(TOY), run_folder, cases=0)


def test_what_passed_is_recorded_and_the_bundle_still_loads(monkeypatch, tmp_path):
    folder = copy_toy(tmp_path)
    before = load_bundle(folder).manifest
    real = recheck._engines

    def twice(bundle, engine_dir):
        for _, precision, engine in real(bundle, engine_dir):
            yield from (("onnx", precision, engine), ("openvino", "float32", engine), ("openvino", "bfloat16", engine))

    monkeypatch.setattr(recheck, "_engines", twice)
    assert export(monkeypatch, "--check", folder, "--surfaces", "0", "--record") == 0
    after = load_bundle(folder).manifest
    assert set(after.proven) == {"openvino-float32"}, "bfloat16 is not proven without surfaces"
    assert set(after.proven["openvino-float32"].graphs) == set(GRAPHS)
    assert (after.files, after.parity) == (before.files, before.parity)


def test_the_numpy_reference_is_not_onnx_runtime(bundle):
    rng = np.random.default_rng(0)
    csdg = 8 * rng.standard_normal((1, 1, 128, 128, 64), dtype=np.float32)
    a = NumpyEngine(bundle).run("encode", {"csdg": csdg})["zc"]
    b = open_engine(bundle, "onnx", "cpu").run("encode", {"csdg": csdg})["zc"]
    assert np.mean(np.abs(a - b) < 1e-4) > 0.999


def test_engines_that_blend_by_themselves_are_compared_as_drawn(monkeypatch):
    """Opened on the bundle as it is, such an engine would be judged with the C-SDG in it and its reference without."""
    bundle = load_bundle(TOY)
    blended = replace(bundle, manifest=replace(bundle.manifest, csdg_share=0.5))
    opened = []

    def blending(given, *_args, **_options):
        opened.append(given.manifest.csdg_share)
        return BoundOnnxEngine(open_engine(given, "onnx", "cpu", 1), HostMemory())

    monkeypatch.setattr(recheck, "open_engine", blending)
    verdict = check_bundle(blended, None, 1)
    assert opened
    assert not any(opened)
    assert [finding for finding in verdict.findings if finding.what == "surfaces" and finding.passed]
    assert not [finding for finding in verdict.findings if finding.passed is False]
