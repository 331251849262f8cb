"""The configuration of a run as pydantic models; unknown keys are refused."""

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from donna_ray.config.cluster import ClusterConfig
from donna_ray.config.data import DataConfig
from donna_ray.config.recipes import FinetuneRecipe, ReferenceTraining, TrainingConfig
from donna_ray.config.scenarios import (
    DeviceConfig,
    DevicePrecision,
    Scenario,
    ScenarioConfig,
    SearchConfig,
)
from donna_ray.config.values import (
    ArchitectureName,
    FolderOrUrl,
    LatencyLimit,
    Section,
    StoreLocation,
    absolute,
)
from donna_ray.errors import ConfigError

__all__ = [
    "CONFIGS",
    "PRESETS",
    "BlocksConfig",
    "ClusterConfig",
    "DataConfig",
    "FamilyRecipe",
    "FinetuneConfig",
    "FinetuneRecipe",
    "LibraryConfig",
    "PredictorConfig",
    "RacingConfig",
    "ReferenceConfig",
    "ReferenceTraining",
    "RunConfig",
    "SpaceConfig",
    "StageConfig",
    "TrackingConfig",
    "TrainingConfig",
]

_NAMED_WEIGHTS = ("train", "pretrained")
CONFIGS = Path(__file__).parent / "shipped"
PRESETS = ("compress", *sorted(path.stem for path in (CONFIGS / "spaces").glob("*.yaml")))


def _checked_option(value: Any) -> Any:
    plain = isinstance(value, bool | int | str)
    if not plain and not (isinstance(value, float) and math.isfinite(value)):
        raise ValueError("must be a finite number, a word, true or false; change this value")
    return value


Option = Annotated[
    Any,
    PlainValidator(_checked_option),
    WithJsonSchema({"type": ["boolean", "number", "string"]}),
]
Options = dict[str, Annotated[list[Option], Field(min_length=1)]]
ModuleNames = str | Annotated[list[str], Field(min_length=1)]


class ReferenceConfig(Section):
    """The teacher: any timm model that can be cut, and where its weights come from.

    `model` is timm's name of it, or `donna_digits` or `donna_micro` of this package.
    `weights`: `train` (on the data), `pretrained` (timm's), or a checkpoint file. With `training`,
    given weights are trained further on the data, with a new classifier where they know another
    number of classes; without it `train` takes 20 epochs.
    `stages` names the modules of each stage where the automatic cut is not the wanted one.
    """

    model: str = "donna_digits"
    weights: str = "train"
    stages: Annotated[list[ModuleNames], Field(min_length=1)] | None = None
    training: ReferenceTraining | None = None

    @field_validator("weights")
    @classmethod
    def _file_is_absolute(cls, weights: str) -> str:
        return weights if weights in _NAMED_WEIGHTS else absolute(weights)

    def trains(self) -> bool:
        """Whether the run itself trains the weights, all or further."""
        return self.weights == "train" or self.training is not None

    def check_weights(self) -> None:
        """Raises ConfigError where this host lacks the checkpoint."""
        if self.weights not in _NAMED_WEIGHTS and not Path(self.weights).is_file():
            raise ConfigError(
                "reference.weights must be 'train', 'pretrained' or a checkpoint file that exists, "
                f"but is {self.weights!r}; correct the path."
            )


class BlocksConfig(Section):
    """One block `family` and the values of its `options`; every combination is a block.

    Combinations that have one of the listed values of every option of an entry of `exclude` are
    left out; each value must be one that the option has.
    """

    family: str
    options: Options = Field(min_length=1)
    exclude: list[Options] = Field(default_factory=list)


class StageConfig(Section):
    """How one stage differs: `options`, values in place of the others, or other `blocks`."""

    options: Options = Field(default_factory=dict)
    blocks: Annotated[list[BlocksConfig], Field(min_length=1)] | None = None


class SpaceConfig(Section):
    """What may stand in each stage.

    `preset` names a space that comes with the package (or `compress`: the reference's own stages,
    shrunk); `blocks` come in addition. `modules` are Python files, or entry points of installed
    packages (group `donna_ray.blocks`), that register block families. `stages`, by the number of
    the stage from 0, says what is different there.
    """

    preset: str | None = None
    modules: list[str] = Field(default_factory=list)
    blocks: list[BlocksConfig] = Field(default_factory=list)
    stages: dict[NonNegativeInt, StageConfig] = Field(default_factory=dict)

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}; correct the name")
        return preset

    @field_validator("modules")
    @classmethod
    def _modules_are_absolute(cls, modules: list[str]) -> list[str]:
        return [absolute(name) if name.endswith(".py") else name for name in modules]

    @model_validator(mode="after")
    def _is_not_empty(self) -> "SpaceConfig":
        if self.preset is None and not self.blocks:
            raise ValueError(
                "must have blocks or a preset, but has neither; list blocks or name one of the "
                f"presets {', '.join(PRESETS)}"
            )
        return self


