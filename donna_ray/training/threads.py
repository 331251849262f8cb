"""How many threads torch has on this host: as many as a short measurement shows to pay."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from donna_ray.training.loop import network_input, seeded

__all__ = ["few_threads"]

_LOSS = 1.1  # times longer that a step may take with fewer threads
_SECONDS, _STEPS = 0.3, 2  # of each measurement, at least


@contextmanager
def few_threads(network: nn.Module, images: Tensor) -> Iterator[int]:
    """Have no more threads than make the training of a network faster; gives their number.

    From torch's own number it is halved as long as a step takes at most 1.1 times the shortest so
    far. Layers that are small, other work on the host and a container's quota of CPUs all make
    threads wait for each other: with other work on 2 cores the demo's reference trained 5 to 10
    times longer on 2 threads than on 1.

    Args:
        network: on the CPU; left as it is.
        images: (N, C, H, W), a batch of the training.
    """
    most = torch.get_num_threads()
    try:
        count = _fewest(copy.deepcopy(network).train(), images, most)
        torch.set_num_threads(count)
        yield count
    finally:
        torch.set_num_threads(most)


def _fewest(network: nn.Module, images: Tensor, most: int) -> int:
    chosen, count, shortest = most, most if most > 1 else 0, float("inf")
    while count:
        seconds = _seconds_a_step(network, images, count)
        if seconds > _LOSS * shortest:
            break
        chosen, shortest = count, min(seconds, shortest)
        count //= 2
    return chosen


def _seconds_a_step(network: nn.Module, images: Tensor, threads: int) -> float:
    torch.set_num_threads(threads)
    batch = network_input(images, torch.device("cpu"))
    with seeded(0):
        network(batch).square().mean().backward()  # warms up
        steps, started = 0, time.perf_counter()
        while steps < _STEPS or time.perf_counter() - started < _SECONDS:
            network(batch).square().mean().backward()
            steps += 1
    return (time.perf_counter() - started) / steps
