"""Writes a bundle: graphs, manifest, model card; checks it against PyTorch; moves it into place only then."""

import contextlib
import hashlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import onnx
import torch

from m2s.nets.presets import Preset
from m2s_export.card import model_card
from m2s_export.graphs import Graph, graphs
from m2s_export.parity import TorchEngine, check_graph
from m2s_export.precision import rounded, store_half
from m2s_export.samples import phantom_hearts, phantom_stack, realistic_inputs
from m2s_export.surfaces import check_surfaces
from m2s_export.to_onnx import check, to_onnx
from m2s_export.training_run import NOT_STATED, TrainingRun
from m2s_runtime import ddim, grid
from m2s_runtime.atomic import write_bytes, write_text
from m2s_runtime.bundle import MANIFEST, Bundle, load_bundle
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.errors import OutputError
from m2s_runtime.manifest import SCHEMA, FileEntry, Manifest, Parity, Schedule, Training, signatures
from m2s_runtime.session import version
from m2s_runtime.strict_json import dumps

_LOG: Final = logging.getLogger(__name__)
CARD: Final = "MODEL_CARD.md"
_SURFACE_CASES: Final = 2
_NOT_YET: Final = Parity("", "", {}, None, 0)


@dataclass(frozen=True)
class Plan:
    """What to publish: everything that the tensors themselves do not say."""

    name: str
    training: Training
    licence: str = NOT_STATED
    step_range_mm: tuple[float, float] = (grid.NOMINAL_STEP, grid.NOMINAL_STEP)
    half: bool = True
    notes: str = ""
    surface_cases: int = _SURFACE_CASES
    temperature: float = 1.0
    steps: int = ddim.DEFAULT_STEPS
    spread_scale: float = 1.0
    flag_limits: dict[str, float] = field(default_factory=dict[str, float])


def draft_manifest(
    plan: Plan, preset: Preset, latent_shape: tuple[int, int, int, int], scale_factor: float, *, pool: bool
) -> Manifest:
    """The manifest as far as it is known before any file is written; `pool`: whether `mc` takes the pool features."""
    return Manifest(
        schema=SCHEMA,
        name=plan.name,
        preset=preset.name,
        licence=plan.licence,
        mask2surface=version(),
        commit=commit(),
        files={},
        graphs=signatures(latent_shape, pool=pool),
        grid=grid.GRID,
        spacing=grid.SPACING,
        padding=grid.PADDING,
        slices=preset.mcsr.slices,
        clip_mm=preset.mcsr.clip_mm,
        step_range_mm=plan.step_range_mm,
        sdg_clamp_mm=preset.vqvae.clamp_mm,
        latent_shape=latent_shape,
        scale_factor=scale_factor,
        requantise=False,
        schedule=Schedule("linear", ddim.BETA_START, ddim.BETA_END, ddim.TRAIN_STEPS, "eps"),
        steps=plan.steps,
        timestep_spacing="linspace",
        precision="float32",
        stored_weights="float16" if plan.half else "float32",
        parity=_NOT_YET,
        training=plan.training,
        temperature=plan.temperature,
        sample_steps=ddim.DEFAULT_STEPS,
        spread_scale=plan.spread_scale,
        flag_limits=plan.flag_limits,
    )


def publish_run(run: TrainingRun, out: Path, plan: Plan, *, overwrite: bool = False) -> Bundle:
    """Publishes the networks of a training run; see `publish`."""
    nets = rounded(run.nets) if plan.half else run.nets
    made = graphs(nets)
    draft = draft_manifest(plan, nets.preset, nets.latent_shape, nets.scale_factor, pool="pool" in made["mc"].inputs)
    return publish(made, draft, out, plan, overwrite=overwrite)


def publish(modules: Mapping[str, Graph], draft: Manifest, out: Path, plan: Plan, *, overwrite: bool = False) -> Bundle:
    """Exports, checks and moves a bundle to `out`, which holds the old one, the new one or nothing, never a part.

    Args:
        modules: what the bundle shall equal.
        draft: from `draft_manifest`.
        out: folder of the bundle.
        plan: what to publish.
        overwrite: whether a bundle already at `out` may go.

    Raises:
        ParityError: a graph or surface deviates; `out` is untouched.
        OutputError: `out` exists, or cannot be written.
    """
    with _workshop(out, overwrite=overwrite) as folder:
        for name, graph in modules.items():
            _LOG.info("exporting graph %s", name)
            write_graph(folder / f"{name}.onnx", to_onnx(graph), half=plan.half)
        write_manifest(folder, draft)
        _LOG.info("comparing with PyTorch")
        parity = measure(modules, load_bundle(folder), plan)
        measured = replace(draft, parity=parity)
        write_text(folder / CARD, model_card(measured, plan.notes))
        write_manifest(folder, measured)
        load_bundle(folder)
    return load_bundle(out)


def write_graph(path: Path, model: onnx.ModelProto, *, half: bool) -> None:
    """Saves a checked graph, its weights as float16 where that loses nothing."""
    if half:
        store_half(model)
        check(model)
    write_bytes(path, model.SerializeToString(deterministic=True))


def write_manifest(folder: Path, draft: Manifest) -> Manifest:
    """Lists every file of `folder` with size and sha256 and writes `manifest.json`."""
    files = {p.name: _entry(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    manifest = replace(draft, files=files)
    write_text(folder / MANIFEST, dumps(manifest))
    return manifest


def measure(modules: Mapping[str, Graph], bundle: Bundle, plan: Plan) -> Parity:
    """Parity of a bundle with the modules it was made from.

    Raises:
        ParityError: it deviates.
    """
    reference: Engine = TorchEngine(modules, bundle)
    exported = open_engine(bundle, "onnx", "cpu")
    real = realistic_inputs(modules, bundle.manifest)
    found = {n: check_graph(n, reference, exported, [g.inputs, real[n]]) for n, g in modules.items()}
    stacks = (phantom_stack(heart) for heart in phantom_hearts(plan.surface_cases))
    p95 = check_surfaces(bundle, reference, exported, stacks) if plan.surface_cases else None
    return Parity(exported.description, str(torch.__version__), found, p95, plan.surface_cases)


def commit() -> str:
    """Git commit of the code, `-dirty` after it when files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():  # installed: a repository around site-packages would be another one
        return ""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


@contextmanager
def _workshop(out: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder beside `out`, renamed to it when the block ends well and removed when it does not."""
    try:
        _sweep(out)
        if out.exists() and not overwrite:
            raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".new", dir=out.parent))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    try:
        yield folder
        folder.chmod(0o755)
        _swap(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """A folder cannot replace another in one step: between these renames `out` is absent for an instant."""
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Puts back what a run killed between two renames moved away, and removes what killed runs left."""
    old = out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in [old, *out.parent.glob(f".{out.name}.*.new")]:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(leftover)
