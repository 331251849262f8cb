"""The method, step by step. Each step reads the artifacts before it and leaves its own."""

from collections.abc import Callable

from donna_ray.config import RunConfig
from donna_ray.data import check_data
from donna_ray.distill.features import check_features
from donna_ray.finetune.step import finetune_step
from donna_ray.latency.farm import check_device, check_farm
from donna_ray.library.step import library_step
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.step import build_reference, reference_step
from donna_ray.report.step import report_step
from donna_ray.run.run import Run
from donna_ray.search.ahead import measuring_ahead
from donna_ray.search.step import search_step
from donna_ray.space import build_space, check_space, register_modules
from donna_ray.storage.artifacts import Artifact

__all__ = ["STEPS", "check", "run_steps"]

Done = dict[str, Artifact]

STEPS: dict[str, Callable[[Run, Done], Artifact]] = {
    # 1. A timm model, trained or loaded, cut into stem, stages and head.
    "reference": lambda run, done: reference_step(run),
    # 2. Every block of the space, distilled from the reference's stage.
    "library": lambda run, done: library_step(run, done["reference"]),
    # 3. Sampled architectures, finetuned; accuracy as a function of their blocks' NSR.
    "predictor": lambda run, done: predictor_step(
        run, done["reference"], done["library"], measuring_ahead
    ),
    # 4. The front of predicted accuracy and latency measured on the device.
    "search": lambda run, done: search_step(
        run, done["reference"], done["library"], done["predictor"]
    ),
    # 5. Networks of the front, finetuned and exported.
    "finetune": lambda run, done: finetune_step(
        run, done["reference"], done["library"], done["search"]
    ),
    # 6. results.json, and report.html as a view of it.
    "report": lambda run, done: report_step(run, done),
}


def check(config: RunConfig) -> None:
    """Refuse what cannot work before anything is computed: device, data, model, blocks.

    Raises:
        ConfigError: with the key, the value and the remedy.
    """
    for scenario in config.all_scenarios():
        check_device(scenario.device)
    check_data(config.data)
    check_features(config)
    register_modules(config.space.modules)
    reference, _ = build_reference(config, load_weights=False)
    space = build_space(config.space, reference.shapes, reference.own_blocks())
    check_space(space)
    space.sample(config.predictor.samples, config.seed)


def run_steps(run: Run, last: str = "report", *, fresh: bool = False) -> Artifact:
    """Run the steps up to `last` and return its artifact; what is finished is reused.

    With `fresh` nothing is: see ``Run.forget``.
    """
    check(run.config)
    if list(STEPS).index(last) >= list(STEPS).index("search"):
        run.ray.on_join = lambda: _check_farms(run.config)
    if run.ray.joins():
        run.connect()  # a cluster that cannot do it is to say so before the reference is trained
    if fresh:
        run.forget()
    done: Done = {}
    for name, step in STEPS.items():
        done[name] = step(run, done)
        if name == last:
            break
    return done[last]


def _check_farms(config: RunConfig) -> None:
    for scenario in config.all_scenarios():
        check_farm(scenario.device)
