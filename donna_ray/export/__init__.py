"""`donna export`: a finetuned network as files that need neither a run nor this package.

Entry: `export_network` in `step.py` (weights, ONNX, a Python file, a card; all checked), of the
network that `choice.py` finds, with its latencies. `standalone.py` writes the Python file, `hub.py`
the card and timm's description. `phones.py` has the files that must be asked for, which `litert.py`
and `executorch.py` make. `folder.py` puts the files in place, so that an export that was ended can
be repeated. `donna evaluate` is `evaluate.py`: `exported.py` reads and checks such a folder,
`images.py` opens what it is run on.
"""

import importlib
from typing import Any

__all__ = ["export_onnx"]


def __getattr__(name: str) -> Any:
    """The names above, for those who take them from here; loaded when used, for they load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("donna_ray.onnx_export"), name)
