"""The first screen: which network to take in the reference's place, and how."""

from html import escape
from shlex import quote

from donna_ray.report.headline import QUESTIONS, tested, worded
from donna_ray.report.parts import command
from donna_ray.report.results import Results
from donna_ray.report.scenario import Answer, FrontPoint, Scenario

__all__ = ["answers", "export_command", "finetune_command", "latency"]


def answers(results: Results) -> str:
    """Of each scenario the reference and the answers, or what is missing to have one."""
    groups = []
    for number, scenario in enumerate(results.scenarios):
        title = f"<h2>{escape(scenario.name)}</h2>" if len(results.scenarios) > 1 else ""
        cards = [_reference(results, scenario)]
        cards += [_answer(results, number, question) for question in QUESTIONS]
        groups.append(f'{title}<div class="cards">{"".join(cards)}</div>')
    if not groups:
        groups = [f'<div class="cards">{_reference(results, None)}</div>']
    return f'<section id="answer" aria-label="Which network to take">{"".join(groups)}</section>'


def latency(scenario: Scenario, identity: str | None) -> str:
    """The median of a network, or of the reference, with its 95% interval, in ms."""
    found = scenario.reference_latency
    for each in (*scenario.front, *scenario.asked):
        found = each.latency if each.id == identity else found
    share = found.ci_percent / 100
    ends = (found.median_ms * (1 + side) for side in (-share, share))
    return f"{found.median_ms:.4f} ms [{', '.join(f'{end:.4f}' for end in ends)}]"


def export_command(results: Results, identity: str) -> str:
    """How a finetuned network is taken."""
    return f"donna export {quote(results.made.folder)} {identity} --to {identity}"


def finetune_command(results: Results, identity: str) -> str:
    """How a network is finetuned."""
    return f"donna finetune {quote(results.made.folder)} {identity}"


def _reference(results: Results, scenario: Scenario | None) -> str:
    reference = results.reference
    lines = []
    big = f"{reference.accuracy:.2%} of {reference.validation_images} validation images"
    precision = scenario.device.precision if scenario else "fp32"
    lowered = reference.lowered(precision)
    if reference.test_accuracy is not None:
        big = tested(lowered or reference)
        lines = [f"of {reference.test_images} test images, {reference.test_from}"]
    if lowered is not None:
        lines.append(f"in {precision}; in float {tested(reference)}")
    elif reference.finetuned is not None:
        lines.append(f"finetuned by the networks' recipe: {tested(reference.finetuned)}")
    if scenario is not None:
        lines.append(latency(scenario, None))
    lines.append(f"{reference.params:,} params, {reference.macs:,} MACs")
    return _card("the reference", reference.model, big, lines)


def _answer(results: Results, number: int, question: str) -> str:
    scenario = results.scenarios[number]
    answer: Answer | None = getattr(scenario.headline, question)
    if answer is None:
        return _none(results, scenario, question)
    lines = [_why(results, scenario, answer.id), latency(scenario, answer.id), "Take it:"]
    show = f'<button type="button" data-show="{number}:{escape(answer.id)}">Show it</button>'
    return _card(
        QUESTIONS[question],
        answer.id,
        worded(answer),
        lines,
        command(export_command(results, answer.id)) + show,
    )


def _why(results: Results, scenario: Scenario, identity: str) -> str:
    """By what it was chosen, since the test may order it and the reference otherwise."""
    reference = results.reference
    own = (reference.lowered(scenario.device.precision) or reference).accuracy
    (point,) = [each for each in (*scenario.front, *scenario.asked) if each.id == identity]
    return f"chosen by the validation images: {point.accuracy:.2%}, the reference {own:.2%}"


def _none(results: Results, scenario: Scenario, question: str) -> str:
    if not results.made.finished:
        return _card(QUESTIONS[question], None, "not known yet", ["No network is finetuned yet."])
    open_ = [each for each in scenario.front if each.accuracy is None]
    finetuned = len(scenario.front) + len(scenario.asked) - len(open_)
    lines = [f"Of {finetuned} finetuned networks none is one."]
    more = ""
    if (best := _likeliest(scenario, open_, question)) is not None:
        lines.append(
            f"Next to try: {best.id}, predicted {best.predicted_accuracy:.2%} "
            f"[{best.predicted_low:.2%}, {best.predicted_high:.2%}] of the validation images, "
            f"{latency(scenario, best.id)}."
        )
        more = command(finetune_command(results, best.id))
    return _card(QUESTIONS[question], None, worded(None), lines, more)


def _likeliest(scenario: Scenario, networks: list[FrontPoint], question: str) -> FrontPoint | None:
    """Of networks that are not finetuned, the one of the highest prediction that is fast enough."""
    limit = scenario.reference_latency.median_ms
    fast = [
        each
        for each in networks
        if question == "fastest_as_accurate" or each.latency.median_ms <= limit
    ]
    return max(fast, key=lambda each: each.predicted_accuracy, default=None)


def _card(question: str, name: str | None, big: str, lines: list[str], more: str = "") -> str:
    code = f"<p><code>{escape(name)}</code></p>" if name else ""
    rest = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return (
        f'<div class="card"><h3>{escape(question)}</h3><p class="big">{escape(big)}</p>'
        f"{code}{rest}{more}</div>"
    )
