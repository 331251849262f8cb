"""Which candidates are measured next; each strategy has the protocol `ask_tell.Strategy`.

`frontier.py` is the default: `candidates.py` makes the networks it chooses from, `gain.py` the
expected growth of the front's hypervolume, `success.py` the chance that a network can be measured.
`sampler.py` has Optuna's samplers: `genetic.py` makes NSGA-II and NSGA-III quick, `feasible.py`
keeps their draws within the limits.
"""
