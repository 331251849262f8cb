"""Step 2, the block library: every block of the space distilled, with NSR, params, MACs.

Entry: `library_step` in `step.py`. `costs.py` and `measure.py` measure seconds, memory and
precision on a worker, `making.py` has packs of blocks distilled (or raced first), `work.py` is what
a worker does with a pack, `watch.py` shows progress, `quantised.py` makes the library in int8 of
it, `tools.py` is for `donna library ls, show, verify, gc`.

A block's record is made once for its key: the digest of reference, stage, block, data, recipe and
seed. A failed block has a record without weights, with the reason; a paused one has its state in
`paused/`, from which training goes on to the same bits.
"""
