"""The model card: what a person says of it, and what the manifest does, in words."""

from m2s_runtime.blend import SMOOTHED_MM
from m2s_runtime.expected_dice import TRAITS
from m2s_runtime.flags import LIMITS
from m2s_runtime.manifest import Manifest, NotedStage

_INTENDED = """\
Turns masks of the left-ventricular wall on short-axis cardiac MR slices into a closed surface. Research use only: not a
medical device. Where no slice was acquired the surface is what the training hearts make likely, not what was seen."""


def model_card(manifest: Manifest, notes: str = "") -> str:
    """Markdown; `notes` is Markdown of the publisher (what it is good for, accuracy, known limits) and comes first."""
    training, parity = manifest.training, manifest.parity
    low, high = manifest.step_range_mm
    rows = [
        ("Preset", manifest.preset),
        ("Licence of the weights", manifest.licence),
        ("Written by", f"mask2surface {manifest.mask2surface}, commit {manifest.commit or 'unknown'}"),
        ("Trained on", f"{training.data} (licence: {training.data_licence})"),
        ("Slice step", f"{low:g} to {high:g} mm"),
        ("Slices are given as", _slices(manifest)),
        ("Latent", f"{'x'.join(map(str, manifest.latent_shape))}, scale factor {manifest.scale_factor:.6g}"),
        ("Sampling", f"DDIM, {manifest.steps} steps, {manifest.timestep_spacing} spacing, {_noise(manifest)}"),
        ("Surface", _surface(manifest)),
        *_doubtful(manifest),
        ("Arithmetic", f"{_arithmetic(manifest)}, weights stored as {manifest.stored_weights}"),
    ]
    stages = [f"| {n} | {s.steps} | {s.seed} | {s.seconds / 3600:.2f} |" for n, s in training.stages.items()]
    noted = [f"\n{n}: {s.note}." for n, s in training.stages.items() if isinstance(s, NotedStage)]
    checks = [f"| {n} | {g.max_abs:.2g} | {_share(g.codes_agree)} |" for n, g in parity.graphs.items()]
    surface = "" if parity.surface_p95_mm is None else (
        f"\nSurfaces of {parity.surface_cases} procedural hearts, 95th percentile of the distance: "
        f"{parity.surface_p95_mm:.2g} mm.\n"
    )  # fmt: skip
    return "\n".join(
        [
            f"# {manifest.name}\n\n{_INTENDED}\n",
            *([f"{notes.strip()}\n"] if notes.strip() else []),
            "## The bundle\n",
            *_table(("", ""), [f"| {k} | {v} |" for k, v in rows]),
            "\n## Training\n",
            *_table(("stage", "steps", "seed", "hours"), stages),
            *noted,
            f"\n## Parity of {parity.engine} with PyTorch {parity.torch}\n",
            *_table(("graph", "largest deviation", "codes that agree"), checks),
            surface,
        ]
    )


def _slices(manifest: Manifest) -> str:
    if manifest.slices == "mask":
        return "binary masks"
    return f"signed in-plane distances, clipped at {manifest.clip_mm:g} mm"


def _arithmetic(manifest: Manifest) -> str:
    return " or ".join((manifest.precision, *manifest.flavours))


def _noise(manifest: Manifest) -> str:
    several = manifest.sample_steps or manifest.steps
    spread = f"{several} steps for several samples, whose spread counts {manifest.spread_scale:.3g} times"
    return f"from noise times {manifest.temperature:g}; {spread}"


def _surface(manifest: Manifest) -> str:
    share = manifest.csdg_share
    drawn = "what the diffusion draws"
    if not share:
        return drawn
    return f"{100 * (1 - share):.3g} % {drawn}, {100 * share:.3g} % C-SDG, smoothed by {SMOOTHED_MM:.1f} mm"


def _doubtful(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.dice_model is None:
        return []
    limit = manifest.flag_limits.get("expected_dice", LIMITS["expected_dice"].value)
    return [("Doubtful", f"where the Dice to expect, from {len(TRAITS)} traits of a stack, is below {limit:.3f}")]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.4%}"


def _table(head: tuple[str, ...], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
