"""Blockwise distillation: blocks learn to stand in for a stage. Plain torch, no Ray.

Entry: `distill_pack` in `pack.py`: a pack of blocks in one pass over the data. `students.py` has
the NSR loss (`noise_to_signal`, DONNA equation 1) and a block in training, `features.py` the
reference's features, `shared.py` what a node keeps once, `precision.py` fp32 or bf16 by
measurement, `racing.py` which blocks an early race pauses, `dealing.py` packs of equal cost.

A block's initial weights depend on seed and key, the order of images on seed and epoch: its result
depends neither on the pack nor on the worker.
"""
