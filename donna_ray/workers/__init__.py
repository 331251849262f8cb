"""Work spread over a cluster by Ray Train: the workers of a run and the queue of their work.

Entry: `spread` in `spread.py`. `pool.py` starts the workers of a run, in waves as nodes join, and
keeps them for all its steps; `train_run.py` is what a worker runs, `board.py` tells it which job to
do next, `queue.py` leases each unit of work to one worker and completes it once, `group.py` has the
processes that do one unit together, `demand.py` asks the autoscaler for nodes while the job lives,
for as many as it can provide (`bargain.py`).

A unit stores its results itself, so that it can be done again. Workers never report to Ray Train
(that would be a barrier); one that dies is restarted alone, and its unit goes back to the queue, as
when its node is lost or it is silent for a minute. A unit that raises stops the step, unless
`faults.py` says that it may pass elsewhere. In a group, one that ends for one process alone is
completed by it, and all are replaced.
"""
