"""What other processes do to a store. Without pytest, whose import would cost each a second."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable

import torch

from donna_ray.storage.records import RecordStore

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def put_all(url: str, numbers: Iterable[int], keys: int) -> None:
    """Put records whose weights and files all say the same number."""
    os.fsync = lambda fd: None  # it matters where the machine dies, not where a process does
    store = RecordStore(url)
    for number in numbers:
        weights = {"w": torch.full((4000,), float(number))}
        graph = b"%d" % number * 1000
        store.put(f"key{number % keys}", {"nsr": number}, weights, files={"onnx": graph})
