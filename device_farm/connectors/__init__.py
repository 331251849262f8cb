"""The kinds of device, each a `device_farm.connector.Connector`.

`onnxruntime` is this host, `cuda` an NVIDIA GPU, `adb` an Android phone, `simulated` none.
`cpu` tells which hosts are alike.
"""
