"""The configuration of a run: pydantic models, YAML in, unknown keys refused.

This module imports neither torch nor Ray, so a mistake is reported at once.
"""

import difflib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from donna_ray.errors import ConfigError

__all__ = [
    "PRESETS",
    "BlocksConfig",
    "ClusterConfig",
    "DataConfig",
    "DeviceConfig",
    "FinetuneConfig",
    "LibraryConfig",
    "PredictorConfig",
    "ReferenceConfig",
    "RunConfig",
    "SearchConfig",
    "SpaceConfig",
    "StageConfig",
    "TrainingConfig",
    "load_config",
    "preset_space",
    "shipped_config",
]

_NAMED_DATASET = re.compile(r"(torch|hfds|hfids|tfds|wds)/", re.IGNORECASE)
_LIMIT = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?(ms|x)")
_CONFIGS = Path(__file__).parent / "configs"
PRESETS = ("compress", *sorted(path.stem for path in (_CONFIGS / "spaces").glob("*.yaml")))


def _absolute(path: str) -> str:
    """Workers may have another working directory than the command."""
    return os.path.abspath(os.path.expanduser(path))


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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingConfig(_Section):
    """How long and how fast a network or block is trained."""

    epochs: PositiveInt = 1
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4


class DataConfig(_Section):
    """Images.

    `source` is `digits` (scikit-learn's 1,797 handwritten digits, embedded); a folder that holds
    each split as a folder with one folder of images a class, or as a tar of them; or a name that
    timm.data.create_dataset takes (`torch/cifar10`, `hfds/…`, `wds/…`, …) with the data in `root`.
    `unlabelled` is a folder or tar of images for the distillation of blocks, which needs no labels.
    `classes` is needed only where the data do not tell. `augmentation` holds arguments of
    timm.data.create_transform for the training images (null: none).
    """

    source: str = "digits"
    root: str | None = None
    download: bool = False
    train_split: str = "train"
    validation_split: str = "validation"
    unlabelled: str | None = None
    classes: Annotated[int, Field(ge=2)] | None = None
    image_size: Annotated[int, Field(ge=8)] | None = None
    augmentation: dict[str, Any] | None = Field(default_factory=dict)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    loader_workers: NonNegativeInt = 0

    @field_validator("source", "root", "unlabelled")
    @classmethod
    def _paths_are_absolute(cls, path: str | None) -> str | None:
        if path is None or path == "digits" or _NAMED_DATASET.match(path):
            return path
        return _absolute(path)


class ReferenceConfig(_Section):
    """The teacher: any timm model that can be cut, and where its weights come from.

    `weights`: `train` (on the data), `pretrained` (timm's), or a checkpoint file. With `training`,
    pretrained weights are trained further on the data; without it `train` takes 20 epochs.
    `stages` names the modules of each stage where the automatic cut is not the wanted one.
    """

    model: str = "donna_digits"
    weights: str = "train"
    stages: Annotated[list[ModuleNames], Field(min_length=1)] | None = None
    training: TrainingConfig | None = None

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, weights: str) -> str:
        if weights not in ("train", "pretrained") and not Path(weights).expanduser().is_file():
            raise ValueError(
                "must be 'train', 'pretrained' or a checkpoint file that exists; correct the path"
            )
        return weights if weights in ("train", "pretrained") else _absolute(weights)


class BlocksConfig(_Section):
    """One block family and the values of its options; every combination is a block.

    Combinations that have one of the listed values of every option of an entry of `exclude` are
    left out.
    """

    family: str
    options: Options = Field(min_length=1)
    exclude: list[Options] = []


class StageConfig(_Section):
    """How one stage differs: values in place of the others, or other blocks altogether."""

    options: Options = {}
    blocks: Annotated[list[BlocksConfig], Field(min_length=1)] | None = None


class SpaceConfig(_Section):
    """What may stand in each stage.

    `preset` names a space that comes with the package (or `compress`: the reference's own stages,
    shrunk); `blocks` come in addition. `modules` are Python files, or entry points of installed
    packages (group `donna_ray.blocks`), that register block families. `stages`, by the number of
    the stage from 0, says what is different there.
    """

    preset: str | None = None
    modules: list[str] = []
    blocks: list[BlocksConfig] = []
    stages: dict[NonNegativeInt, StageConfig] = {}

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}; correct the name")
        return preset

    @field_validator("modules")
    @classmethod
    def _modules_are_absolute(cls, modules: list[str]) -> list[str]:
        return [_absolute(name) if name.endswith(".py") else name for name in modules]

    @model_validator(mode="after")
    def _is_not_empty(self) -> "SpaceConfig":
        if self.preset is None and not self.blocks:
            raise ValueError(
                "must have blocks or a preset, but has neither; list blocks or name one of the "
                f"presets {', '.join(PRESETS)}"
            )
        return self


