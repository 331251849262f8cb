"""The configuration of a run: pydantic models, YAML in, unknown keys refused.

This package imports neither torch nor Ray, so a mistake is reported at once.
"""

from donna_ray.config.loading import load_config, preset_space, shipped_config
from donna_ray.config.models import (
    PRESETS,
    BlocksConfig,
    ClusterConfig,
    DataConfig,
    DeviceConfig,
    FamilyRecipe,
    FinetuneConfig,
    FinetuneRecipe,
    LibraryConfig,
    PredictorConfig,
    RacingConfig,
    ReferenceConfig,
    RunConfig,
    SearchConfig,
    SpaceConfig,
    StageConfig,
    TrainingConfig,
)

__all__ = [
    "PRESETS",
    "BlocksConfig",
    "ClusterConfig",
    "DataConfig",
    "DeviceConfig",
    "FamilyRecipe",
    "FinetuneConfig",
    "FinetuneRecipe",
    "LibraryConfig",
    "PredictorConfig",
    "RacingConfig",
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
