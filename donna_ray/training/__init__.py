"""One network trained: what reference, blocks and finetuning have in common. Plain torch.

`engine.py` has what each of them runs on: `Engine` (device, memory format by `channels.py`,
precision), `MemoryBatch` (a batch in parts that fit the memory) and `Descent` (optimizer, rate,
scale). `loop.py` has seeds, the loop over steps and accuracy; `trainer.py` has `Trainer`, epoch by
epoch by a recipe (moving average, patience, several processes); `batchnorm.py` measures the
statistics of BatchNorm anew; `targets.py` looks at a person's own labels first; `checkpoints.py`
keeps the state of a training, so that one that goes on ends with the weights of one that was not
stopped.
"""
