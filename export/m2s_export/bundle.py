"""Writes a bundle: graphs, manifest, model card; checks it against PyTorch; moves it into place only then."""

import contextlib
import hashlib
import logging
import re
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
from m2s_export.half import half_graphs
from m2s_export.judge import Judge
from m2s_export.precision import rounded, store_half
from m2s_export.references import NumpyEngine, Patched, TorchEngine
from m2s_export.surfaces import as_drawn
from m2s_export.to_onnx import check, to_onnx
from m2s_export.training_run import NOT_STATED, TrainingRun
from m2s_runtime import ddim, grid
from m2s_runtime.atomic import write_bytes, write_text
from m2s_runtime.bundle import MANIFEST, Bundle, load_bundle
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.errors import OutputError
from m2s_runtime.expected_dice import DiceModel
from m2s_runtime.maker import MADE_BY, abandoned, maker
from m2s_runtime.manifest import GRAPHS, SCHEMA, FileEntry, Flavour, Manifest, Parity, Schedule, Training, signatures
from m2s_runtime.shift_error import NO_ERROR, Deviations
from m2s_runtime.strict_json import dumps
from m2s_runtime.versions import version

_LOG: Final = logging.getLogger(__name__)
CARD: Final = "MODEL_CARD.md"
_WORKSHOP: Final = re.compile(rf"\..*\.{MADE_BY}-[^.]*\.new")
_NOBODY: Final = ("", 0)
"""Made a folder that tells no maker."""
SURFACE_CASES: Final = 2
_NOT_YET: Final = Parity("", "", {}, None, 0)


@dataclass(frozen=True)
class Plan:
    """What to publish: everything that the tensors themselves do not say.

    `half` stores weights in float16, `float16` adds graphs that also compute in it; `csdg_share` None means that of the
    preset.
    """

    name: str
    training: Training
    licence: str = NOT_STATED
    step_range_mm: tuple[float, float] = (grid.NOMINAL_STEP, grid.NOMINAL_STEP)
    half: bool = True
    float16: bool = False
    notes: str = ""
    surface_cases: int = SURFACE_CASES
    temperature: float = 1.0
    steps: int = ddim.DEFAULT_STEPS
    csdg_share: float | None = None
    spread_scale: float = 1.0
    shift_error_mm: Deviations = NO_ERROR
    flag_limits: dict[str, float] = field(default_factory=dict[str, float])
    dice_model: DiceModel | None = None


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
        shift_error_mm=plan.shift_error_mm,
        csdg_share=preset.csdg_share if plan.csdg_share is None else plan.csdg_share,
        flag_limits=plan.flag_limits,
        dice_model=plan.dice_model,
    )


def publish_run(run: TrainingRun, out: Path, plan: Plan, *, overwrite: bool = False) -> Bundle:
    """Publishes the networks of a training run; see `publish`."""
    nets = rounded(run.nets) if plan.half else run.nets
    made = graphs(nets)
    draft = draft_manifest(plan, nets.preset, nets.latent_shape, nets.scale_factor, pool="pool" in made["mc"].inputs)
    return publish(made, draft, out, plan, overwrite=overwrite)


def publish(
    modules: Mapping[str, Graph],
    draft: Manifest,
    out: Path,
    plan: Plan,
    *,
    overwrite: bool = False,
    base: Bundle | None = None,
) -> Bundle:
    """Exports, checks and moves a bundle to `out`, which holds the old one, the new one or nothing, never a part.

    Args:
        modules: what the bundle shall equal; with `base`, as far as it is new.
        draft: from `draft_manifest`, or that of `base` as far as it holds on.
        out: folder of the bundle.
        plan: what to publish.
        overwrite: whether a bundle already at `out` may go.
        base: the bundle whose graphs are taken where there are no modules; none if there are modules of all.

    Raises:
        ParityError: a graph or surface deviates; `out` is untouched.
        OutputError: `out` exists, or cannot be written.
    """
    with _workshop(out, overwrite=overwrite) as folder:
        for name, graph in modules.items():
            _LOG.info("exporting graph %s", name)
            write_graph(folder / f"{name}.onnx", to_onnx(graph), half=plan.half)
        flavours = {"float16": _write_half(folder, modules, plan)} if plan.float16 else {}
        if base is not None:
            flavours = _take_rest(folder, base, flavours)
        write_manifest(folder, replace(draft, flavours=flavours))
        _LOG.info("comparing with PyTorch")
        measured = measure(modules, load_bundle(folder), plan)
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


