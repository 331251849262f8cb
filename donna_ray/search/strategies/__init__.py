"""Which candidates are measured next: ``frontier.Frontier``, and Optuna's samplers by
``sampler.Sampled``. Both have the protocol ``ask_tell.Strategy``.
"""
