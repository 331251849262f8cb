"""The method in a notebook: any model, own data, own loss and score; no Ray, and no files.

Entry: `Study` in `study.py`, a call a step. `distilled.py` checks blocks, distils them and makes
networks of them, `searching.py` measures candidates and finds the front, `arguments.py` has the
numbers and recipes that a person gives, `functions.py` what a person's loss, score and latency
return.

A step makes its result first and keeps it at its end: one that fails leaves the study as it was.
"""

from donna_ray.study.searching import Candidate
from donna_ray.study.study import Study

__all__ = ["Candidate", "Study"]
