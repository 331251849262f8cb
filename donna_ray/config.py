"""The configuration of a run: pydantic models, YAML in, unknown keys refused.

This module imports neither torch nor Ray, so a mistake is reported at once.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from donna_ray.errors import ConfigError

__all__ = [
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
    "TrainingConfig",
    "load_config",
    "shipped_config",
]

Option = bool | int | float | str


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingConfig(_Section):
    """How long and how fast a network or block is trained."""

    epochs: PositiveInt = 1
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PositiveFloat = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4


class DataConfig(_Section):
    """Images with labels.

    `source` is `digits` (scikit-learn's 1,797 handwritten digits, embedded), or a folder with
    `train/` and `validation/` (or `val/`), each with one folder of images a class.
    """

    source: str = "digits"
    image_size: Annotated[int, Field(ge=8)] | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    loader_workers: NonNegativeInt = 0

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source != "digits" and not Path(source).expanduser().is_dir():
            raise ValueError(
                "must be 'digits' or a folder that exists; correct the path or create the folder "
                "with train/ and validation/ in it"
            )
        return source


class ReferenceConfig(_Section):
    """The teacher: any timm model that can be cut, and where its weights come from.

    `weights`: `train` (on the data, with `training`), `pretrained` (timm's), or a checkpoint file.
    """

    model: str = "donna_digits"
    weights: str = "train"
    training: TrainingConfig = TrainingConfig(epochs=20)

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, weights: str) -> str:
        if weights not in ("train", "pretrained") and not Path(weights).expanduser().is_file():
            raise ValueError(
                "must be 'train', 'pretrained' or a checkpoint file that exists; correct the path"
            )
        return weights


class BlocksConfig(_Section):
    """One block family and the values of its options; every combination is a block."""

    family: str
    options: dict[str, Annotated[list[Option], Field(min_length=1)]] = Field(min_length=1)


class SpaceConfig(_Section):
    """What may stand in each stage."""

    blocks: list[BlocksConfig] = Field(min_length=1)


class LibraryConfig(TrainingConfig):
    """Blockwise distillation of every block of the space."""

    pack_size: PositiveInt = 16


class PredictorConfig(TrainingConfig):
    """The architectures that are finetuned for a short while to fit the accuracy predictor."""

    samples: Annotated[int, Field(ge=6)] = 16


class SearchConfig(_Section):
    """NSGA-II in an Optuna study: how many candidates, and the limit they must keep."""

    evaluations: PositiveInt = 200
    population: Annotated[int, Field(ge=2)] = 24
    batch_size: PositiveInt = 12
    latency_limit_ms: PositiveFloat | None = None


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
    return Path(__file__).parent / "configs" / f"{name}.yaml"


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
    annotation = model.model_fields[name].annotation
    while not hasattr(annotation, "model_fields"):
        annotation = annotation.__args__[0]
    return annotation
