"""Which candidates are measured next.

`contract.py` is what every strategy keeps, `registry.py` finds one by its name.
`frontier.py` is the default: `candidates.py` makes the networks it chooses from, `gain.py` the
expected growth of the front's hypervolume, `success.py` the chance that a network can be measured.
`sampler.py` has Optuna's samplers: `genetic.py` makes NSGA-II and NSGA-III quick, `feasible.py`
keeps their draws within the limits.
"""
