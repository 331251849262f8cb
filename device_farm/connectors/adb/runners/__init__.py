"""Programs on the phone that run a model and print how long it took.

`base` is what they share; `onnxruntime`, `tflite`, and `command` for a program of one's own.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from device_farm.connectors.adb.runners.base import Runner, RunPlan
from device_farm.connectors.adb.runners.command import CommandRunner
from device_farm.connectors.adb.runners.onnxruntime import OnnxRuntimeRunner
from device_farm.connectors.adb.runners.tflite import TfliteRunner

__all__ = ["AnyRunner", "RunPlan", "Runner"]

AnyRunner = Annotated[OnnxRuntimeRunner | TfliteRunner | CommandRunner, Field(discriminator="kind")]
"""A runner's settings; `kind` says which one."""
