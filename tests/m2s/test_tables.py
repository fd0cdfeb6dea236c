"""Tables 1 to 3: competing methods from checkpoints and plug-ins, paired tests, two blocks, Markdown and LaTeX."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from click.testing import CliRunner
from counted import items
from safetensors.numpy import save_file
from toy import TOY, copy_toy, edit_manifest

from m2s.baselines import registry
from m2s.baselines.method import from_mask
from m2s.baselines.nni import nearest_neighbour
from m2s.baselines.registry import Baseline
from m2s.cli import evaluate as command
from m2s.data.clinical import write_pairs
from m2s.data.labelmaps import split
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER
from m2s.evaluate import tables_cli, trained, work
from m2s.evaluate.compare import paired
from m2s.evaluate.published import METHODS_OF, SIMULATION, Published
from m2s.evaluate.rows import RowFile
from m2s.evaluate.settings import MapStack, PairStack, StandInStack, map_truth
from m2s.evaluate.significance import holm, wilcoxon
from m2s.evaluate.study import Stacks, Study, notes_of, slow_methods
from m2s.evaluate.tables import Block, Line, budget_notes, escape, latex, markdown
from m2s.evaluate.work import Setup
from m2s_runtime.errors import NoInputs, UsageProblem


def test_wilcoxon_is_that_of_the_table_of_exact_probabilities():
    differences = np.array([0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0])
    # Of the 2^7 signs of the ranks 1 to 7, those with a rank sum of 2 or less on either side.
    sums = [sum(r for r, s in enumerate(signs, 1) if s) for signs in itertools.product((0, 1), repeat=7)]
    assert wilcoxon(differences) == pytest.approx(2 * sum(s <= 2 for s in sums) / 2**7)
    assert wilcoxon([0.0, 0.0]) == 1.0


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.2.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.2, 0.02]), [0.06, 0.04, 0.2, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_names_of_methods_are_checked_before_anything_is_opened(tmp_path):
    for arguments in (
        ["--method", "magic"],
        ["--also", "ours=x"],
        ["--also", "a b=x"],
        ["--also", "Ours=x"],
        ["--also", "-=x"],
        ["--also", "[v2]=x"],
        ["--also", "a=x", "--also", "a=y"],
    ):
        told = CliRunner().invoke(command, ["table1", "--atlas", str(tmp_path), *arguments])
        assert told.exit_code == 2
        assert "Invalid value" in told.stderr
    for arguments, wanted in (
        (["--method", "srheart"], "give --baselines RUN"),
        (["--method", "srheart", "--baselines", str(tmp_path)], "m2s-train baseline srheart"),
        (["--method", "nni", "--slow", "gan"], "choose among the methods of this table"),
        (["--method", "nni", "--label-maps", str(tmp_path)], "one of --atlas"),
    ):
        told = CliRunner().invoke(command, ["table1", "--atlas", str(tmp_path), *arguments])
        assert told.exit_code != 0
        assert wanted in told.stderr
    told = CliRunner().invoke(command, ["table2", "--label-maps", str(tmp_path), "--draws", "3"])
    assert told.exit_code == 2
    assert "--draws: an acquired stack is one stack" in told.stderr


def _trained(run, name, size="cpu", seconds=(100, 50), value=1.0):
    for number, part in enumerate(seconds):
        folder = run / name / f"stage{number}"
        folder.mkdir(parents=True)
        metadata = {"size": size, "seconds": "7"}
        save_file({"w": np.full(3, value, np.float32)}, folder / "best.safetensors", metadata)
        (folder / "log.csv").write_text(f"step,seconds,rate\n1,3,0.1\n2,{part},0.1\n")


def test_checkpoints_tell_size_seconds_and_their_weights(tmp_path):
    _trained(tmp_path, "mcsr-ms")
    _trained(tmp_path, "gan", "published")
    found = trained.trained("mcsr-ms", tmp_path)
    assert (found.size, found.seconds) == ("cpu", 150)
    assert not found.slow("cpu")
    ablation = trained.trained("gan", tmp_path)
    assert ablation.slow("cpu")
    assert not ablation.slow("cuda:0")
    assert replace(found, name="srheart").slow("cuda")
    shared = tmp_path / "mcsr"
    shared.mkdir()
    save_file({"w": np.ones(1, np.float32)}, shared / "best.safetensors", {"seconds": "20"})
    assert trained.trained("gan", tmp_path).seconds == 170
    assert trained.trained("gan", tmp_path).digest != ablation.digest
    assert trained.trained("mcsr-ms", tmp_path) == found
    (tmp_path / "mcsr-ms/stage1/log.csv").unlink()
    assert trained.trained("mcsr-ms", tmp_path).seconds == 107
    with pytest.raises(NoInputs, match="m2s-train baseline vae"):
        trained.trained("vae", tmp_path)


@dataclass
class Scaled:
    """Stands for a trained network: opens what the weights hold."""

    factor: float

    def predict(self, mask, spacing):
        return from_mask(nearest_neighbour(mask), spacing[2], None)


def _fake(monkeypatch):
    monkeypatch.setattr(trained, "open_baseline", lambda _name, _run, _device: Scaled(1.0))


def test_a_killed_table_goes_on_with_a_baseline_and_other_weights_are_refused(tmp_path, monkeypatch):
    _fake(monkeypatch)
    run, log, out = tmp_path / "run", tmp_path / "log", tmp_path / "rows.csv"
    _trained(run, "mcsr-ete")
    setup = Setup(("nni", "mcsr-ete"), baselines=run)
    done = work.evaluate(items(log, 3), setup, RowFile(out))
    next(done)  # and then it is killed
    done.close()
    list(work.evaluate(items(log, 3), setup, RowFile(out)))
    told = [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()]
    assert told == [f"s{k} {name}" for k in range(3) for name in ("nni", "mcsr-ete")]
    list(work.evaluate(items(log, 3), replace(setup, names=("nni",)), RowFile(out)))
    save_file({"w": np.zeros(3, np.float32)}, run / "mcsr-ete/stage0/best.safetensors", {"size": "cpu"})
    with pytest.raises(UsageProblem, match="another model or other options gave for mcsr-ete"):
        list(work.evaluate(items(log, 3), setup, RowFile(out)))


def test_slow_methods_are_scored_on_a_few_stacks_and_all_methods_beside_them(tmp_path, monkeypatch):
    _fake(monkeypatch)
    _trained(tmp_path / "run", "srheart")
    setup = Setup(("nni", "shape-based", "srheart"), baselines=tmp_path / "run")
    assert slow_methods(setup, ()) == {"srheart"}
    assert slow_methods(setup, ("nni", "gan")) == {"srheart", "nni"}
    every = items(tmp_path / "log", 5)
    study = Study({"srheart"}, RowFile())
    blocks = study.blocks(Stacks("Here", every, every[1:3]), setup, SIMULATION)
    counts = {block.title: {line.method: len(line.rows) for line in block.lines} for block in blocks}
    assert counts == {
        "Here: 5 stacks, methods quick enough for them": {"nni": 5, "shape-based": 5},
        "Here: 2 stacks, every method": {"nni": 2, "shape-based": 2, "srheart": 2},
    }
    assert len((tmp_path / "log").read_text().splitlines()) == 12
    (quick,) = Study((), RowFile()).blocks(Stacks("Here", every, every), replace(setup, names=("nni",)), {})
    assert quick.title == "Here: 5 stacks, every method"
    (one,) = study.blocks(Stacks("Here", every, list(every)), setup, SIMULATION)
    assert one.title == "Here: 5 stacks, every method"
    assert [len(line.rows) for line in one.lines] == [5, 5, 5]


def test_fine_tuned_methods_stand_beside_those_that_pairs_teach_nothing(tmp_path, monkeypatch):
    _fake(monkeypatch)
    for run, seconds in ((tmp_path / "run", (100,)), (tmp_path / "tuned", (10,))):
        _trained(run, "mcsr-ete", seconds=seconds, value=seconds[0])
    setup = Setup(("nni", "mcsr-ete"), baselines=tmp_path / "run")
    tuned = Setup(("mcsr-ete",), baselines=tmp_path / "tuned")
    stacks = Stacks("Here", some := items(tmp_path / "log", 2), some)
    study = Study((), RowFile(tmp_path / "rows.csv"))
    study.blocks(stacks, setup, {}, ", direct")
    (block,) = study.tuned_blocks(stacks, setup, tuned, {"nni": Published("1", "2")})
    assert [(line.method, line.training_s, line.published.dice) for line in block.lines] == [
        ("nni", None, "1"),
        ("mcsr-ete", 10, "-"),
    ]
    assert {row["setting"] for row in block.lines[1].rows} == {"fine-tuned"}
    assert len((tmp_path / "log").read_text().splitlines()) == 6


def test_fine_tuned_methods_that_are_missing_are_said(tmp_path, capsys):
    setup = Setup(("nni", "srheart", "mcsr-ms", "mcsr-ete", "ours"), baselines=tmp_path)
    assert tables_cli._tuned_setup(setup, None, None, ()) is None
    with pytest.raises(UsageProblem, match="give --baselines RUN too"):
        tables_cli._tuned_setup(replace(setup, baselines=None), tmp_path, None, ())
    (tmp_path / "mcsr-ms" / "centreline").mkdir(parents=True)  # begun, and no weights yet
    with pytest.raises(NoInputs, match="holds no method of this table"):
        tables_cli._tuned_setup(setup, tmp_path, None, ())
    _trained(tmp_path, "mcsr-ete")
    tuned = tables_cli._tuned_setup(setup, tmp_path, None, ())
    assert (tuned.names, tuned.baselines) == (("mcsr-ete",), tmp_path)
    assert capsys.readouterr().err == "not among the fine-tuned methods: MCSR-MS, Ours\n"


def _rows(method, dice, **more):
    return [{"subject": s, "draw": 0, "method": method, "dice": d, "cd": 5.0, **more} for s, d in enumerate(dice)]


def _block():
    ours = Line("ours", "Ours", _rows("ours", [0.9, 0.8, 0.95, 0.85, 0.9, 0.92]), training_s=100.0)
    worse = Line(
        "m", "Mine & yours_50%", _rows("m", [0.8, 0.7, 0.9, 0.8, 0.7, 0.9]), Published("1.00 ± 2.00", "-"), "cpu", 90.0
    )
    gaping = _rows("p", [0.5, None, None, 0.4])
    partly = Line(
        "p", "Points", [*gaping, {"subject": 9, "method": "p", "error": "empty: none"}], size="tiny", training_s=300.0
    )
    return Block("Block #1", [worse, partly, ours])


def test_a_line_holds_the_figures_of_its_subjects_and_what_failed():
    block = _block()
    cells = dict(zip(("m", "p", "ours"), block.cells(), strict=True))
    assert cells["m"][:5] == ["Mine & yours_50%†", "6", "0", "80.00 ± 8.94", "1.00 ± 2.00"]
    assert cells["p"][:4] == ["Points‡", "4", "1", "45.00 ± 7.07 (2 of 4)"]
    assert cells["ours"][-2:] == ["-", "-"]
    # All six differences have one sign: 2 / 2^6; of the two that both have, 2 / 2^2; Holm doubles the smaller.
    assert block.p_values("dice") == pytest.approx({"m": 2 * 2 / 64, "p": 0.5})
    assert block.p_values("cd") == {"m": 1.0, "p": 1.0}
    assert budget_notes(block.lines, ("ours",)) == [
        "Budget: Points was trained for 300 s, not within 20 % of Ours 100 s."
    ]


def test_both_phases_of_a_person_are_one_subject_and_are_paired_with_themselves():
    def rows(method, dice):
        phases = [("a", "ED"), ("a", "ES"), ("b", "ED")]
        return [
            {"subject": s, "phase": p, "draw": 0, "method": method, "dice": d}
            for (s, p), d in zip(phases, dice, strict=True)
        ]

    np.testing.assert_allclose(paired(rows("m", [0.5, 0.9, 0.8]), rows("ours", [0.6, 0.7, 0.9]), "dice"), [0.05, -0.1])
    line = Line("m", "M", rows("m", [0.5, 0.9, 0.8]))
    assert Block("B", [line]).cells()[0][1:4] == ["2", "0", "75.00 ± 7.07"]


def test_what_was_fine_tuned_is_compared_with_what_was():
    lines = [
        Line("ours", "Ours", [], training_s=100.0, tuned=True),
        Line("a", "A", [], size="cpu", training_s=110.0, tuned=True),
        Line("b", "B", [], size="cpu", training_s=300.0, tuned=True),
        Line("c", "C", [], size="cpu", training_s=3000.0),  # pairs teach it nothing
    ]
    assert budget_notes(lines, ("ours",)) == ["Budget: B was fine-tuned for 300 s, not within 20 % of Ours 100 s."]


def test_a_line_is_sent_to_the_bundle_of_ours_that_had_its_time():
    lines = [
        Line("short", "short", [], training_s=1500.0),
        Line("ours", "Ours", [], training_s=6000.0),
        Line("a", "A", [], size="cpu", training_s=1400.0),
        Line("b", "B", [], size="cpu", training_s=300.0),
        Line("c", "C", [], size="cpu", training_s=5000.0),
    ]
    assert budget_notes(lines, ("ours", "short")) == [
        "Budget: A was trained for 1400 s, where Ours had 6000 s: the line to compare it with is short, 1500 s.",
        "Budget: B was trained for 300 s, not within 20 % of Ours 6000 s, short 1500 s.",
    ]


def test_stacks_of_other_files_have_other_names(tmp_path):
    heart, subject = phantom(3), split()["validation"][0]
    names = set()
    for folder, motion in (("a", 0), ("b", 1), ("c", 0)):
        write_pairs(tmp_path / folder, [(subject, heart.id, heart.mask)], PAPER, seed=motion)
        items = (MapStack(tmp_path / folder, subject, "ED", 0), PairStack(tmp_path / folder, subject, "ED"))
        names |= {item.name for item in items}
    assert len(names) == 3  # one map, two acquired stacks; the third folder holds what the first does
    assert PairStack(tmp_path / "none", 1, "ES").name == "pair, labelmap-1-ES, unread"


def test_chamfer_distance_of_completed_points_stands_in_brackets():
    cells = Block("B", [Line("p", "P", _rows("p", [0.5, 0.6], cd_points=3.0))]).cells()
    assert cells[0][5] == "5.00 ± 0.00 (3.00 ± 0.00)"


def test_markdown_and_latex_hold_the_same_lines():
    block = _block()
    text = markdown([block], ["a note"])
    assert text.splitlines()[0] == "**Block #1**"
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    drawn = latex("One & all", [block, block], ["100 %"])
    lines = [line for line in drawn.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(lines) == 1 + 2 * 3
    assert {line.count(" & ") for line in lines} == {13}
    assert r"Mine \& yours\_50\%$^\dagger$" in drawn
    assert r"\caption{One \& all}" in drawn
    assert r"\textit{Block \#1}" in drawn
    assert drawn.count(r"\midrule") == 2
    assert drawn.count("{") - drawn.count(r"\{") == drawn.count("}") - drawn.count(r"\}")


def test_every_special_letter_is_escaped():
    assert escape("a\\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"
    assert escape("±²†<&%$#_") == r"$\pm$$^2$$^\dagger$$<$\&\%\$\#\_"


def test_a_stand_in_is_scored_against_the_heart_that_was_scanned(monkeypatch):
    monkeypatch.setattr("m2s.evaluate.settings.base_heart", lambda _cohort, _row: phantom(3))
    rows = list(StandInStack(None, 0, 0).rows({"nni": work.classical_method("nni")}))
    assert [(row["subject"], row["setting"]) for row in rows] == [(phantom(3).id, "direct")]
    assert 0.4 < rows[0]["dice"] < 0.95
    assert 0 < rows[0]["shift_raw"] < 20


def test_the_truth_of_a_pair_has_the_planes_of_the_grid():
    heart = phantom(3)
    same = map_truth("x", heart.mask, 10.0)
    np.testing.assert_array_equal(same.mask, heart.mask)
    assert same.volume == pytest.approx(heart.mask.sum() * 2, rel=0.03)
    # The same planes half as far apart: half the volume.
    assert map_truth("x", heart.mask, 5.0).volume == pytest.approx(same.volume / 2, rel=0.1)


def test_a_group_reruns_the_tables_on_its_copy_of_the_data(tmp_path, monkeypatch):
    _fake(monkeypatch)
    monkeypatch.setitem(registry.BASELINES, "gan", Baseline("none", "Conditional GAN", tunable=False))
    _trained(tmp_path / "run", "gan", "tiny")
    heart = phantom(3)
    write_pairs(tmp_path / "maps", [(split()["validation"][0], heart.id, heart.mask)], PAPER, seed=0)
    data = ["--label-maps", str(tmp_path / "maps"), "--few", "1", "--method", "nni", "--method", "gan"]
    data += ["--baselines", str(tmp_path / "run"), "--out", str(tmp_path / "rows.csv")]
    first = CliRunner().invoke(command, ["table1", *data, "--draws", "1", "--latex", str(tmp_path / "t.tex")])
    assert first.exit_code == 0, first.stderr
    assert "**Simulated motion, the paper's label maps: 1 stack, every method**" in first.stdout
    assert "| Conditional GAN‡ | 1 | 0 |" in first.stdout
    assert r"\end{table*}" in (tmp_path / "t.tex").read_text()
    third = CliRunner().invoke(command, ["table3", *data, "--draws", "1", "--simulation", "--slow", "gan"])
    assert third.exit_code == 0, third.stderr
    assert "**Acquired stacks of the paper's data set, direct: 1 stack, every method**" in third.stdout
    rows = RowFile(tmp_path / "rows.csv").rows
    assert sorted((row["item"].split(",")[0], row["method"]) for row in rows) == [
        (kind, method) for kind in sorted({r["item"].split(",")[0] for r in rows}) for method in ("gan", "nni")
    ]
    assert len(rows) == 4
    assert {row["subject"] for row in rows} == {f"labelmap-{split()['validation'][0]}"}
    simulated, paired = ({r["dice"] for r in rows if r["item"].startswith(kind)} for kind in ("labelmap", "pair"))
    assert len(simulated) == 1
    assert all(0.4 < d < 0.8 for d in (*simulated, *paired))


def test_ours_of_two_bundles_stand_in_one_table(tmp_path):
    pytest.importorskip("onnxruntime")
    setup = Setup(("ours", "equal"), work.ModelOptions(model=str(TOY)), also=(("equal", str(TOY)),))
    marks = setup.fingerprints()
    assert marks["ours"] == marks["equal"]
    methods = setup.methods()
    assert list(methods) == ["ours", "equal"]
    assert methods["equal"].shared is not methods["ours"].shared


def test_what_is_in_the_surface_beside_the_diffusion_is_said(tmp_path):
    copied = copy_toy(tmp_path)
    edit_manifest(copied, lambda document: document.update(csdg_share=0.25))
    setup = Setup(("ours", "equal"), work.ModelOptions(model=str(TOY)), also=(("equal", str(copied)),))
    told = [note for note in notes_of([], setup) if "C-SDG" in note]
    assert len(told) == 1
    assert told[0].startswith("Surfaces of equal: 25 % C-SDG")


def test_what_is_not_trained_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    asked = {"names": (), "baselines": tmp_path, "also": (), "slow": (), "model": None, "engine": "auto"}
    asked |= {"device": "auto", "threads": 1, "steps": None, "seed": 0, "samples": 1, "refine": 0, "base_limit": None}
    _trained(tmp_path, "mcsr-ms")
    setup = tables_cli._setup(1, dict(asked))
    assert setup.names == ("nni", "shape-based", "shape-based-line", "mcsr-ms", "ours")
    assert "SRHeart, MCSR-ETE, CardiacPCN" in capsys.readouterr().err
    assert tables_cli._setup(1, asked | {"names": ("plugged:Repeats",)}).names[-2:] == ("ours", "plugged:Repeats")
    assert tables_cli._setup(1, asked | {"names": ("nni",)}).names == ("nni",)
    assert set(METHODS_OF[1]) >= set(SIMULATION)
