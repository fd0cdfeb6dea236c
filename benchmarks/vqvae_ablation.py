"""Which VQ-VAE? Variants of preset `compact`, one change each, trained for equal CPU time; a Markdown table.

    python benchmarks/vqvae_ablation.py --atlas DATA/cap_mesa_lv_pca --minutes 60

One thread. Minutes are CPU minutes of the training process, validations included, so that other work on the machine
changes nothing. A variant that was interrupted goes on from its last checkpoint, one that is finished is not run again;
the table is written anew after each. The best weights of a training are chosen on twelve hearts of the selection part
of the atlas and judged on others of it; the validation cohort is not touched.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch

from m2s.data.store import HeartStore, StoreSpec, open_store
from m2s.nets.presets import PRESETS, VqVaeSize
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import hardware, load_weights
from m2s.train.loop import Recipe, fit
from m2s.train.vqvae import JUDGED_HEARTS, GridSource, VqVaeStage, settle
from m2s_runtime.atomic import write_text
from m2s_runtime.errors import UsageProblem

BASE = PRESETS["compact"].vqvae
NEAR_WEIGHT = 4.0
CROP = 96
ENDLESS = 10**9
"""Steps: the clock ends a training, not their number."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    size: VqVaeSize = BASE
    near_weight: float = NEAR_WEIGHT


VARIANTS = {
    v.name: v
    for v in (
        Variant("compact"),
        # Four voxels a cell: with half the channels a step still costs twice as much as in the base.
        Variant("latent 32x32x16", replace(BASE, patch=(2, 2, 2), down=(2, 2, 2), channels=(24, 48))),
        Variant("clamp 5 mm", replace(BASE, clamp_mm=5.0)),
        Variant("clamp 20 mm", replace(BASE, clamp_mm=20.0)),
        Variant("gradient codebook", replace(BASE, codebook="gradient")),
        Variant("plain L1", near_weight=0.0),
    )
}


@dataclass(frozen=True)
class Plan:
    """What all variants share."""

    atlas: str | None
    minutes: float
    hearts: int
    judged: int
    seed: int
    runs: Path

    def store(self, kind: str) -> tuple[Path, HeartStore]:
        """Hearts to train on, to choose weights by, and to judge by."""
        split = "training" if kind == "training" else "selection"
        count = self.hearts if kind == "training" else self.judged
        seed = {"training": 1, "selection": 1_000_004, "judged": 1_000_005}[kind]
        spec = StoreSpec(self.atlas, split, count, seed, distances=True)
        folder = self.runs / "hearts" / kind
        return folder, open_store(folder, spec)

    def folder(self, variant: Variant) -> Path:
        """Of one variant's training."""
        return self.runs / f"{variant.name.replace(' ', '-')}-seed{self.seed}"

    def settings(self, variant: Variant) -> str:
        """What a result depends on."""
        shared = {name: value for name, value in asdict(self).items() if name not in ("runs", "atlas")}
        return json.dumps(asdict(variant) | shared | {"phantoms": self.atlas is None}, sort_keys=True)


def result(plan: Plan, variant: Variant) -> dict[str, float]:
    """Figures of a variant, from disk where it is finished, else trained.

    Raises:
        UsageProblem: its folder holds a training with other settings.
    """
    folder = plan.folder(variant)
    marker, done = folder / "settings.json", folder / "result.json"
    folder.mkdir(parents=True, exist_ok=True)
    if marker.is_file() and marker.read_text() != plan.settings(variant):
        raise UsageProblem(f"{folder} was trained with other settings: remove it or choose another --runs")
    write_text(marker, plan.settings(variant))
    if not done.is_file():
        write_text(done, json.dumps(_train(plan, variant, folder), indent=1))
    return json.loads(done.read_text())


def _train(plan: Plan, variant: Variant, folder: Path) -> dict[str, float]:
    hearts, training = plan.store("training")
    source = GridSource(hearts, training.spec, plan.seed, CROP)
    torch.manual_seed(plan.seed)
    stage = _stage(variant, source, plan.store("selection")[1], plan, JUDGED_HEARTS)
    recipe = Recipe(steps=ENDLESS, batch=2, rate=1e-3, schedule="cosine", average=0.99, validate_every=500,
                   minutes=plan.minutes, seed=plan.seed, clock="cpu")  # fmt: skip
    fit(stage, recipe, folder, quiet=True)
    settle(stage, folder)
    _, metadata = load_weights(folder / "last.safetensors")
    state = json.loads(metadata["state"])
    judge = _stage(variant, source, plan.store("judged")[1], plan, plan.judged)
    judge.net.load_state_dict(load_weights(folder / "best.safetensors")[0])
    with torch.no_grad():
        figures = judge.validate(judge.net.eval(), folder)
    return figures | {"steps": state["step"], "cpu_minutes": state["seconds"] / 60}


