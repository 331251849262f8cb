"""NVIDIA GPUs, through torch.

`connector` is the entry, `settings` how it measures. `loading` brings a model onto the GPU, out
of the ONNX graph by `torch_graph`; `condition` says by NVML whether heat slows the GPU down;
`failures` makes the farm's failures of torch's errors.
"""
