"""The way to the device farm: candidates as ONNX models, and their measured latency.

`farm.py` is the one file of `donna_ray` that knows farms and devices: it starts or joins a farm and
measures models on it. `lowering.py` makes a candidate's ONNX model of cached graphs of its blocks,
without exporting it; `quantised.py` has parts in int8, and candidates of them; `recent.py` has the
graphs that are in memory. `recorded.py` reads what was measured before, in place of a device;
`figures.py` reads a measurement; `shifts.py` says which devices the cluster's nodes can hold at
once.
"""
