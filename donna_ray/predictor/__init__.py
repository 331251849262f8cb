"""Step 3, the accuracy predictor: accuracy of a network from the NSR of its blocks.

Entry: `predictor_step` in `step.py`, in rounds. `model.py` has `AccuracyPredictor` (what
the stages' NSR costs of accuracy, added up; intervals, versioned JSON), `fitting.py` fits it by
leave-one-out, `quality.py` says how good it is, `design.py` chooses what to finetune,
`calibration.py` goes from the short finetuning to the final one, `quantised.py` fits one of int8,
`suggestions.py` is for `donna predictor suggest`.

A predictor is kept while its settings and the NSR of every block that it was fitted to are
unchanged: a larger space alone does not renew it.
"""
