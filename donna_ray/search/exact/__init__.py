"""Exact fronts of objectives that are sums over the stages.

Entry: `exact_front` in `front.py`. `accuracy.py` has predicted accuracy as such a sum;
`hypervolume.py` rates a front.
"""
