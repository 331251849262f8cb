"""The latency of any network, learnt from those that were measured.

Entry: `Surrogate` in `model.py`, a Gaussian process over what `block_features.py` says of the
blocks; `likelihood.py` fits its parameters, `threads.py` has it use one thread.
"""
