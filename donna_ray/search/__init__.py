"""Step 4 of the method: the front of predicted accuracy and measured latency.

Entry: `search_step` in `step.py`, for all scenarios of a run; `scenario.py` is one of them, its
problem and its front. `ask_tell.py` is one search without Ray, `tuner.py` puts Ray Tune around it
(`trainable.py` is what Tune's actors run, `evaluators.py` the process that evaluates for them),
`tracking.py` what TensorBoard, MLflow and Weights & Biases have of it, `verify.py` measures the
front again, `yardstick.py` holds a front against the exact one of an additive model, `ahead.py`
measures what a search begins with while networks are trained, `testing.py` has the suite that
strategies pass.

Folders: `exact/` fronts of sums over the stages, `surrogate/` latency learnt from measurements,
`study/` what is searched and what was measured, `strategies/` which candidates come next.
"""
