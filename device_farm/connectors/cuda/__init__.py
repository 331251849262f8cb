"""NVIDIA GPUs, through ONNX Runtime or torch.

`connector` is the entry, `settings` how it measures. `loading` brings a model onto the GPU, with
BatchNorm folded by `folding`; `condition` says by NVML whether heat slows the GPU down; `failures`
makes the farm's failures of the runtimes' errors.
"""
