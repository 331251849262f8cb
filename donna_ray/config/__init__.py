"""The configuration of a run: pydantic models, YAML in, unknown keys refused.

Entry: `load_config` in `loading.py`, which also says what is wrong with a file. `models.py` has a
section of the YAML a class, `data.py` that of the images, `recipes.py` how something is trained,
`scenarios.py` devices and searches, `cluster.py` Ray's part, `values.py` the types of paths and
limits, `shipped/` the configurations and spaces that come with the package, `starting.py` writes
one to start from.
Imports neither torch nor Ray, so a mistake is reported at once.
"""

from donna_ray.config.loading import (
    kept_module,
    load_config,
    preset_space,
    section_of,
    shipped_config,
)
from donna_ray.config.models import (
    PRESETS,
    BlocksConfig,
    ClusterConfig,
    DataConfig,
    FamilyRecipe,
    FinetuneConfig,
    FinetuneRecipe,
    LibraryConfig,
    PredictorConfig,
    RacingConfig,
    ReferenceConfig,
    ReferenceTraining,
    RunConfig,
    SpaceConfig,
    StageConfig,
    TrackingConfig,
    TrainingConfig,
)
from donna_ray.config.scenarios import (
    DeviceConfig,
    DevicePrecision,
    GeneticConfig,
    Scenario,
    ScenarioConfig,
    SearchConfig,
)
from donna_ray.config.starting import starting_config, with_lengths
from donna_ray.config.values import amount_of

__all__ = [
    "PRESETS",
    "BlocksConfig",
    "ClusterConfig",
    "DataConfig",
    "DeviceConfig",
    "DevicePrecision",
    "FamilyRecipe",
    "FinetuneConfig",
    "FinetuneRecipe",
    "GeneticConfig",
    "LibraryConfig",
    "PredictorConfig",
    "RacingConfig",
    "ReferenceConfig",
    "ReferenceTraining",
    "RunConfig",
    "Scenario",
    "ScenarioConfig",
    "SearchConfig",
    "SpaceConfig",
    "StageConfig",
    "TrackingConfig",
    "TrainingConfig",
    "amount_of",
    "kept_module",
    "load_config",
    "preset_space",
    "section_of",
    "shipped_config",
    "starting_config",
    "with_lengths",
]
