"""The schema of results.json. docs/results-json.md explains it field by field."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = [
    "Accuracies",
    "Answer",
    "Block",
    "Calibration",
    "Cost",
    "Device",
    "Estimate",
    "FrontPoint",
    "Headline",
    "Latency",
    "Library",
    "LibraryStage",
    "Predictor",
    "Quality",
    "Quantised",
    "Reference",
    "Results",
    "Sample",
    "Scenario",
    "Search",
    "Verified",
    "VerifiedNetwork",
    "Yardstick",
]

SCHEMA_VERSION = 4

Shape = tuple[int, int, int]
FeatureShape = tuple[int, int, int] | tuple[int, int]  # of a map, or (tokens, channels)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Latency(_Part):
    """Milliseconds of one inference with batch 1; `n` runs; 95% interval in % of the median.

    `p90_ms` and `p99_ms` are of single runs, null where the device does not tell them, and where
    the run was made by a version that did not ask; so are `init_ms` (loading the model),
    `peak_memory_mb` (10**6 bytes) and `energy_mj` (millijoules an inference).
    """

    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    blocks_p20_ms: float
    blocks_p90_ms: float
    n: int
    ci_percent: float
    init_ms: float | None = None
    peak_memory_mb: float | None = None
    energy_mj: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_run(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "p20_ms" not in values:
            return values
        blocks = {"blocks_p20_ms": values["p20_ms"], "blocks_p90_ms": values["p90_ms"]}
        rest = {name: value for name, value in values.items() if name != "p20_ms"}
        return {**rest, **blocks, "p90_ms": None, "p99_ms": None}


class Device(_Part):
    """What latency was measured on, of networks in a precision."""

    model: str
    connector: str
    settings: dict[str, Any]
    simulated: bool
    precision: Literal["fp32", "int8"] = "fp32"


class Accuracies(_Part):
    """Of a finished network: `accuracy` is of the validation images, which also chose and stopped.

    `test_low` and `test_high`: the 95% interval of `test_accuracy` (Wilson), of images that nothing
    else looked at.
    """

    accuracy: float
    test_accuracy: float
    test_low: float
    test_high: float


class Quantised(Accuracies):
    """A finished network in int8, and the path of its QDQ model."""

    onnx: str


class Reference(Accuracies):
    """The teacher; `class_names` in the order of its outputs, none where the data have none.

    `finetuned`: itself, trained on by the recipe of the networks. `test_from`: where the test
    images come from, `data.test_split` or `data.test_fraction` with its value. `int8`:
    itself quantised, null where no scenario is in int8.
    """

    model: str
    weights: str
    finetuned: Accuracies
    params: int
    macs: int
    input: Shape
    classes: int
    class_names: list[str] = []
    train_images: int
    validation_images: int
    test_images: int
    test_from: str
    int8: Quantised | None = None


class Block(_Part):
    """A distilled block; `key` names its files in library/blocks."""

    block: str
    key: str
    nsr: float
    params: int
    macs: int


class LibraryStage(_Part):
    """One stage: what the reference fixes, and what may stand there."""

    input: FeatureShape
    output: FeatureShape
    blocks: list[Block]


class FailedBlock(_Part):
    """A block that could not be distilled and is in no network."""

    stage: int
    block: str
    reason: str


class PausedBlock(_Part):
    """A block that an early race paused, and that is in no network; its NSR then."""

    stage: int
    block: str
    nsr: float


class Library(_Part):
    """All distilled blocks, those that failed, and those that were paused."""

    size: int
    stages: list[LibraryStage]
    failed: list[FailedBlock]
    paused: list[PausedBlock]


class Estimate(_Part):
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Quality(_Part):
    """How well accuracies of architectures are predicted that were left out of the fit."""

    kendall_tau: Estimate
    spearman: Estimate
    mse: Estimate
    r2: Estimate


class Sample(_Part):
    """An architecture that the predictor was fitted to; `predicted` by a fit without it.

    `predicted_low` and `predicted_high`: its 95% prediction interval.
    """

    id: str
    predicted: float
    predicted_low: float
    predicted_high: float
    accuracy: float


class Calibration(_Part):
    """How raw predictions, of the short finetuning, became those of the final one.

    logit(final) = `shift` + `slope` (raw - `centre`), fitted to `networks` that were finetuned to
    the end, with their accuracies on the validation images.
    """

    networks: list[str]
    centre: float
    shift: float
    slope: float


class Predictor(_Part):
    """How well accuracy is ranked, beside simpler orderings of the same samples.

    All of it is of the short finetuning. `calibration`: null (not calibrated) where fewer than 3
    networks were finetuned to the end; `predicted_accuracy` is the raw prediction then.

    `library_size`: blocks in the library when it was fitted; fewer than now in an extended space.
    `quality`: of `predictor`, and of each baseline as a line through it.
    """

    samples: int
    library_size: int
    calibration: Calibration | None
    kendall_tau: Estimate
    baselines: dict[str, Estimate]
    quality: dict[str, Quality]
    architectures: list[Sample]


class Yardstick(_Part):
    """The search's front against the exact front of a latency model that adds up.

    `hypervolume_share`: of that front; null where no architecture is within the limits.
    `exact_front`: its points. `complete`: false where, with its limits, it was too large to be
    computed whole. `error_percent` and `kendall_tau`: of the model, at measurements left out of its
    fit; tau is null where all are equal.
    """

    hypervolume_share: float | None
    exact_front: int
    complete: bool
    error_percent: float
    kendall_tau: float | None


class VerifiedNetwork(_Part):
    """A network that was measured again.

    `first_ms`: the measurement of the search; `latency`: of all rounds since, `rounds_ms` each.
    `on_front_before`: by first measurements.
    """

    id: str
    first_ms: float
    rounds_ms: list[float]
    latency: Latency
    on_front_before: bool
    on_front: bool


class Verified(_Part):
    """What was measured again at a search's end, and what that changed.

    `measurements`: the reference's included. `front_before`: networks of the front by first
    measurements; `left` and `joined`: how many of it are on the front no more, and how many others
    are. `limits_broken`: networks of the front before that take over 1% more than their first
    measurement said: a limit there is broken.
    """

    rounds: int
    measurements: int
    front_before: int
    left: int
    joined: int
    limits_broken: int
    networks: list[VerifiedNetwork]


class Search(_Part):
    """All measured candidates as (latency in ms, predicted accuracy after the final finetuning).

    `objectives`: minimised beside latency. `candidates`: with those that could not be measured;
    `yardstick`: null with fewer than 5, or with a limit on memory. The front is of the networks of
    `verified`.
    """

    strategy: str
    objectives: list[str]
    candidates: int
    measured_architectures: int
    points: list[tuple[float, float]]
    yardstick: Yardstick | None
    verified: Verified


class FrontPoint(_Part):
    """A network of the front, or one that was asked for.

    `architecture`: the number of its block in each stage, as `Library.stages` has them. `roles`:
    why it is here; on the front none of those measured again beats it in all objectives.
    `raw_accuracy`: predicted after the predictor's short finetuning; `predicted_accuracy`: after
    the final one (see
    ``Calibration``), on the validation images; each with its 95% prediction interval. The
    accuracies (see ``Accuracies``), `weights` and `onnx` are null where it was not finetuned; paths
    are relative to results.json. `int8`: what it is quantised, null where no scenario is in int8;
    in one that is, latency and predictions are of the network in int8.
    """

    id: str
    architecture: list[int]
    roles: list[Literal["front", "asked for"]]
    blocks: list[str]
    raw_accuracy: float
    raw_low: float
    raw_high: float
    predicted_accuracy: float
    predicted_low: float
    predicted_high: float
    accuracy: float | None
    test_accuracy: float | None
    test_low: float | None
    test_high: float | None
    latency: Latency
    params: int
    macs: int
    weights: str | None
    onnx: str | None
    int8: Quantised | None = None


class Answer(_Part):
    """A finetuned network; `speed_up`: the reference's latency in parts of its own."""

    id: str
    test_accuracy: float
    test_low: float
    test_high: float
    median_ms: float
    speed_up: float


class Headline(_Part):
    """What a person asks first, answered by test accuracies of the finetuned networks.

    Null where none is one.

    `fastest_as_accurate`: the fastest that is not less accurate than the reference.
    `most_accurate_as_fast`: the most accurate that is not slower.
    """

    fastest_as_accurate: Answer | None
    most_accurate_as_fast: Answer | None


class Scenario(_Part):
    """A device, its search and its front; `reference_latency` is the reference's own there.

    `asked`: networks that were asked for and are not on the front.
    """

    name: str
    device: Device
    reference_latency: Latency
    headline: Headline
    search: Search
    front: list[FrontPoint]
    asked: list[FrontPoint]


class Cost(_Part):
    """What a step cost when it was computed.

    `seconds` of wall time in the process that finished it; `image_passes`: images that went through
    a training or evaluation step (a pack's image counts once, however many blocks it trains).
    """

    seconds: float
    image_passes: int
    reused: bool


class Results(_Part):
    """results.json."""

    version: Literal[4]
    name: str
    seed: int
    data: str
    versions: dict[str, str]
    doubts: list[str]
    reference: Reference
    library: Library
    predictor: Predictor
    scenarios: list[Scenario]
    cost: dict[str, Cost]
