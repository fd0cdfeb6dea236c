"""A training run that never ran: checkpoints of preset `tiny` in the layout that m2s-train leaves."""

from pathlib import Path

from torch import Tensor

from m2s.train.checkpoint import save_weights


def save_checkpoint(folder: Path, stage: str, weights: dict[str, Tensor], **changes: str) -> None:
    """Writes `folder/stage/best.safetensors`; `changes` replace entries of its metadata."""
    facts = {"preset": "tiny", "stage": stage, "step": "10", "seed": "3", "seconds": "7.5"}
    facts |= {"scale_factor": "1.7"} if stage == "diffusion" else {}
    (folder / stage).mkdir(parents=True, exist_ok=True)
    save_weights(folder / stage / "best.safetensors", weights, facts | changes)
