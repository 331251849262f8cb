"""What a run will take, in hours, nodes and money, before it is started: `donna plan`.

Entry: `measured_plan` in `measure.py`, which has a few packs, networks and candidates timed where
the run itself would work. `parts.py` is what a worker does for that, `plan.py` computes the run on
clusters of several sizes from those times. `within.py` shortens a run to a given time
by a guess, for `donna init`.
"""
