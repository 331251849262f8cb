"""One network trained: what reference, blocks and finetuning have in common. Plain torch.

`loop.py` has seeds, the loop over epochs and accuracy; `trainer.py` has `Trainer`, epoch by epoch
by a recipe (schedule, moving average, patience, several processes); `batchnorm.py` measures the
statistics of BatchNorm anew;
`checkpoints.py` keeps the state after every epoch, so that a training that goes on ends with the
weights of one that was not stopped; `threads.py` measures how many threads pay.
"""