def _stage(variant: Variant, source: GridSource, hearts: HeartStore, plan: Plan, judged: int) -> VqVaeStage:
    return VqVaeStage(variant.size, source, hearts, {}, near_weight=variant.near_weight, judged=judged, seed=plan.seed)


def table(rows: Iterable[tuple[Variant, dict[str, float]]]) -> list[str]:
    """Markdown lines."""
    head = ("variant", "latent", "clamp mm", "codebook", "L1 near x", "weights", "steps", "CPU min", "Dice", "ASSD mm",
            "perplexity", "near surface", "dead codes")  # fmt: skip
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(_row(*row) for row in rows)]


def _row(variant: Variant, r: dict[str, float]) -> str:
    with torch.device("meta"):
        net = VqVae(variant.size)
    shape = "x".join(map(str, net.latent_shape((128, 128, 64))[1:]))
    weights = f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"
    cells = [variant.name, shape, f"{variant.size.clamp_mm:g}", variant.size.codebook, f"{1 + variant.near_weight:g}",
             weights, f"{r['steps']:.0f}", f"{r['cpu_minutes']:.1f}", f"{r['dice']:.4f}", f"{r['assd']:.3f}",
             f"{r['perplexity']:.0f}", f"{r['perplexity_near']:.0f}", f"{r['dead_codes']:.0f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(plan: Plan, rows: list[tuple[Variant, dict[str, float]]]) -> str:
    """The whole page."""
    source = "--phantom" if plan.atlas is None else "--atlas DATA/cap_mesa_lv_pca"
    data = "phantoms" if plan.atlas is None else "CAP MESA atlas, rows 0 to 1299, judged on rows 1300 to 1399"
    title = "# VQ-VAE: variants of preset `compact`, one change each"
    command = f"""\
    python benchmarks/vqvae_ablation.py {source} --minutes {plan.minutes:g} \\
        --hearts {plan.hearts} --judged {plan.judged} --seed {plan.seed}"""
    text = f"""\
{plan.minutes:g} CPU minutes each, {hardware("cpu")}, PyTorch {torch.__version__}; {data};
{plan.hearts} training hearts, {plan.judged} judged. Gate before diffusion: Dice 0.985, ASSD 0.12 mm. Near surface:
perplexity of the cells with the surface within 2 mm. Dead: codes that no cell of the judged hearts takes."""
    return "\n".join([title, "", command, "", text, "", *table(rows), ""])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--atlas", type=click.Path(exists=True, file_okay=False), help="Folder of the CAP MESA shape atlas.")
@click.option("--phantom", is_flag=True, help="Procedural phantoms instead: only shows that it runs.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="CPU minutes a variant.")
@click.option("--hearts", type=click.IntRange(1), default=600, show_default=True, help="Training hearts.")
@click.option("--judged", type=click.IntRange(1), default=24, show_default=True, help="Hearts to choose and judge by.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--variant", "names", multiple=True, type=click.Choice(list(VARIANTS)), help="One of them; repeatable.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/vqvae-ablation"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results" / "vqvae_ablation.md")
def main(atlas: str | None, minutes: float, hearts: int, judged: int, seed: int, names: tuple[str, ...], runs: Path,
         out: Path, *, phantom: bool) -> None:  # fmt: skip
    """Train the variants one after the other and write the table."""
    if phantom == (atlas is not None):
        raise click.UsageError("give one of --atlas and --phantom")
    torch.set_num_threads(1)
    plan = Plan(atlas, minutes, hearts, judged, seed, runs)
    rows: list[tuple[Variant, dict[str, float]]] = []
    for variant in (VARIANTS[name] for name in names or VARIANTS):
        click.echo(variant.name, err=True)
        try:
            rows.append((variant, result(plan, variant)))
        except UsageProblem as error:
            raise click.ClickException(str(error)) from None
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, report(plan, rows))
    click.echo("\n".join(table(rows)))


if __name__ == "__main__":
    main()
