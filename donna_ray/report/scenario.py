"""The part of results.json that is about one scenario: its device, its search and its front."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from donna_ray.block_spec import BlockSpec

__all__ = [
    "Accuracies",
    "Answer",
    "Candidate",
    "Device",
    "FailedCandidate",
    "FrontPoint",
    "Headline",
    "Latency",
    "Part",
    "Quantised",
    "Scenario",
    "Search",
    "Spec",
    "Verified",
    "VerifiedNetwork",
    "Yardstick",
]


class Part(BaseModel):
    """Of results.json; takes no field that it does not know."""

    model_config = ConfigDict(extra="forbid")


class Spec(Part):
    """A block: its family, and its options by name, such as `kernel`, `expansion` and `depth`.

    As text it is what the command line prints: `family(option=value, …)`.
    """

    family: str
    options: dict[str, bool | int | float | str]

    def __str__(self) -> str:
        return str(BlockSpec.of(self.family, self.options))


class Latency(Part):
    """Milliseconds of one inference with batch 1; `n` runs; 95% interval in % of the median.

    `p90_ms` and `p99_ms` are of single runs, null where the device does not tell them; so are
    `init_ms` (loading the model), `peak_memory_mb` (10**6 bytes) and `energy_mj` (millijoules an
    inference).
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


class Accuracies(Part):
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


class Halved(Quantised):
    """A finished network in half precision, and the path of its ONNX model.

    `largest`: of the absolute values that it computes with in fp32; those above 65504 are infinite
    in half precision.
    """

    largest: float


class Device(Part):
    """What latency was measured on, of networks in a precision."""

    model: str
    connector: str
    settings: dict[str, Any]
    simulated: bool
    precision: Literal["fp32", "fp16", "int8"] = "fp32"


class Yardstick(Part):
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


class VerifiedNetwork(Part):
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


class Verified(Part):
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


class Candidate(Part):
    """A measured network; `median_ms` is that of all rounds, where it was measured again.

    `architecture`: the number of its block in each stage, as `Library.stages` has them.
    `n`: timed runs. `ci_percent`: half of the 95% interval of the median. `drift_percent`: of the
    control model meanwhile, against its baseline; `temperature_c`: the device's hottest part
    afterwards; each null where it is not told.
    """

    id: str
    architecture: list[int]
    median_ms: float
    predicted_accuracy: float
    n: int
    ci_percent: float
    drift_percent: float | None
    temperature_c: float | None


class FailedCandidate(Part):
    """A network that could not be measured, and why."""

    id: str
    architecture: list[int]
    reason: str


class Search(Part):
    """All candidates: those that were measured, in the order of asking, and those that failed.

    Accuracies are predicted, after the final finetuning. `objectives`: minimised beside latency.
    `candidates`: how many, with the failed ones. `yardstick`: null with fewer than 5, or with a
    limit on memory. The front is of the networks of `verified`. `timed_seconds`: device time of the
    timed runs that count, the reference's among them; warm-up and control are not.
    """

    strategy: str
    objectives: list[str]
    candidates: int
    measured_architectures: int
    measured: list[Candidate]
    failed: list[FailedCandidate]
    timed_seconds: float
    yardstick: Yardstick | None
    verified: Verified


class FrontPoint(Part):
    """A network of the front, or one that was asked for.

    `architecture`: the number of its block in each stage, as `Library.stages` has them. `roles`:
    why it is here; on the front none of those measured again beats it in all objectives.
    `raw_accuracy`: predicted after the predictor's short finetuning; `predicted_accuracy`: after
    the final one (see
    ``Calibration``), on the validation images; each with its 95% prediction interval. The
    accuracies (see ``Accuracies``), `weights` and `onnx` are null where it was not finetuned; paths
    are relative to results.json. `int8`: what it is quantised, null where no scenario is in int8,
    or where it cannot be: `int8_failed` has the reason. In a scenario in int8, latency and
    predictions are of the network in int8. `fp16`: likewise.
    """

    id: str
    architecture: list[int]
    roles: list[Literal["front", "asked for"]]
    blocks: list[Spec]
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
    int8_failed: str | None = None
    fp16: Halved | None = None

    def lowered(self, precision: Literal["fp16", "int8"]) -> "FrontPoint":
        """With its accuracies and its model in a precision in the place of the float ones."""
        names = ("accuracy", "test_accuracy", "test_low", "test_high", "onnx")
        own = self.int8 if precision == "int8" else self.fp16
        return self.model_copy(update={name: getattr(own, name, None) for name in names})


class Answer(Part):
    """A finetuned network; `speed_up`: the reference's latency in parts of its own, with the 95%
    interval that both give."""

    id: str
    test_accuracy: float
    test_low: float
    test_high: float
    median_ms: float
    speed_up: float
    speed_up_low: float
    speed_up_high: float


class Headline(Part):
    """What a person asks first, of the finetuned networks; null where none is one.

    The validation images choose, so that the test images, which tell of the chosen one, do not.

    `fastest_as_accurate`: the fastest that is not less accurate than the reference.
    `most_accurate_as_fast`: the most accurate that is not slower.
    """

    fastest_as_accurate: Answer | None
    most_accurate_as_fast: Answer | None


class Scenario(Part):
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

    def in_own_precision(self) -> "Scenario":
        """As its headline counts: where it is not in fp32 with networks ``lowered``."""
        precision = self.device.precision
        if precision == "fp32":
            return self
        points = {"front": self.front, "asked": self.asked}
        return self.model_copy(
            update={name: [each.lowered(precision) for each in own] for name, own in points.items()}
        )
