"""How runs of a model become a latency that holds on a busy host.

`protocol` times blocks of runs and makes the figures, `control` is the small model that is timed
beside each candidate, `measurement` the record that results. `sustained` runs without pause,
`energy` reads what the device counts.
"""
