"""Pairs of latents for the variants that learn in a latent space: made as for our diffusion, from the same hearts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m2s.baselines.front import open_mcsr
from m2s.nets.vqvae import Autoencoder
from m2s.train.checkpoint import load_weights
from m2s.train.pairs import (
    PairMaker,
    PairSource,
    claim_pairs,
    make_pairs,
    scale_factor,
    selection_maker,
    training_maker,
)
from m2s.train.stages import PAIRS_A_HEART

if TYPE_CHECKING:
    from m2s.train.job import Job

_JUDGED: Final = 10


@dataclass(frozen=True)
class LatentPairs:
    """What a stage is trained on and judged by.

    Attributes:
        source: of batches.
        scale: between latents and unit variance.
        maker: of the training pairs.
        judge: of the selection hearts.
        hearts: how many of those a validation takes.
    """

    source: PairSource
    scale: float
    maker: PairMaker
    judge: PairMaker
    hearts: int


def as_the_run(job: "Job") -> "Job":
    """The job under the preset of the run's MCSR-Net, which decides on hearts and conditions.

    Raises:
        FileNotFoundError: the run has no MCSR-Net yet.
    """
    return replace(job, preset=load_weights(job.run / "mcsr" / "best.safetensors")[1]["preset"])


def latent_pairs(job: "Job", folder: Path, autoencoder: Autoencoder) -> LatentPairs:
    """Opens the pairs in `folder`, making what is missing.

    Raises:
        FileNotFoundError: the run has no MCSR-Net yet.
        UsageProblem: the pairs are of other networks, hearts or another seed.
    """
    job, nets = as_the_run(job), (open_mcsr(job.run), autoencoder)
    if folder.is_dir():
        # Before hearts are made: with another --hearts that would take long, and for nothing.
        claim_pairs(folder, job.spec("training", distances=True), job.seed, *nets)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    maker, judge = training_maker(store, *nets, job.seed, job.threads), selection_maker(selection, *nets, job.threads)
    if job.published:
        # The paper conditions on the C-SDGs of true masks.
        maker, judge = replace(maker, perfect=1.0), replace(judge, perfect=1.0)
    pairs = make_pairs(folder, maker, PAIRS_A_HEART * job.hearts, job.workers)
    scale = scale_factor(pairs)
    return LatentPairs(PairSource(pairs, job.seed, scale), scale, maker, judge, min(_JUDGED, len(selection)))
