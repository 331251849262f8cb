"""Step 1, the teacher: a timm model cut into stem, stages and head.

Entry: `reference_step` in `step.py` (build, train or load, measure the variance of each stage);
`work.py` is what its workers do. `load.py` loads a finished one, `worker.py` has what each worker
of a later step needs, `identity.py` what goes into their keys. `build.py` builds a model and cuts
it: `timm_models.py` creates it (`timm_names.py` knows its name), `preparation.py` reads how images
are prepared for its weights, `told_arguments.py` what timm is to build it with, `checkpoint.py`
loads a file's weights (`checkpoint_file.py` reads it, `checkpoint_names.py` finds them in it),
`own_models.py` adds two small ones to timm's, `trace.py` traces a forward by torch.fx, `cut.py`
cuts the trace, `stages.py` finds where; `own_network.py` takes a person's own module, and
`first_run.py` sees what a model does with images before it is cut. `network.py` has
`StagedNetwork`, which every candidate is as well, `facts.py` is for `donna reference inspect` and
`donna space show`, `wishes.py` refuses what no network of a space can be, `rounding.py` sizes of
images that a stage and its blocks round differently.

A stage is consecutive modules of the model, and one tensor goes from part to part: (N, C, H, W) or
(N, tokens, C). The parts hold the model's own modules, so weights and code stay timm's; they are
for images of one size.
"""
