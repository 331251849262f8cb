"""What makes a step's figures doubtful, each in a sentence with the remedy.

A step keeps its doubts in its result (`doubts`); the run says them when the step is done or reused,
and the report begins with them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc  # scipy.stats takes a second to import in every worker

from donna_ray.config import Scenario
from donna_ray.errors import DonnaError

__all__ = [
    "check_label_order",
    "check_reference",
    "depth_doubts",
    "finetune_doubts",
    "front_doubts",
    "guesses",
    "half_doubts",
    "int8_doubts",
    "library_doubts",
    "predictor_doubts",
    "reference_doubts",
    "saturation_doubts",
]

_UNTRAINED = 0.8  # NSR; a block that always returns the mean of what it should has 1
_FEW = 100  # test images: the 95% interval of 1/2 is 20 points wide
_FEW_SAMPLES = 10  # from as many on, 95% intervals cover 90% and more on all 28 laws tried
_LOST = 0.02  # of the test images, by a lower precision
_REMEDY = "Take another network of the front, or deploy it in fp32."
_CHANCE = 0.025  # of as many right answers by guessing
_ORDER_GAIN = 0.1  # of the images; a few classes that two data sets divide otherwise are less
_DIM = 0.3  # of white; 14 bits of 16 reach a quarter
_SURE = 4.0  # standard deviations


def guesses(accuracy: float, images: int, classes: int) -> bool:
    """Whether so many of the images may as well have been right by chance."""
    return bool(bdtrc(round(accuracy * images) - 1, images, 1 / classes) > _CHANCE)


def depth_doubts(images: str, brightest: float | None) -> list[str]:
    """Of the largest value in deep grey images, 1 for white; None where none is deep."""
    if brightest is None or brightest >= _DIM:
        return []
    return [
        f"The deep grey images of {images} reach {brightest:.1%} of white only, so they are nearly "
        "black to the networks: 0 to 65535 are black to white in 16 bits, 0 to 1 in floats. Scale "
        "the images to the full range, those of 12 bits by 16."
    ]


def reference_doubts(
    accuracy: float, images: int, classes: int, weights: str, *, trained: bool
) -> list[str]:
    """Of the reference's accuracy with weights, as configured; the run may have trained them."""
    if not guesses(accuracy, images, classes):
        return []
    guessed = f"The reference's accuracy is {accuracy:.2%}, no better than guessing one of "
    if trained:
        return [f"{guessed}{classes} classes: it learnt nothing. Raise reference.training.epochs."]
    return [
        f"{guessed}{classes} classes. Its weights ({weights}) or the order of their classes are "
        "likely wrong: it must be that of class_names in results.json."
    ]


def check_reference(accuracy: float, images: int, classes: int) -> None:
    """Refuse weights that were given and guess: no block can learn from them.

    One that the run trained itself is only doubted, as is one that few images tell of.

    Raises:
        DonnaError: with the accuracy.
    """
    if images >= _FEW and guesses(accuracy, images, classes):
        raise DonnaError(
            f"The weights of the reference must be trained for the {classes} classes of the data, "
            f"but are right on {accuracy:.2%} of {images} validation images, no better than "
            "guessing. Correct reference.weights or the order of the classes, or train it on the "
            "data (reference.training)."
        )


def check_label_order(
    labels: NDArray[np.int64], answers: NDArray[np.int64], names: Sequence[str]
) -> None:
    """Refuse weights that know the classes of the data in another order.

    The answers' names are put in another order, in which the most images of one half are right. If
    that makes many more of the other half right, it is no chance, and no weakness of the weights.

    Args:
        labels: of the validation images.
        answers: of the weights that were given, for each.
        names: of the classes, where they are known.

    Raises:
        DonnaError: with the accuracies, and the classes that are confused most.
    """
    counts = Counter(zip(answers[::2].tolist(), labels[::2].tolist(), strict=True))
    renamed, taken = dict[int, int](), set[int]()
    for (answer, label), _ in counts.most_common():
        if answer not in renamed and label not in taken:  # else a rare class would become another
            renamed[answer] = label
            taken.add(label)
    given, known = answers[1::2], labels[1::2]
    better = np.array([renamed.get(answer, answer) for answer in given.tolist()], dtype=np.int64)
    right, could = int((given == known).sum()), int((better == known).sum())
    changed = int(((given == known) != (better == known)).sum())
    gain = could - right
    if gain < _ORDER_GAIN * len(known) or gain <= _SURE * math.sqrt(changed):
        return
    (answer, label), count = next(each for each in counts.most_common() if each[0][0] != each[0][1])
    one, other = (repr(names[n]) if n < len(names) else f"number {n}" for n in (label, answer))
    raise DonnaError(
        f"The weights of the reference must know the classes in the order of the data's, but are "
        f"right on {right / len(known):.2%} of {len(known)} validation images, and would be on "
        f"{could / len(known):.2%} if the classes stood in another order: {count} images of {one} "
        f"are taken for {other}. Name or sort the classes (folders, by name; data.source) as they "
        "were when the weights were trained, or train them on the data (reference.training)."
    )