class LibraryConfig(TrainingConfig):
    """Blockwise distillation of every block of the space."""

    pack_size: PositiveInt = 16


class PredictorConfig(TrainingConfig):
    """The architectures that are finetuned for a short while to fit the accuracy predictor."""

    samples: Annotated[int, Field(ge=6)] = 16


class SearchConfig(_Section):
    """NSGA-II in an Optuna study: how many candidates, and the limit they must keep.

    `latency_limit` is milliseconds (`2.5ms`) or a multiple of the reference's latency (`0.8x`).
    """

    evaluations: PositiveInt = 200
    population: Annotated[int, Field(ge=2)] = 24
    batch_size: PositiveInt = 12
    latency_limit: str | None = None

    @field_validator("latency_limit", mode="before")
    @classmethod
    def _limit_is_positive(cls, limit: Any) -> Any:
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        if limit is not None and (match is None or float(match[1]) == 0):
            raise ValueError(
                "must be milliseconds such as '2.5ms', or a multiple of the reference's latency "
                "such as '0.8x', greater than 0"
            )
        return limit

    def latency_limit_ms(self, reference_ms: float) -> float | None:
        """The limit in milliseconds, given the reference's own latency."""
        match = _LIMIT.fullmatch(self.latency_limit or "")
        if match is None:
            return None
        return float(match[1]) * (reference_ms if match[2] == "x" else 1)


class FinetuneConfig(TrainingConfig):
    """The networks of the front that are finetuned and exported."""

    networks: PositiveInt = 3


class DeviceConfig(_Section):
    """The device that latency is measured on."""

    connector: str = "onnxruntime"
    settings: dict[str, Any] = Field(default_factory=dict)


class ClusterConfig(_Section):
    """What training takes of the Ray cluster."""

    workers: PositiveInt = 2
    cpus_per_worker: PositiveFloat = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    retries: NonNegativeInt = 3


class RunConfig(_Section):
    """One run, from reference to report."""

    name: str = "donna"
    seed: NonNegativeInt = 0
    data: DataConfig = DataConfig()
    reference: ReferenceConfig = ReferenceConfig()
    space: SpaceConfig
    library: LibraryConfig = LibraryConfig()
    predictor: PredictorConfig = PredictorConfig()
    search: SearchConfig = SearchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    device: DeviceConfig = DeviceConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _search_fills_a_population(self) -> "RunConfig":
        if self.search.evaluations < self.search.population:
            raise ValueError(
                f"search.evaluations must be at least search.population, but is "
                f"{self.search.evaluations} with a population of {self.search.population}; "
                "raise the one or lower the other"
            )
        return self


def shipped_config(name: str) -> Path:
    """The path of a configuration that comes with the package, such as `demo`."""
    return _CONFIGS / f"{name}.yaml"


def preset_space(name: str) -> SpaceConfig:
    """A space that comes with the package (``PRESETS``, but for `compress`)."""
    return SpaceConfig.model_validate(_read_yaml(_CONFIGS / "spaces" / f"{name}.yaml"))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a YAML file.
        overrides: `a.b=c` each, the value in YAML's notation; they win over the file.

    Raises:
        ConfigError: the file cannot be read, or a key or value breaks a rule. The message names
            each key, its value and the remedy.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration must be a file, but {path} does not exist. Correct the path, or "
            "start from the demo's: `donna config show demo > search.yaml`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} cannot be read ({error}). Give a YAML file."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} must be YAML, but is not. Mend this: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must be a mapping of sections, but is {values!r:.60}. See "
            "`donna config schema` for the sections."
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set takes KEY=VALUE such as search.population=24, not {override!r}.")
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {override}: {section!r} must be a section, but holds {values!r}. Name a "
                "key that `donna config schema` lists."
            )
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value must be YAML. Quote it.") from None


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: the key, the rule, the value and the remedy."""
    where = ".".join(str(part) for part in error["loc"])
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{where} {text} (it is {value!r})." if where else f"{text}."
    if kind == "extra_forbidden":
        return f"{where} is no known key (its value is {value!r}). {_known_keys(error['loc'])}"
    if kind == "missing":
        return f"{where} must be given, but is missing. `donna config schema` says what it takes."
    if kind == "too_short":
        return f"{where} must not be empty, but is {value!r}. Give at least one entry."
    return f"{where}: {_lowered(error['msg'])}, but it is {value!r}. Change this value."


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _known_keys(location: Sequence[str | int]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, str):
            model = _section_type(model, part)
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Keys here: {', '.join(known)}."


def _section_type(model: Any, name: str) -> Any:
    return _section_within(model.model_fields[name].annotation)


def _section_within(annotation: Any) -> Any:
    """The section type in an annotation such as `list[X] | None`; None where there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    found = (_section_within(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)
