"""Step 5: networks assembled of distilled blocks and finetuned end to end.

Entry: `finetune_step` in `step.py` (networks of each front); `finetune` there also trains the
predictor's samples. `work.py` is what a worker does with a network, `asked.py` has those that a
person asks for, `assemble.py` builds one between the reference's stem and head, and says what the
library left in the space. `tested.py` measures what is finetuned, and the reference, on the test
images, `quantised.py` makes networks in int8 of them, `half.py` in fp16. A network's record is made
once for its key: the digest of reference, its blocks' keys, recipe and seed. One whose training
diverges has a record with the reason, and is left out.
"""
