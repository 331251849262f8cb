"""`donna export`: a finetuned network as files that need neither a run nor this package.

Entry: `export_network` in `step.py` (weights, ONNX, a Python file, a card; all checked).
`standalone.py` writes the Python file, `bundle.py` gathers the code that it needs. `phones.py` has
the files that must be asked for, which `litert.py` and `executorch.py` make. `folder.py` puts
the files in place, so that an export that was ended can be repeated.
"""

from typing import Any

__all__ = ["export_network", "export_onnx"]


def __getattr__(name: str) -> Any:
    """The names above, loaded when they are used: they load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from donna_ray import onnx_export
    from donna_ray.export import step

    return getattr(step if name == "export_network" else onnx_export, name)
