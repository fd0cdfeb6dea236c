"""What a training command was asked for: which hearts, which recipe, where to."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from m2s_runtime.errors import EngineError, NoInputs, UsageProblem

if TYPE_CHECKING:
    from m2s.data.store import HeartStore, StoreSpec

Split = Literal["training", "selection"]

SELECTION_HEARTS: Final = 25
MOTION_HEARTS: Final = 16
"""Hearts of MC-Net to one of the other networks: it reads some numbers of each, and learns from all it is given."""
VARIED_SHARE: Final = 0.4
"""Share of its hearts that are cut at another slice step than 10 mm."""


@dataclass(frozen=True)
class Job:
    """The options of a command."""

    run: Path
    preset: str
    atlas: str | None
    label_maps: str | None
    hearts: int
    seed: int
    device: str
    workers: int
    threads: int
    quiet: bool
    steps: int | None
    minutes: float | None
    batch: int | None
    rate: float | None
    codebook: Literal["ema", "gradient"] | None = None
    init: Path | None = None
    data: Path | None = None
    prepared: str | None = None
    motion_hearts: int | None = None

    @property
    def changes(self) -> dict[str, float | int | None]:
        """What the command changes in the recipe."""
        told = {"steps": self.steps, "minutes": self.minutes, "batch": self.batch, "rate": self.rate}
        return told | {"seed": self.seed}

    @property
    def published(self) -> bool:
        """Whether losses and schedules are those of the paper."""
        return self.preset == "paper"

    def spec(self, split: Split, *, distances: bool) -> "StoreSpec":
        """Which hearts this stage reads."""
        from m2s.data.store import StoreSpec
        from m2s.train.recipes import HEALTHY

        count = self.hearts if split == "training" else min(SELECTION_HEARTS, self.hearts)
        if self.label_maps is not None:
            count = min(count, _count_label_maps(self.label_maps, split, self.prepared))
        varied = split == "training" and not distances and self.atlas is not None
        seed = 2 * self.seed + distances if split == "training" else 2 * self.seed + distances + 1_000_003
        healthy = HEALTHY if split == "training" and self.atlas is not None and not self.published else 0.0
        return StoreSpec(self.atlas, split, count, seed, distances, varied, self.label_maps, healthy, self.prepared)

    def motion_spec(self, split: Split) -> "StoreSpec":
        """The hearts that MC-Net of `compact` alone reads: of an atlas `MOTION_HEARTS` times those of the others."""
        spec = self.spec(split, distances=False)
        many = self.atlas is not None and self.preset != "tiny"
        count = MOTION_HEARTS * spec.hearts if many else spec.hearts
        if self.motion_hearts is not None and split == "training":
            count = self.motion_hearts if self.label_maps is None else min(self.motion_hearts, spec.hearts)
        share = VARIED_SHARE if spec.varied_steps else spec.varied_share
        return replace(spec, hearts=count, varied_share=share)

    def facts(self, spec: "StoreSpec") -> dict[str, str]:
        """What a checkpoint says of itself."""
        return {"preset": self.preset} | spec.origin

    def folder(self, split: Split, *, distances: bool) -> Path:
        """Where those hearts are kept."""
        return self.run / "hearts" / (split + ("-distances" if distances else ""))

    def store(self, split: Split, *, distances: bool) -> "HeartStore":
        """Opens them, making what is missing."""
        from m2s.data.store import open_store

        return open_store(self.folder(split, distances=distances), self.spec(split, distances=distances), self.workers)


def job_of(options: dict[str, object]) -> Job:
    """The job that options on the command line describe.

    Raises:
        UsageProblem: hearts from nowhere or from two places, or half of a fine-tuning.
        EngineError: a GPU was asked for and PyTorch sees none.
    """
    sources = [options.pop("phantom"), options["atlas"], options["label_maps"]]
    if options["prepared"] and not options["label_maps"]:
        raise UsageProblem("--prepared FOLDER holds fits of label maps: add --label-maps FOLDER")
    _check_sources(sum(map(bool, sources)), [name for name in ("init", "data") if options.get(name)])
    if options.get("motion_hearts") and (options.get("init") or options["preset"] == "paper"):
        what = "--init, which learns from --data" if options.get("init") else "--preset paper, whose MC-Net sees images"
        raise UsageProblem(f"--motion-hearts means nothing with {what}: leave it out")
    import torch

    if options["device"] == "auto":
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if str(options["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"--device {options['device']}: this PyTorch sees no GPU; use --device cpu")
    try:
        known = torch.device(str(options["device"])).type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise UsageProblem(f"--device {options['device']}: give auto, cpu, cuda or cuda:N")
    return Job(**options)  # pyright: ignore[reportArgumentType]


def _check_sources(hearts: int, tuning: list[str]) -> None:
    """Hearts come from one place; fine-tuning has its own."""
    if len(tuning) == 1:
        raise UsageProblem("--init WEIGHTS and --data PAIRS go together: weights to start from, pairs to fine-tune on")
    if tuning and hearts:
        raise UsageProblem("--data takes the place of --atlas, --label-maps and --phantom: leave those out")
    if not tuning and hearts != 1:
        raise UsageProblem("give one of --atlas FOLDER, --label-maps FOLDER and --phantom")


def _count_label_maps(folder: str, split: Split, prepared: str | None) -> int:
    from m2s.data.fit_file import prepared_cases
    from m2s.data.labelmaps import LabelMaps

    cases = LabelMaps(folder).cases(split)
    if cases and prepared is not None and not (cases := prepared_cases(prepared, folder, split)):
        raise NoInputs(f"{prepared}: no usable fit of the {split} part of the split; see its quality.csv")
    count = len(cases)
    if count == 0:
        raise NoInputs(f"{folder}: none of its subjects is in the {split} part of the split (label_map_split.json)")
    return count
