"""The schema of results.json, and its reader. docs/results-json.md explains it field by field."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from donna_ray.config import DevicePrecision
from donna_ray.errors import DonnaError
from donna_ray.report.scenario import Accuracies, Halved, Part, Quantised, Scenario, Spec

__all__ = [
    "SCHEMA_VERSION",
    "Accuracies",
    "Block",
    "Calibration",
    "Cost",
    "Estimate",
    "FailedBlock",
    "Library",
    "LibraryStage",
    "Made",
    "PausedBlock",
    "Predictor",
    "Quality",
    "Reference",
    "Results",
    "Sample",
    "TrainingEach",
    "read_results",
    "schema",
]

SCHEMA_VERSION = 5
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Shape = tuple[int, int, int]
FeatureShape = tuple[int, int, int] | tuple[int, int]  # of a map, or (tokens, channels)


class Made(Part):
    """When, where and how a file was written.

    `finished`: all steps of the method are. `at`: UTC, ISO 8601. `command`: as it was typed, and
    `folder`: of the run, as seen from where it was typed.
    """

    finished: bool
    at: str
    host: str
    system: str
    cpus: int
    command: str
    folder: str


class Reference(Part):
    """The teacher; `class_names` in the order of its outputs, none where the data have none.

    `accuracy` is of the validation images. `finetuned`: itself, trained on by the recipe of the
    networks. `test_from`: where the test images come from, `data.test_split` or
    `data.test_fraction` with its value. These and the test accuracies are null until the networks
    are finetuned. `int8`: itself quantised, null where no scenario is in int8; `fp16` likewise.
    """

    model: str
    weights: str
    accuracy: float
    test_accuracy: float | None = None
    test_low: float | None = None
    test_high: float | None = None
    finetuned: Accuracies | None = None
    params: int
    macs: int
    input: Shape
    classes: int
    class_names: list[str] = Field(default_factory=list)
    train_images: int
    validation_images: int
    test_images: int | None = None
    test_from: str | None = None
    int8: Quantised | None = None
    fp16: Halved | None = None

    def lowered(self, precision: DevicePrecision) -> Quantised | None:
        """Itself in a precision other than fp32, where that was measured."""
        return {"fp32": None, "fp16": self.fp16, "int8": self.int8}[precision]


class Block(Part):
    """A distilled block; `key` names its files in library/blocks."""

    block: Spec
    key: str
    nsr: float
    params: int
    macs: int


class LibraryStage(Part):
    """One stage: what the reference fixes, and what may stand there."""

    input: FeatureShape
    output: FeatureShape
    blocks: list[Block]


class FailedBlock(Part):
    """A block that could not be distilled and is in no network."""

    stage: int
    block: Spec
    reason: str


class PausedBlock(Part):
    """A block that an early race paused, and that is in no network; its NSR then."""

    stage: int
    block: Spec
    nsr: float


class Library(Part):
    """All distilled blocks, those that failed, and those that were paused."""

    size: int
    stages: list[LibraryStage]
    failed: list[FailedBlock]
    paused: list[PausedBlock]


class Estimate(Part):
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Quality(Part):
    """How well accuracies of architectures are predicted that were left out of the fit."""

    kendall_tau: Estimate
    spearman: Estimate
    mse: Estimate
    r2: Estimate


class Sample(Part):
    """An architecture that the predictor was fitted to; `predicted` by a fit without it.

    `predicted_low` and `predicted_high`: its 95% prediction interval.
    """

    id: str
    predicted: float
    predicted_low: float
    predicted_high: float
    accuracy: float


class Calibration(Part):
    """How raw predictions, of the short finetuning, became those of the final one.

    logit(final) = `shift` + `slope` (raw - `centre`), fitted to `networks` that were finetuned to
    the end, with their accuracies on the validation images.
    """

    networks: list[str]
    centre: float
    shift: float
    slope: float


class Predictor(Part):
    """How well accuracy is ranked, beside simpler orderings of the same samples.

    All of it is of the short finetuning. `calibration`: null (not calibrated) where fewer than 3
    networks were finetuned to the end; `predicted_accuracy` is the raw prediction then.

    `library_size`: blocks in the library when it was fitted; fewer than now in an extended space.
    `quality`: of `predictor`, and of each baseline as a line through it. `regret`: by how much the
    sample that it ranks first is less accurate than the best one, likewise.
    """

    samples: int
    library_size: int
    calibration: Calibration | None
    kendall_tau: Estimate
    baselines: dict[str, Estimate]
    quality: dict[str, Quality]
    regret: dict[str, float]
    architectures: list[Sample]


class Cost(Part):
    """What a step cost when it was computed.

    `seconds` of wall time in the process that finished it; `image_passes`: images that went through
    a training or evaluation step (a pack's image counts once, however many blocks it trains).
    """

    seconds: float
    image_passes: int
    reused: bool


class TrainingEach(Part):
    """What finetuning each measured network would take, by the recipe of `finetune`."""

    networks: int
    image_passes: int


class Results(Part):
    """results.json. What a run that is not finished does not have yet is null, or empty."""

    version: Literal[5]
    made: Made
    name: str
    seed: int
    data: str
    versions: dict[str, str]
    doubts: list[str]
    reference: Reference
    library: Library | None
    predictor: Predictor | None
    scenarios: list[Scenario]
    cost: dict[str, Cost]
    training_each: TrainingEach | None

    def in_own_precisions(self) -> "Results":
        """For a person: see ``Scenario.in_own_precision``."""
        own = [each.in_own_precision() for each in self.scenarios]
        return self.model_copy(update={"scenarios": own})


def read_results(path: str | Path) -> Results:
    """The results of a run.

    Args:
        path: the run folder, or its results.json.

    Raises:
        DonnaError: there is none, it is of another version, or it is not as the schema has it.
    """
    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DonnaError(
            f"results.json must be there and be JSON, but of {file}: {error}. `donna report build "
            "RUN` writes it, of a run whose other steps are finished."
        ) from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise DonnaError(
            f"results.json must be of version {SCHEMA_VERSION}, but {file} is of {version!r}. "
            "`donna report build RUN` writes it anew in that of this donna-ray."
        )
    try:
        return Results.model_validate(value)
    except ValidationError as error:
        raise DonnaError(
            f"results.json must keep its schema, but {file} does not: {error}"
        ) from None


def schema() -> str:
    """The JSON schema of results.json, as docs/results.schema.json has it."""
    facts = Results.model_json_schema()
    return json.dumps({"$schema": _DIALECT, **facts}, indent=2) + "\n"
