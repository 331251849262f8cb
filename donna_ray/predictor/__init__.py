"""The accuracy predictor: its model, its fit, how far to trust it, and what to finetune next."""

from donna_ray.predictor.fitting import fit
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.predictor.quality import kendall_tau
from donna_ray.predictor.step import choice_table, predictor_step

__all__ = ["AccuracyPredictor", "choice_table", "fit", "kendall_tau", "predictor_step"]
