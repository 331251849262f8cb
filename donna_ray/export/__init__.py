"""`donna export`: a finetuned network as files that need neither a run nor this package.

Entry: `export_network` in `step.py` (weights, ONNX, a Python file, a card; all checked), of the
network that `choice.py` finds, with its latencies. `standalone.py` writes the Python file, `hub.py`
the card and timm's description. `phones.py` has the files that must be asked for, which `litert.py`
and `executorch.py` make. `folder.py` puts the files in place, so that an export that was ended can
be repeated. `donna evaluate` is `evaluate.py`: `exported.py` reads and checks such a folder,
`images.py` opens what it is run on.
"""