def measure(modules: Mapping[str, Graph], bundle: Bundle, plan: Plan) -> Manifest:
    """The manifest with the parity of ONNX Runtime with the modules that the bundle was made from.

    Other engines are proven on the published bundle, by `m2s-export --check BUNDLE --record`.

    Raises:
        ParityError: it deviates, in float32 or in a flavour.
    """
    reference, told = _reference(modules, bundle)
    judge = Judge(bundle, reference, plan.surface_cases)

    def parity(precision: str) -> Parity:
        engine = open_engine(as_drawn(bundle), "onnx", "cpu", precision=precision)
        return judge.parity(engine, precision, told)

    flavours = {name: replace(f, parity=parity(name)) for name, f in bundle.manifest.flavours.items()}
    return replace(bundle.manifest, parity=parity("float32"), flavours=flavours)


def _reference(modules: Mapping[str, Graph], bundle: Bundle) -> tuple[Engine, str]:
    """What to compare with, and its versions: the modules; graphs of which there are none are evaluated in NumPy."""
    ours, version = TorchEngine(modules, bundle), str(torch.__version__)
    others = [name for name in GRAPHS if name not in modules]
    if not others:
        return ours, version
    rest = NumpyEngine(bundle)
    return Patched(ours, modules, rest), f"{version}; {', '.join(others)}: {rest.description}"


def _take_rest(folder: Path, base: Bundle, flavours: Mapping[str, Flavour]) -> dict[str, Flavour]:
    """Copies the graphs that `folder` has not; returns the flavours of both together."""
    for name in base.manifest.files:
        if name.endswith(".onnx") and not (folder / name).exists():
            write_bytes(folder / name, base.read(name))
    return {
        name: Flavour(old.files | (flavours[name].files if name in flavours else {}))
        for name, old in base.manifest.flavours.items()
    }


def _write_half(folder: Path, modules: Mapping[str, Graph], plan: Plan) -> Flavour:
    files: dict[str, str] = {}
    for name, graph in half_graphs(modules).items():
        _LOG.info("exporting graph %s in float16", name)
        files[name] = f"{name}.float16.onnx"
        write_graph(folder / files[name], to_onnx(graph), half=plan.half)
    return Flavour(files)


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


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Before hours of work, and again before writing.

    Raises:
        OutputError: there is something at `out` that may not go.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another --out")
    if not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out}: is no bundle, and only a bundle is overwritten; choose another --out")


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


@contextmanager
def _workshop(out: Path, *, overwrite: bool) -> Generator[Path]:
    """A temporary folder beside `out`, renamed to it when the block ends well and removed when it does not."""
    try:
        _sweep(out)
        refuse_existing(out, overwrite=overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name}.{maker()}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".new", dir=out.parent))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    try:
        yield folder
        folder.chmod(0o755)
        refuse_existing(out, overwrite=overwrite)  # another run may have been quicker
        try:
            _swap(folder, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be replaced ({error.strerror or error}); run again") from error
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
    for leftover in [old, *filter(_abandoned, out.parent.glob(f".{out.name}.*.new"))]:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(leftover)


def _abandoned(folder: Path) -> bool:
    made = _WORKSHOP.fullmatch(folder.name)
    return abandoned(folder, *((made[1], int(made[2])) if made else _NOBODY))