class FamilyRecipe(Section):
    """What differs in the distillation of one block family; null is the library's own.

    `epochs`, `learning_rate` and `weight_decay` as in ``TrainingConfig``.
    """

    epochs: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class RacingConfig(Section):
    """Pausing early the blocks that are bad and expensive.

    After `share` of its training a block is paused if another one of its stage costs no more, by
    `cost` (`macs` or `params`), and has an NSR so far that is lower by more than `margin` (0.1 is
    10%).
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    cost: Literal["macs", "params"] = "macs"
    margin: Annotated[float, Field(ge=0)] = 0.1


class LibraryConfig(TrainingConfig):
    """Blockwise distillation of every block of the space.

    `steps` stands for `epochs`: as many whole passes as have at least so many steps (families of
    `recipes` may still have epochs of their own).
    `pack_size` blocks are trained in one pass over the data; null is 16 on a CPU, and on a GPU what
    its memory holds (64 at most). `racing` pauses bad blocks early. `recipes` says, by block
    family, what differs there. `features` keeps the reference's features of the images instead of
    computing them in every pass, in `memory` or on `disk` (needs data.augmentation null).
    `precision` is `fp32`, `bf16` or `fp16` (autocast, for GPUs without bfloat16) or `auto`: what a
    short measurement on a worker shows to be faster. `store` is where blocks are kept, any fsspec
    URL; null is the run folder.
    """

    steps: PositiveInt | None = None
    pack_size: PositiveInt | None = None
    racing: RacingConfig | None = None
    recipes: dict[str, FamilyRecipe] = Field(default_factory=dict)
    features: Literal["compute", "memory", "disk"] = "compute"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    store: StoreLocation | None = None

    def recipe_of(self, family: str) -> TrainingConfig:
        """How blocks of a family are trained."""
        own = self.recipes.get(family, FamilyRecipe()).model_dump(exclude_none=True)
        common = {name: getattr(self, name) for name in TrainingConfig.model_fields}
        return TrainingConfig(**{**common, **own})


class PredictorConfig(FinetuneRecipe):
    """The architectures that are finetuned for a short while to fit the accuracy predictor.

    `samples` is their number, or the most of them where `tau_interval` is given: then they are
    finetuned in rounds until the 95% interval of Kendall tau is narrower than that. `sampling` is
    `informed` (those that tell most about the space) or `random`.
    """

    samples: Annotated[int, Field(ge=6)] = 16
    sampling: Literal["informed", "random"] = "informed"
    tau_interval: Annotated[float, Field(gt=0, lt=2)] | None = None


class FinetuneConfig(FinetuneRecipe):
    """The networks of each front that are finetuned and exported.

    `networks` of them, spread over the front, or the most accurate if it is one; or, with
    `budgets`, the one of the highest predicted accuracy within each of these latencies:
    milliseconds (`2.5ms`) or a multiple of the reference's (`0.8x`). And the `architectures` that
    are named: by an id, its beginning, or the number of each stage's block (`3-0-17`).
    """

    epochs: PositiveInt = 15
    networks: PositiveInt = 3
    architectures: list[ArchitectureName] = Field(default_factory=list)
    budgets: Annotated[list[LatencyLimit], Field(min_length=1)] | None = None


class TrackingConfig(Section):
    """Where candidates are logged as they are measured, beside the run's own files.

    `mlflow` is a tracking URI, `wandb` a project of Weights & Biases. Keys and passwords come from
    the environment, as their documentation says; TensorBoard's files are always written.
    """

    mlflow: FolderOrUrl | None = None
    wandb: str | None = None

    def check(self) -> None:
        """Refuse a tracker whose package is not there.

        Raises:
            ConfigError: with what installs it.
        """
        for name, package in {"mlflow": "mlflow-skinny", "wandb": "wandb"}.items():
            if getattr(self, name) is not None and find_spec(name) is None:
                raise ConfigError(
                    f"tracking.{name} needs the package {name}, which is not installed. Run `pip "
                    f"install {package}`, or take tracking.{name} out."
                )


class RunConfig(Section):
    """One run, from reference to report.

    `seed` decides all that is random. The sections are `data`, `reference`, `space`, `library`,
    `predictor`, `search`, `finetune`, `device`, `cluster` and `tracking`; `scenarios` are several
    devices or limits in place of one.

    `name` is also that of its folder: a letter or digit, and then also `.`, `_` and `-`.
    """

    name: str = "donna"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig = DataConfig()
    reference: ReferenceConfig = ReferenceConfig()
    space: SpaceConfig
    library: LibraryConfig = LibraryConfig()
    predictor: PredictorConfig = PredictorConfig()
    search: SearchConfig = SearchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    device: DeviceConfig = DeviceConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    scenarios: list[ScenarioConfig] = Field(default_factory=list)

    @property
    def in_int8(self) -> bool:
        """Whether a scenario's networks are in int8."""
        return self._is_in("int8")

    @property
    def in_fp16(self) -> bool:
        """Whether a scenario's networks are in half precision."""
        return self._is_in("fp16")

    def _is_in(self, precision: DevicePrecision) -> bool:
        return any(each.device.precision == precision for each in self.all_scenarios())

    def all_scenarios(self) -> list[Scenario]:
        """What is searched for: `scenarios`, or the one that `device` and `search` are."""
        named = self.scenarios or [ScenarioConfig(name="default")]
        return [each.resolved(self.device, self.search) for each in named]

    @field_validator("name")
    @classmethod
    def _name_is_a_folders(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                "must begin with a letter or digit, and go on with these, '.', '_' or '-', since "
                "the run's folder has this name; rename the run, or give its folder with --out"
            )
        return name

    @model_validator(mode="after")
    def _scenarios_are_whole(self) -> "RunConfig":
        names = [each.name for each in self.scenarios]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"scenarios must have names of their own, but {', '.join(twice)} is there twice; "
                "rename one"
            )
        self.all_scenarios()
        return self

    @model_validator(mode="after")
    def _networks_find_their_workers(self) -> "RunConfig":
        recipes: dict[str, FinetuneRecipe | None] = {
            "reference.training": self.reference.training,
            "predictor": self.predictor,
            "finetune": self.finetune,
        }
        for name, recipe in recipes.items():
            if recipe is not None and recipe.workers_per_network > self.cluster.workers:
                raise ValueError(
                    f"{name}.workers_per_network must be at most cluster.workers, but is "
                    f"{recipe.workers_per_network} of {self.cluster.workers}; raise the one or "
                    "lower the other"
                )
        return self
