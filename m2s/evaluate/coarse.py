"""One simulated stack through the whole method, for evaluations that look behind its answer or vary what follows."""

from collections.abc import Mapping
from dataclasses import dataclass

from m2s.baselines.method import GRID_TO_MM, FloatArray, Method, Prediction
from m2s.data.simulate import Stack, draw_rng, simulate_stack
from m2s.evaluate.hearts import Cohort, Subject, subject
from m2s.evaluate.laws import motion_law
from m2s.evaluate.methods import canonical_from_stack
from m2s.evaluate.networks import pipeline_behind
from m2s.evaluate.scores import Row, score
from m2s.evaluate.simulation import noise_key
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.surface import extract_surface


@dataclass(frozen=True)
class Shared:
    """What all rows of a stack have in common: the heart, its stack, the pipeline and what it found."""

    subject: Subject
    stack: Stack
    pipeline: Pipeline
    result: Reconstruction
    key: str
    """Of the noise."""

    def score(self, sdg: FloatArray) -> Row:
        """Figures of one way to get to distances (128, 128, 64) mm."""
        prediction = Prediction(sdg, extract_surface(sdg, GRID_TO_MM), self.result.shifts, binary=False)
        return score(prediction, self.subject.truth)


def shared(methods: Mapping[str, Method], cohort: Cohort, row: int, draw: int, seed: int, law: str) -> Shared:
    """One stack through the method `ours`."""
    found = subject(cohort, row)
    heart, pipeline = found.heart, pipeline_behind(methods["ours"])
    stack = simulate_stack(heart.mask, draw_rng(heart.id, draw, seed), motion_law(law, heart.mask))
    key = noise_key(heart.id, draw, seed)
    return Shared(found, stack, pipeline, pipeline.reconstruct(canonical_from_stack(stack), key), key)
