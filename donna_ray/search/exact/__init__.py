"""Exact fronts of objectives that are sums over the stages.

Entry: `exact_front` in `front.py`; `accuracy_front` in `accuracy.py` where the predictor has
products of two stages as well. `hypervolume.py` rates a front.
"""
