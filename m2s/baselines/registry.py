"""The competing methods that learn: where each is trained and opened; nothing heavy is imported before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

if TYPE_CHECKING:
    from m2s.baselines.method import Method
    from m2s.train.job import Job
    from m2s.train.loop import Recipe, Stage

Size = Literal["published", "cpu", "tiny"]
"""`published` as in the source, `cpu` a stand-in that two cores can train (marked in every table), `tiny` for tests."""


@dataclass(frozen=True)
class Baseline:
    """A method that learns.

    Attributes:
        package: holds the modules `train` and `method`.
        title: in tables.
        tunable: whether real pairs teach it anything.
        reads: of an ablation, a variant of ours, the stages of ours in the same run whose weights it uses.
        stands_on: of a training, the earlier ones whose best weights it reads.
    """

    package: str
    title: str
    tunable: bool = True
    reads: tuple[str, ...] = ()
    stands_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


BASELINES: Final[Mapping[str, Baseline]] = {
    "srheart": Baseline("m2s.baselines.srheart", "SRHeart", tunable=False),
    "mcsr-ms": Baseline(
        "m2s.baselines.mcsr_ms", "MCSR-MS", stands_on={"second_correction": ("centreline", "super_resolution")}
    ),
    "mcsr-ete": Baseline("m2s.baselines.mcsr_ete", "MCSR-ETE"),
    "cardiac-pcn": Baseline("m2s.baselines.cardiac_pcn", "CardiacPCN"),
    "mask-condition": Baseline("m2s.baselines.condition", "Mask conditioning", tunable=False, reads=("mcsr", "vqvae")),
    "slice-condition": Baseline(
        "m2s.baselines.condition", "Low-resolution mask conditioning", tunable=False, reads=("vqvae",)
    ),
    "vae": Baseline(
        "m2s.baselines.vae", "VAE", tunable=False, reads=("mcsr",), stands_on={"diffusion": ("autoencoder",)}
    ),
    "gan": Baseline("m2s.baselines.gan", "Conditional GAN", tunable=False, reads=("mcsr", "vqvae")),
}


class Training(Protocol):
    """What the module `train` of a baseline's package holds."""

    STAGES: Mapping[str, float]
    """Its trainings in order, and the share of the time that each gets; they add up to 1."""

    def stage_of(self, name: str, job: "Job", size: Size, folder: Path) -> "Stage":
        """One of them, its hearts opened; `folder / earlier / "best.safetensors"` are the weights of those before."""
        ...

    def recipe_of(self, name: str, size: Size) -> "Recipe":
        """Its constants."""
        ...


class Opening(Protocol):
    """What the module `method` of a baseline's package holds."""

    def load(self, folder: Path, device: str) -> "Method":
        """The trained method of a run's folder, ready to predict.

        Raises:
            FileNotFoundError: it was not trained yet.
        """
        ...


def training_of(name: str) -> Training:
    """The module `train` of a baseline."""
    return cast("Training", import_module(f"{BASELINES[name].package}.train"))


def open_baseline(name: str, run: Path, device: str = "cpu") -> "Method":
    """The trained baseline of a run.

    Raises:
        FileNotFoundError: it was not trained in this run.
    """
    opening = cast("Opening", import_module(f"{BASELINES[name].package}.method"))
    return opening.load(run / name, device)
