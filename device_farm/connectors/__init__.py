"""The kinds of device, each a `device_farm.connector.Connector`.

`onnxruntime` is this host, `cuda` an NVIDIA GPU, `adb` an Android phone, `simulated` none.
`cpu` tells which hosts are alike. `onnx_session` has ONNX Runtime's sessions and errors;
`peak_memory` asks a process of its own (`run_alone`) how much memory a model takes.
"""
