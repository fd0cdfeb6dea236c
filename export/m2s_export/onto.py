"""A fine-tuned MCSR-Net put in the place of a bundle's own; the other networks stay, file by file, as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2s.nets.presets import Preset
from m2s.train.checkpoint import Metadata
from m2s.train.provenance import by_stage, joined
from m2s.train.shipped import LICENSED
from m2s_export.bundle import SURFACE_CASES, Plan, commit, publish
from m2s_export.graphs import mcsr_graphs
from m2s_export.precision import round_weights
from m2s_export.training_run import NOT_RECORDED, NOT_STATED, read_mcsr, stage_of, step_range
from m2s_runtime.bundle import Bundle
from m2s_runtime.errors import UsageProblem
from m2s_runtime.manifest import Manifest, Training
from m2s_runtime.versions import version


def publish_onto(base: Bundle, run: Path, out: Path, told: Mapping[str, Any], *, overwrite: bool = False) -> Bundle:
    """Publishes `base` with the MCSR-Net of a training run; see `m2s_export.bundle.publish`.

    Args:
        base: where everything else comes from, settings included.
        run: folder that holds `mcsr/best.safetensors`.
        out: folder of the new bundle.
        told: what the manifest is to say otherwise: `licence`, `data`, `data_licence`, `notes`, `surface_cases`, and
            `temperature`, `steps`, `csdg_share`, `spread_scale`, `shift_error_mm`, `flag_limits`, `dice_model` by their
            names there.
        overwrite: whether a bundle already at `out` may go.

    Raises:
        NoInputs: the run has no `mcsr`.
        UsageProblem: it is of another preset than the bundle, or does not fit it.
        ParityError: a graph or surface deviates.
        OutputError: `out` exists, or cannot be written.
    """
    preset, net, metadata = read_mcsr(run)
    _check_fit(base, run, preset)
    manifest = base.manifest
    half = manifest.stored_weights == "float16"
    modules = mcsr_graphs(round_weights(net) if half else net)
    if tuple(t.name for t in manifest.graphs["mc"].inputs) != tuple(modules["mc"].inputs):
        raise UsageProblem(f"{base.path}: its motion correction takes other inputs than that of {run}")
    draft = _draft(manifest, metadata, out.name, told)
    plan = Plan(out.name, draft.training, half=half, float16="float16" in manifest.flavours,
                notes=told.get("notes", ""), surface_cases=told.get("surface_cases", SURFACE_CASES))  # fmt: skip
    return publish(modules, draft, out, plan, overwrite=overwrite, base=base)


def _check_fit(base: Bundle, run: Path, preset: Preset) -> None:
    """What `mcsr` takes and gives is told by the preset; the other networks may be of any training."""
    manifest, size = base.manifest, preset.mcsr
    if preset.name != manifest.preset:
        raise UsageProblem(f"{run}: preset {preset.name}, but {base.path} is of preset {manifest.preset}")
    if (size.slices, size.clip_mm) != (manifest.slices, manifest.clip_mm):
        raise UsageProblem(f"{base.path}: takes slices otherwise than preset {preset.name} does now; train all stages")


def _draft(base: Manifest, metadata: Metadata, name: str, told: Mapping[str, Any]) -> Manifest:
    """The manifest of `base` as far as it holds on."""
    settings = ("temperature", "steps", "csdg_share", "spread_scale", "shift_error_mm", "flag_limits", "dice_model")
    stages = tuple(base.training.stages)
    training = Training(
        told.get("data") or _replaced(base.training.data, metadata.get("data", NOT_RECORDED), stages),
        told.get("data_licence")
        or _replaced(base.training.data_licence, metadata.get("data_licence", NOT_RECORDED), stages),
        base.training.stages | {"mcsr": stage_of(metadata)},
    )
    return replace(
        base,
        name=name,
        mask2surface=version(),
        commit=commit(),
        licence=told.get("licence") or _replaced(base.licence, metadata.get("licence", NOT_STATED), LICENSED),
        step_range_mm=step_range(metadata),
        training=training,
        proven={},
        **{setting: told[setting] for setting in settings if setting in told},
    )


def _replaced(base: str, ours: str, stages: Sequence[str]) -> str:
    """What a text says of stages, with ours for `mcsr`."""
    return joined(by_stage(base, stages) | {"mcsr": ours})
