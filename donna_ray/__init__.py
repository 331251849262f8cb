"""Finds neural networks for a given device: the method of DONNA (ICCV 2021), on Ray.

Moons et al., "Distilling Optimal Neural Networks: Rapid Search in Diverse Spaces",
arXiv 2012.08859. ``run_steps`` is the whole method (`donna_ray.pipeline` lists its steps), `donna`
the command line (`donna_ray.cli.main`); ARCHITECTURE.md says what each folder is for.

Names are loaded when they are first used: importing this package imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from donna_ray.versions import VERSION as __version__  # noqa: F401

if TYPE_CHECKING:
    from donna_ray.config import (
        BlocksConfig,
        ClusterConfig,
        DataConfig,
        DeviceConfig,
        FinetuneConfig,
        LibraryConfig,
        PredictorConfig,
        ReferenceConfig,
        RunConfig,
        SearchConfig,
        SpaceConfig,
        load_config,
        shipped_config,
    )
    from donna_ray.errors import ConfigError, DonnaError
    from donna_ray.export.step import export_network
    from donna_ray.latency.direct import device_latency
    from donna_ray.pipeline import check, run_steps
    from donna_ray.predictor.model import AccuracyPredictor
    from donna_ray.reference.build import build_reference
    from donna_ray.reference.network import StagedNetwork
    from donna_ray.report.results import read_results
    from donna_ray.run.run import Run
    from donna_ray.search.ask_tell import Search, SearchSetup
    from donna_ray.search.exact.accuracy import AccuracyModel
    from donna_ray.search.exact.front import exact_front
    from donna_ray.search.strategies.contract import Strategy
    from donna_ray.search.study.ledger import Ledger
    from donna_ray.search.study.problem import KnownCost, SearchProblem
    from donna_ray.search.trainable import candidates_of
    from donna_ray.search.tuner import BatchSearcher
    from donna_ray.space import (
        BlockSpec,
        SearchSpace,
        Stage,
        StageShape,
        build_block,
        build_space,
        register_block,
    )
    from donna_ray.storage.records import RecordStore
    from donna_ray.study import Candidate, Study

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded

__all__ = [
    "AccuracyModel",
    "AccuracyPredictor",
    "BatchSearcher",
    "BlockSpec",
    "BlocksConfig",
    "Candidate",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "DeviceConfig",
    "DonnaError",
    "FinetuneConfig",
    "KnownCost",
    "Ledger",
    "LibraryConfig",
    "PredictorConfig",
    "RecordStore",
    "ReferenceConfig",
    "Run",
    "RunConfig",
    "Search",
    "SearchConfig",
    "SearchProblem",
    "SearchSetup",
    "SearchSpace",
    "SpaceConfig",
    "Stage",
    "StageShape",
    "StagedNetwork",
    "Strategy",
    "Study",
    "build_block",
    "build_reference",
    "build_space",
    "candidates_of",
    "check",
    "device_latency",
    "exact_front",
    "export_network",
    "load_config",
    "read_results",
    "register_block",
    "run_steps",
    "shipped_config",
]

_HOMES = {
    "errors": "ConfigError DonnaError",
    "export.step": "export_network",
    "latency.direct": "device_latency",
    "pipeline": "check run_steps",
    "predictor.model": "AccuracyPredictor",
    "reference.network": "StagedNetwork",
    "reference.build": "build_reference",
    "report.results": "read_results",
    "run.run": "Run",
    "search.ask_tell": "Search SearchSetup",
    "search.exact.accuracy": "AccuracyModel",
    "search.exact.front": "exact_front",
    "search.strategies.contract": "Strategy",
    "search.study.ledger": "Ledger",
    "search.study.problem": "KnownCost SearchProblem",
    "search.trainable": "candidates_of",
    "search.tuner": "BatchSearcher",
    "space": "BlockSpec SearchSpace Stage StageShape build_block build_space register_block",
    "storage.records": "RecordStore",
    "study": "Candidate Study",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (home for home, names in _HOMES.items() if name in names.split())
    return getattr(importlib.import_module(f"{__name__}.{next(homes, 'config')}"), name)
