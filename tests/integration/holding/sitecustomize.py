"""Imported by every process whose PYTHONPATH has this folder: checkpoints hold their training.

While the file that `HOLD` names is there, a process that has written a checkpoint waits. So a test
kills a training in its middle, however fast the host.
"""

import os
import time
from typing import Any

_replace = os.replace


def _held(source: Any, target: Any, **how: Any) -> None:
    _replace(source, target, **how)
    if str(target).endswith(("-even.safetensors", "-odd.safetensors")):
        while os.path.exists(os.environ["HOLD"]):
            time.sleep(0.02)


os.replace = _held
