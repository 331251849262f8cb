"""The method, step by step. Each step reads the artifacts before it and leaves its own.

What a step needs is imported when it begins: a mistake that ``check`` finds is told sooner.
"""

from collections.abc import Callable, Sequence
from functools import partial

from donna_ray.config import DevicePrecision, RunConfig
from donna_ray.data import check_copies, check_data
from donna_ray.distill.features import check_features
from donna_ray.latency.recorded import check_record_of
from donna_ray.latency.starting import check_device, check_farm
from donna_ray.reference.build import build_reference
from donna_ray.reference.rounding import check_rounding
from donna_ray.reference.step import reference_step
from donna_ray.reference.wishes import check_wishes
from donna_ray.run.run import Run
from donna_ray.space import build_space, check_space, doubt_code, register_modules
from donna_ray.storage.artifacts import Artifact

__all__ = ["STEPS", "check", "run_steps"]

Done = dict[str, Artifact]


def _reference(run: Run, done: Done) -> Artifact:
    """A timm model, trained or loaded, cut into stem, stages and head."""
    return reference_step(run)


def _library(run: Run, done: Done) -> Artifact:
    """Every block of the space, distilled from the reference's stage."""
    from donna_ray.library.quantised import libraries

    made = libraries(run, done["reference"])
    if "int8" in made:
        done["library/int8"] = made["int8"]
    return made["fp32"]


def _predictor(run: Run, done: Done) -> Artifact:
    """Sampled architectures, finetuned; accuracy as a function of their blocks' NSR."""
    from donna_ray.predictor.quantised import quantised_predictor
    from donna_ray.predictor.step import predictor_step
    from donna_ray.search.ahead import measuring_ahead

    reference = done["reference"]
    meanwhile = measuring_ahead(run, reference, _in_each_precision(run.config, done, "library"))
    done["predictor"] = predictor_step(run, reference, done["library"], meanwhile)
    if run.config.in_int8:
        made = (done["library/int8"], done["predictor"])
        done["predictor/int8"] = quantised_predictor(run, reference, *made)
    return done["predictor"]


def _search(run: Run, done: Done) -> Artifact:
    """The front of predicted accuracy and latency measured on the device."""
    from donna_ray.search.step import search_step

    libraries, predictors = (
        _in_each_precision(run.config, done, step) for step in ("library", "predictor")
    )
    made = {name: (libraries[name], predictors[name]) for name in libraries}
    return search_step(run, done["reference"], made)


def _finetune(run: Run, done: Done, names: Sequence[str] = ()) -> Artifact:
    """Networks of the front and those that are named, finetuned and exported."""
    from donna_ray.finetune.step import finetune_step

    in_int8 = done.get("library/int8")
    return finetune_step(run, done["reference"], done["library"], done["search"], names, in_int8)


def _in_each_precision(config: RunConfig, done: Done, step: str) -> dict[DevicePrecision, Artifact]:
    """What a step left: in fp32, which is that of fp16 too, and in int8, where a scenario is."""
    left: dict[DevicePrecision, Artifact] = {"fp32": done[step]}
    if config.in_fp16:
        left["fp16"] = done[step]
    if f"{step}/int8" in done:
        left["int8"] = done[f"{step}/int8"]
    return left


def _report(run: Run, done: Done) -> Artifact:
    """results.json, and report.html as a view of it."""
    from donna_ray.report.step import report_step

    return report_step(run, done)


def _report_so_far(run: Run, done: Done) -> None:
    """The same of a run that is not finished, for who watches it."""
    from donna_ray.report.step import report_so_far

    report_so_far(run, done)


STEPS: dict[str, Callable[[Run, Done], Artifact]] = {
    "reference": _reference,
    "library": _library,
    "predictor": _predictor,
    "search": _search,
    "finetune": _finetune,
    "report": _report,
}


def check(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> None:
    """Refuse what cannot work before anything is computed: device, strategy, data, model, blocks.

    Args:
        config: of the run.
        say: called with a line before what takes long, and for what is only doubted.

    Raises:
        ConfigError: with the key, the value and the remedy.
    """
    from donna_ray.search.strategies.registry import check_strategy

    config.tracking.check()
    config.reference.check_weights()
    for scenario in config.all_scenarios():
        check_device(scenario.device, scenario.search.memory_limit is not None)
        check_strategy(scenario.search)
    check_data(config.data)
    check_features(config)
    register_modules(config.space.modules)
    reference, preprocessing = build_reference(config, load_weights=False)
    check_copies(config.data, preprocessing)
    space = build_space(config.space, reference.shapes, reference.own_blocks())
    check_rounding(reference, space)
    check_wishes(config, reference, space, check_space(space, say), say)
    doubt_code(space, say)
    for scenario in config.all_scenarios():
        check_record_of(space, scenario.device, say)


def run_steps(
    run: Run, last: str = "report", *, fresh: bool = False, asked: Sequence[str] = ()
) -> Artifact:
    """Run the steps up to `last` and return its artifact; what is finished is reused.

    With `fresh` nothing is: see ``Run.forget``. Networks that are `asked` for by name are finetuned
    beside those of the front, in this and in later runs of the folder.
    """
    check(run.config, run.say)
    if list(STEPS).index(last) >= list(STEPS).index("search"):
        run.ray.on_join = lambda: _check_farms(run.config)
    if run.ray.joins():
        run.connect()  # a cluster that cannot do it is to say so before the reference is trained
    if fresh:
        run.forget()
    done: Done = {}
    for name, step in (STEPS | {"finetune": partial(_finetune, names=asked)}).items():
        done[name] = step(run, done)
        if name == last:
            break
        if last == "report" and name != "finetune" and not done[name].reused:
            _report_so_far(run, done)
    return done[last]


def _check_farms(config: RunConfig) -> None:
    for scenario in config.all_scenarios():
        check_farm(scenario.device)
