"""What is searched for: a device, and what its front must keep."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from donna_ray.config.values import LatencyLimit, MemoryLimit, Section, amount_of, limit_of

__all__ = [
    "DeviceConfig",
    "DevicePrecision",
    "GeneticConfig",
    "Scenario",
    "ScenarioConfig",
    "SearchConfig",
]


DevicePrecision = Literal["fp32", "fp16", "int8"]


class GeneticConfig(Section):
    """What `nsga2` and `nsga3` take.

    `population` is that of a generation. `crossover_probability` is that of crossing two parents,
    `swapping_probability` of taking a stage from the second one, and `mutation_probability` of
    drawing a stage anew (null: one of them a candidate).
    """

    population: Annotated[int, Field(ge=2)] = 24
    crossover_probability: Annotated[float, Field(ge=0, le=1)] = 0.9
    swapping_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    mutation_probability: Annotated[float, Field(ge=0, le=1)] | None = None


class SearchConfig(GeneticConfig):
    """How the front is searched, how many candidates are measured, and the limits they must keep.

    `strategy` is `frontier` (few measurements, by a model of the device's latency), a sampler of
    Optuna: `nsga2` (the paper's), `nsga3`, `tpe`, `random`, or one that an installed package
    registers, with its `options`. `evaluations` is the most candidates that are measured,
    `batch_size` how many at a time. With `min_gain` the search stops earlier, when a measurement
    brings less hypervolume (of networks that keep the limits) than this share of it all, averaged
    over 30. `population` and the probabilities are of `nsga2` and `nsga3` (``GeneticConfig``).

    `latency_limit` is milliseconds (`2.5ms`) or a multiple of the reference's latency (`0.8x`);
    `memory_limit` megabytes (`60MB`) of measured peak memory, or a multiple likewise;
    `params_limit` and `macs_limit` are numbers, or multiples likewise.

    `objectives` are minimised beside latency, so the front has them as well; an Optuna sampler is
    needed for that. The memory of weights is 4 bytes a parameter in fp32.
    """

    strategy: str = "frontier"
    options: dict[str, Any] = Field(default_factory=dict)
    evaluations: PositiveInt = 200
    batch_size: PositiveInt = 12
    min_gain: PositiveFloat | None = None
    latency_limit: LatencyLimit | None = None
    memory_limit: MemoryLimit | None = None
    params_limit: PositiveInt | str | None = None
    macs_limit: PositiveInt | str | None = None
    objectives: list[Literal["params", "macs"]] = Field(default_factory=list)

    @field_validator("params_limit", "macs_limit", mode="before")
    @classmethod
    def _known_limit_is_positive(cls, limit: Any) -> Any:
        if isinstance(limit, str) and (limit_of(limit) or (0, ""))[1] != "x":
            raise ValueError(
                "must be a whole number such as 2500000, or a multiple of the reference's own such "
                "as '0.5x', greater than 0"
            )
        return limit

    def latency_limit_ms(self, reference_ms: float) -> float | None:
        """The limit in milliseconds, given the reference's own latency."""
        return None if self.latency_limit is None else amount_of(self.latency_limit, reference_ms)

    def in_parts_of_reference(self) -> bool:
        """Whether the limit on latency is a multiple of the reference's."""
        return self.latency_limit is not None and self.latency_limit.endswith("x")

    def memory_limit_mb(self, reference_mb: float) -> float | None:
        """The limit in MB, given the reference's own peak memory."""
        return None if self.memory_limit is None else amount_of(self.memory_limit, reference_mb)

    def known_limit(self, name: Literal["params", "macs"], reference: int) -> float | None:
        """The limit on params or MACs, given the reference's own."""
        limit = {"params": self.params_limit, "macs": self.macs_limit}[name]
        return float(limit[:-1]) * reference if isinstance(limit, str) else limit

    @model_validator(mode="after")
    def _objectives_have_a_sampler(self) -> "SearchConfig":
        if self.objectives and self.strategy == "frontier":
            raise ValueError(
                f"must have a strategy of Optuna for more objectives, but has {self.objectives} "
                "with 'frontier', whose front is of accuracy and latency; set strategy to nsga3, "
                "or set a limit instead"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_fill_a_population(self) -> "SearchConfig":
        genetic = self.strategy in ("nsga2", "nsga3")
        if genetic and self.evaluations < self.population:
            raise ValueError(
                f"must have at least as many evaluations as its population, but has "
                f"{self.evaluations} with a population of {self.population}; raise the one or "
                "lower the other"
            )
        return self


class DeviceConfig(Section):
    """The device that latency is measured on: `connector` and its `settings`.

    Or one of a farm that is served on the cluster (`device-farm serve`): `farm` is the farm's name,
    `name` that of the device, or a model of devices. Kind and settings are then in its farm.yaml.
    The connector `recorded` is no device: its latencies were measured before (docs/search.md).
    `resources` are what a node of the cluster must offer for it (`{"phone:pixel-8": 1}`): an
    autoscaler is asked for such a node, and the search waits for one. A device that is not of a
    farm runs there, and takes them meanwhile.
    `precision` is that of the networks there, `fp32`, `fp16` (docs/fp16.md) or `int8`
    (docs/int8.md): it is what is measured, and what accuracy is predicted of.
    """

    connector: str = "onnxruntime"
    settings: dict[str, Any] = Field(default_factory=dict)
    farm: str | None = None
    name: str | None = None
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    precision: DevicePrecision = "fp32"

    @model_validator(mode="after")
    def _device_is_named_once(self) -> "DeviceConfig":
        if (self.farm is None) != (self.name is None):
            raise ValueError(
                f"must have both `farm` and `name`, or neither, but has {self.farm!r} and "
                f"{self.name!r}; add the other: `device-farm watch` shows names and models"
            )
        default = type(self).model_fields["connector"].default
        if self.farm is not None and (self.connector != default or self.settings):
            raise ValueError(
                f"must have no `connector` and `settings` beside `farm`, but has "
                f"{self.connector!r} with {self.settings}; they are in the farm's farm.yaml"
            )
        return self


@dataclass(frozen=True)
class Scenario:
    """A device and how its front is searched, all said."""

    name: str
    device: DeviceConfig
    search: SearchConfig


class ScenarioConfig(Section):
    """One of several devices, or of several limits on one.

    `name` is also that of its folder (`search/NAME`). `device` and `search` are as the sections of
    these names; what `search` does not say, and the device if it is left out, is as there.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    device: DeviceConfig | None = None
    search: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in ("graphs", "tracking"):
            raise ValueError("must not be that of another folder of the search; choose another")
        return name

    def resolved(self, device: DeviceConfig, search: SearchConfig) -> Scenario:
        """With what it does not say.

        Raises:
            ValueError: with what it says the search would not be valid.
        """
        try:
            whole = SearchConfig.model_validate({**search.model_dump(), **self.search})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["search", *map(str, first["loc"])])
            rule = first["msg"].removeprefix("Value error, ")
            value = f" (it is {first['input']!r})" if first["loc"] else ""
            raise ValueError(
                f"scenario {self.name!r} is not valid: {where} {rule}{value}; correct it"
            ) from None
        return Scenario(self.name, self.device or device, whole)
