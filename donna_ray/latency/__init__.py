"""The way to the device farm: candidates as ONNX models, and their measured latency.

`starting.py` and `farm.py` are the files of `donna_ray` that know farms and devices: the one starts
or joins a farm, the other measures models on it; `direct.py` measures one network without any.
`lowering.py` makes a candidate's ONNX model of cached graphs of its blocks, without exporting it;
`quantised.py` has parts in int8, and candidates of them (`kept_in_float.py` says what stays in
float); `recent.py` has the graphs that are in memory. `recorded.py` reads what was measured before,
in place of a device; `figures.py` reads a measurement; `shifts.py` says which devices the cluster's
nodes can hold at once.
"""
