"""Exact fronts of what adds up over the stages: ``front.exact_front``, and with a predictor that
has cross terms ``accuracy.accuracy_front``. ``hypervolume`` rates a front.
"""
