"""Predictions of networks: raw, of the short finetuning, and calibrated to the final one."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from donna_ray.config import DevicePrecision, FinetuneRecipe, RunConfig
from donna_ray.finetune.assemble import choice_table
from donna_ray.predictor.calibration import LEAST, Calibration
from donna_ray.predictor.model import AccuracyPredictor, Floats
from donna_ray.space import encode
from donna_ray.storage.artifacts import Artifact

__all__ = ["Predictions"]

Points = Sequence[dict[str, Any]]
Columns = tuple[Floats, Floats, Floats]
"""A prediction, and the ends of its interval."""

_ENDS = ("accuracy", "low", "high")


class Predictions:
    """The predictor of a run, calibrated to the networks that it finetuned to the end.


    In int8 all of it is of networks in int8. In fp16 the predictor is that of fp32, calibrated to
    networks in fp16.
    """

    def __init__(
        self,
        config: RunConfig,
        done: Mapping[str, Artifact],
        precision: DevicePrecision = "fp32",
    ) -> None:
        self._precision = precision
        suffix = "/int8" if precision == "int8" else ""
        self._fitted = done[f"predictor{suffix}"].result
        self._predictor = AccuracyPredictor.from_json(self._fitted["predictor"])
        self._nsr = choice_table(done[f"library{suffix}"], "nsr")
        known = self._finetuned(config, done)
        self._networks = list(known)
        self._calibration = None
        if len(known) >= LEAST:
            raw, low, high, final = np.array(list(known.values())).T
            images = done["reference"].result["images"]["validation"]
            self._calibration = Calibration.of(raw, (low, high), final, images)

    def facts(self) -> dict[str, Any] | None:
        """What it was calibrated on, and the line; None where it is not calibrated."""
        made = self._calibration
        if made is None:
            return None
        line = {"centre": made.centre, "shift": made.shift, "slope": made.slope}
        return {"networks": self._networks, **line}

    def of(self, points: Points) -> list[dict[str, float]]:
        """`raw_…` and `predicted_…`: `accuracy`, `low` and `high` of each, given architectures."""
        if not points:
            return []
        value, *interval = self._raw(points)
        raw = final = (np.clip(value, 0.0, 1.0), *interval)
        if self._calibration is not None:
            ends = self._calibration.predict_interval(value, interval)
            final = (self._calibration.predict(value), *ends)
        names = [f"{kind}_{end}" for kind in ("raw", "predicted") for end in _ENDS]
        rows = np.stack([*raw, *final], axis=1).tolist()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def final(self, raw: Sequence[float]) -> list[float]:
        """Raw predictions, calibrated, as ``of`` has them."""
        value = np.array(raw, dtype=float)
        if self._calibration is not None and raw:
            value = self._calibration.predict(value)
        found: list[float] = np.clip(value, 0.0, 1.0).tolist()
        return found

    def _is_known(self, network: dict[str, Any]) -> bool:
        """In another precision only what could be made in it."""
        return self._precision == "fp32" or self._precision in network

    def _raw(self, points: Points) -> Columns:
        """Predictions as the search had them, which orders those above 1 too, and intervals."""
        nsr = encode([tuple(point["architecture"]) for point in points], self._nsr)
        pairs = zip(points, self._predictor.predict(nsr).tolist(), strict=True)
        value = np.array([point.get("predicted_accuracy", own) for point, own in pairs])
        return (value, *self._predictor.predict_interval(nsr))

    def _finetuned(self, config: RunConfig, done: Mapping[str, Artifact]) -> dict[str, list[float]]:
        """By id: the raw prediction, its interval, and the accuracy after the final finetuning.

        The predictor's samples are among them where both recipes are the same.
        """
        known: dict[str, list[float]] = {}
        recipes = (config.predictor, config.finetune)
        one, other = (each.model_dump(include=set(FinetuneRecipe.model_fields)) for each in recipes)
        if one == other:
            names = ("predicted", "predicted_low", "predicted_high", "accuracy")
            for sample in self._fitted["samples"]:
                known[sample["id"]] = [sample[name] for name in names]
        if "finetune" not in done:
            return known
        result, networks = done["finetune"].result, done["finetune"].result["networks"]
        fronts = (found["front"] for found in done["search"].result["scenarios"].values())
        every = {each["id"]: each for each in chain(*fronts, *result["asked"].values())}
        points = [
            {"id": name, "architecture": every[name]["architecture"]}
            for name in networks
            if name in every and name not in known and self._is_known(networks[name])
        ]
        if points:
            rows = np.stack(self._raw(points), axis=1).tolist()
            for point, row in zip(points, rows, strict=True):
                network = networks[point["id"]]
                final = network if self._precision == "fp32" else network[self._precision]
                known[point["id"]] = [*row, final["accuracy"]]
        return known