def library_doubts(ratios: Sequence[Sequence[float]]) -> list[str]:
    """Of the NSR of all blocks, a list a stage; a stage of the reference itself has 0."""
    trained = [ratio for stage in ratios for ratio in stage if ratio > 0]
    middle = median(trained or [0.0])
    if middle <= _UNTRAINED:
        return []
    return [
        f"Half of the blocks have an NSR above {middle:.2f}: they have hardly learnt anything (a "
        "constant has 1). Raise library.epochs (or give library.steps), or "
        "distil on more images."
    ]


def predictor_doubts(
    tau: tuple[float, float], accuracies: Sequence[float], images: int, classes: int
) -> list[str]:
    """Of the 95% interval of Kendall tau, and of the accuracies that were fitted.

    Args:
        tau: its ends.
        accuracies: of the finetuned networks.
        images: that each was measured on.
        classes: of the data.
    """
    doubts = []
    if len(accuracies) < _FEW_SAMPLES:
        doubts.append(
            f"The predictor is fitted to {len(accuracies)} networks: of fewer than {_FEW_SAMPLES} "
            "its 95% intervals can be too narrow. Raise predictor.samples."
        )
    if tau[0] <= 0:
        doubts.append(
            f"The predictor may rank no better than chance: the 95% interval of its Kendall tau is "
            f"{tau[0]:.2f} to {tau[1]:.2f}. Raise predictor.samples or predictor.epochs."
        )
    middle = median(accuracies)
    if guesses(middle, images, classes):
        doubts.append(
            f"Half of the predictor's networks are right on at most {middle:.2%} of the images, no "
            f"better than guessing one of {classes} classes. Raise library.epochs or "
            "predictor.epochs."
        )
    return doubts


def front_doubts(scenario: str, disturbed: float | None) -> list[str]:
    """Of a front that was measured while other processes took so many percent of host or core."""
    if disturbed is None:
        return []
    return [
        f"While the front of {scenario!r} was measured, other processes (those of other devices of "
        f"the host, too) took {disturbed:.0f}% of its CPUs, or of the core that was timed. That "
        "slows some networks by 10% and more and others not at all, and the intervals do not tell: "
        "a latency in ms or in `x` can be as far off. End what else runs there, and measure again "
        "what you choose (donna evaluate)."
    ]


def finetune_doubts(
    accuracies: Sequence[float], reference: float, images: int, classes: int
) -> list[str]:
    """Of the finetuned networks, beside the reference.

    Args:
        accuracies: of the networks.
        reference: its accuracy.
        images: of the test, that all were measured on.
        classes: of the data.
    """
    doubts = []
    if images < _FEW:
        doubts.append(
            f"The test has {images} images, so a final accuracy may be {images**-0.5:.0%} off. "
            "Name more by data.test_split, or add validation images."
        )
    best, chance = max(accuracies), 1 / classes
    if guesses(best, images, classes):
        found = f"no better than guessing one of {classes} classes"
    elif best - chance < (reference - chance) / 2:
        found = "less than half of what the reference has above guessing"
    else:
        return doubts
    return [
        *doubts,
        f"The best finetuned network is right on {best:.2%} of the test images, {found} (the "
        f"reference: {reference:.2%}). Raise finetune.epochs and library.epochs, or take milder "
        "blocks.",
    ]


def int8_doubts(accuracies: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of networks that lose more than 2% of the test images by quantisation.

    Args:
        accuracies: in fp32 and in int8, by name.
    """
    return [
        f"In int8 {name} is right on {quantised:.2%} of the test images, in fp32 on {own:.2%}. "
        "Take another network of the front; blocks with relu lose less than those with silu."
        for name, (own, quantised) in accuracies.items()
        if own - quantised > _LOST
    ]


def half_doubts(networks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of networks that half precision does not hold, or that lose more than 2% by it.

    Args:
        networks: by name: `test_accuracy`, and of `fp16` that and `largest`, its largest value.
    """
    found, most = [], float(np.finfo(np.float16).max)
    for name, each in networks.items():
        own, half = each["test_accuracy"], each["fp16"]
        largest, lost = half["largest"], own - half["test_accuracy"] > _LOST
        right = f"{half['test_accuracy']:.2%} of the test images, in fp32 on {own:.2%}"
        if not largest <= most:
            found.append(
                f"In fp16 {name} overflows: it has values up to {largest:.3g} in fp32, where "
                f"half precision has {most:.0f}. It is right on {right}. {_REMEDY}"
            )
        elif lost:
            found.append(f"In fp16 {name} is right on {right}. {_REMEDY}")
    return found


def saturation_doubts(scenarios: Sequence[Scenario], *, saturates: bool) -> list[str]:
    """Of scenarios in int8 on this host's CPU, where its sums of 8-bit products saturate."""
    here = [
        each.name
        for each in scenarios
        if each.device.precision == "int8"
        and each.device.connector == "onnxruntime"
        and each.device.farm is None
    ]
    if not here or not saturates:
        return []
    return [
        f"The CPU that {', '.join(here)} measures on has no VNNI: in int8 its sums may saturate, "
        "and networks be less accurate on it than is told here. Deploy them to Arm or to a CPU "
        "with VNNI, or search in fp32."
    ]
